//! One node of a test's own: a network namespace in which the built agent and proxy run, each started when the test wants.

#![allow(clippy::disallowed_types)] // the tests start the programs that they test

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::LinkUnspec;
use serde_json::Value;

use crate::binaries::binary;
use crate::cni::{Call, config, path_of};
use crate::machine::{Machine, children, ended};
use crate::sandbox::until;
use crate::wire::{Wire, configure};

/// The pod `default/client` with the addresses of a [`crate::wire::Wire`]'s pod, and its peer outside the mesh.
pub const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: outside }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: peer, namespace: outside, workloadIps: [10.78.0.2, "fd78::2"] }
"#;

/// A node without processes yet. Everything of it ends with it.
#[derive(Debug)]
pub struct Node {
    /// Its namespace.
    pub netns: NetNs,
    folder: PathBuf,
    children: Vec<Child>,
    /// How `nsenter` starts the agent in a [`Machine`], if it should run there.
    inside: Option<Vec<String>>,
}

impl Node {
    /// A node with agent and proxy, and a pod that has joined.
    pub fn with_pod(name: &str) -> (Self, Wire) {
        let (mut node, wire) = (Self::new(name, MESH), Wire::new());
        node.start_agent();
        node.start_ready_proxy();
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
        assert!(add.status.success(), "{}", String::from_utf8_lossy(&add.stdout));
        (node, wire)
    }

    /// A namespace with loopback, and a folder with this mesh file.
    pub fn new(name: &str, mesh: &str) -> Self {
        let netns = NetNs::create().unwrap();
        configure(&netns, async |handle| {
            handle.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await.unwrap();
        });
        Self::within(name, mesh, netns)
    }

    /// The same in a namespace that is there already.
    pub fn within(name: &str, mesh: &str, netns: NetNs) -> Self {
        let folder = crate::folder::folder(name);
        fs::write(folder.join("mesh.yaml"), mesh).unwrap();
        Self { netns, folder, children: Vec::new(), inside: None }
    }

    /// From now on the agent runs with the processes and mounts of a machine: it finds there, under the paths that a
    /// runtime gives, what that runtime has mounted. A proxy needs none of that.
    pub fn run_agent_in(&mut self, machine: &Machine) {
        self.inside = Some(machine.enter());
    }

    /// Starts the agent and waits until it takes pods; returns its process id.
    pub fn start_agent(&mut self) -> u32 {
        self.start_agent_with(&[])
    }

    /// The same with more arguments.
    pub fn start_agent_with(&mut self, arguments: &[&std::ffi::OsStr]) -> u32 {
        let program = binary("underpass-agent");
        let mut command = Command::new(if self.inside.is_some() { Path::new("nsenter") } else { &program });
        if let Some(enter) = &self.inside {
            command.args(enter).arg(&program);
        }
        self.start_agent_by(command, arguments)
    }

    /// The same with a disk of this many KiB for its state, which is seen by the agent alone and ends with it.
    pub fn start_agent_on_small_disk(&mut self, kib: usize) -> u32 {
        let state = self.file("state");
        fs::create_dir_all(&state).unwrap();
        let script = format!("mount -t tmpfs -o size={kib}k none '{}' && exec \"$0\" \"$@\"", state.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]).arg(script).arg(binary("underpass-agent"));
        self.start_agent_by(command, &[])
    }

    /// The same with strace, which writes every start of a program to `log`.
    pub fn start_agent_traced(&mut self, log: &Path) -> u32 {
        self.start_agent_by(traced(log, "underpass-agent"), &[])
    }

    /// The same where only this many files may be open, unless the agent asks for more.
    pub fn start_agent_with_few_files(&mut self, files: usize) -> u32 {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -S -n {files} && exec \"$0\" \"$@\"")).arg(binary("underpass-agent"));
        self.start_agent_by(command, &[])
    }

    /// Starts an agent that knows its pods from a cluster, as this node of it.
    pub fn start_agent_of_cluster(&mut self, node: &str, kubeconfig: &str, arguments: &[&str]) -> u32 {
        let mut command = Command::new(binary("underpass-agent"));
        command.arg("--node").arg(node).arg("--kubernetes").arg("--kubeconfig").arg(kubeconfig).args(arguments);
        self.start_knowing_agent(command)
    }

    fn start_agent_by(&mut self, mut command: Command, arguments: &[&std::ffi::OsStr]) -> u32 {
        command.arg("--node").arg("node").arg("--mesh-file").arg(self.file("mesh.yaml")).args(arguments);
        self.start_knowing_agent(command)
    }

    fn start_knowing_agent(&mut self, mut command: Command) -> u32 {
        command.arg("--agent-socket").arg(self.agent_socket()).arg("--zds-socket").arg(self.zds_socket());
        command.arg("--state-dir").arg(self.file("state"));
        let pid = self.spawn(command, "agent.log");
        until("the agent takes pods", || {
            self.get("127.0.0.1:15014", "/healthz").ok().filter(|(status, _)| *status == 200)
        });
        pid
    }

    /// Starts the proxy; returns its process id.
    pub fn start_proxy(&mut self) -> u32 {
        self.start_proxy_with(&[])
    }

    /// The same with more environment.
    pub fn start_proxy_with(&mut self, environment: &[(&str, &str)]) -> u32 {
        let command = self.proxy(Command::new(binary("underpass-proxy")), environment);
        self.spawn(command, "proxy.log")
    }

    /// Starts the proxy where this many files may be open and no more, and waits until it is ready.
    pub fn start_proxy_with_few_files(&mut self, files: usize) -> u32 {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\"")).arg(binary("underpass-proxy"));
        let command = self.proxy(command, &[]);
        let pid = self.spawn(command, "proxy.log");
        self.await_proxy();
        pid
    }

    /// Starts the proxy, waits until it is ready, and gives its log to somebody who may not read it.
    pub fn start_unread_proxy(&mut self, environment: &[(&str, &str)]) -> ChildStdout {
        let mut command = self.proxy(Command::new(binary("underpass-proxy")), environment);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        netns::process::in_netns(&mut command, &self.netns).unwrap();
        let mut child = netns::process::die_with_parent(&mut command).spawn().unwrap();
        let unread = child.stdout.take().unwrap();
        self.children.push(child);
        self.await_proxy();
        unread
    }

    fn proxy(&self, mut command: Command, environment: &[(&str, &str)]) -> Command {
        command.arg("proxy").env("NODE_NAME", "node").env("LOCAL_XDS_PATH", self.file("mesh.yaml"));
        command.env("INPOD_UDS", self.zds_socket()).env("PROXY_MODE", "shared").env("CLUSTER_ID", "Kubernetes");
        command.env("NETWORK", "").env("IPV6_ENABLED", "true").env("ZTUNNEL_WORKER_THREADS", "2");
        command.arg("--ca-dir").arg(self.file("ca")).envs(environment.iter().copied());
        command
    }

    fn await_proxy(&self) {
        until("the proxy is ready", || {
            self.get("127.0.0.1:15021", "/healthz/ready").ok().filter(|(status, _)| *status == 200)
        });
    }

    /// Starts a proxy that has its mesh from a control plane, which the environment names.
    pub fn start_controlled_proxy(&mut self, environment: &[(&str, &str)]) -> u32 {
        let mut command = Command::new(binary("underpass-proxy"));
        command.args(["proxy", "ztunnel"]).env("NODE_NAME", "node").env("INPOD_UDS", self.zds_socket());
        command.env("ZTUNNEL_WORKER_THREADS", "2").arg("--ca-dir").arg(self.file("ca"));
        command.envs(environment.iter().copied());
        self.spawn(command, "proxy.log")
    }

    /// Starts the proxy and waits until it has the agent's snapshot.
    pub fn start_ready_proxy(&mut self) -> u32 {
        self.start_ready_proxy_with(&[])
    }

    /// The same with more environment.
    pub fn start_ready_proxy_with(&mut self, environment: &[(&str, &str)]) -> u32 {
        let pid = self.start_proxy_with(environment);
        self.await_proxy();
        pid
    }

    fn spawn(&mut self, mut command: Command, log: &str) -> u32 {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.file(log)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.env("RUST_LIB_BACKTRACE", "0"); // of panics, and not of errors, for which all symbols would be loaded
        netns::process::in_netns(&mut command, &self.netns).unwrap();
        let child = netns::process::die_with_parent(&mut command).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    /// Kills one of the processes that were started here, at once.
    pub fn kill(&mut self, pid: u32) {
        let position = self.children.iter().position(|c| c.id() == pid).unwrap();
        let mut child = self.children.remove(position);
        let inside = children(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        until("it has ended inside, too", || inside.iter().all(|pid| ended(*pid)).then_some(()));
    }

    /// Kills everything that runs on the node, at once.
    pub fn kill_all(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops one of the node's processes in the middle of whatever it does, or lets it go on.
    pub fn freeze(&self, pid: u32, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// What the agent says of its pods.
    pub fn pods(&self) -> Vec<Value> {
        let status = self.get("127.0.0.1:15014", "/status").unwrap().1;
        serde_json::from_str::<Value>(&status).unwrap()["pods"].as_array().unwrap().clone()
    }

    /// A file in the node's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where plugins find the agent.
    pub fn agent_socket(&self) -> PathBuf {
        self.file("agent.sock")
    }

    /// Where proxies find the agent.
    pub fn zds_socket(&self) -> PathBuf {
        self.file("zds.sock")
    }

    /// The log of `agent` or `proxy`.
    pub fn log(&self, of: &str) -> String {
        fs::read_to_string(self.file(&format!("{of}.log"))).unwrap_or_default()
    }

    /// A GET in the node's namespace: status and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, address: &str, path: &str) -> std::io::Result<(u16, String)> {
        self.request("GET", address, path)
    }

    /// The same with another method, and no body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn request(&self, method: &str, address: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = self.netns.run(|| TcpStream::connect(address)).unwrap()?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            eprintln!("-- agent\n{}\n-- proxy\n{}", self.log("agent"), self.log("proxy"));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A command that runs a built program under strace. The program is the child itself, and strace a child of its own, so
/// that both end when the program is killed.
pub fn traced(log: &Path, program: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-s", "4096", "-e", "trace=execve,execveat", "-o"]).arg(log).arg(binary(program));
    command
}

/// How many files a process has open, and how many network namespaces and sockets are among them. Its own namespace is not
/// counted: each of its threads remembers it once it has been in another one.
pub fn open_files(pid: u32) -> (usize, usize, usize) {
    let process = Path::new("/proc").join(pid.to_string());
    let own = fs::read_link(process.join("ns/net")).unwrap().display().to_string();
    let links: Vec<String> = fs::read_dir(process.join("fd"))
        .unwrap()
        .flatten()
        .filter_map(|e| fs::read_link(e.path()).ok())
        .map(|l| l.display().to_string())
        .filter(|l| *l != own)
        .collect();
    let of = |prefix: &str| links.iter().filter(|l| l.starts_with(prefix)).count();
    (links.len(), of("net:"), of("socket:"))
}

/// Whether no more is open than before. Less may be: a probe was perhaps under way before.
pub fn no_more_open(now: (usize, usize, usize), before: (usize, usize, usize)) -> bool {
    now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2
}

/// What a process has open when nothing closes any more.
pub fn settled(pid: u32) -> (usize, usize, usize) {
    let mut last = (0, 0, 0);
    until("the process is quiet", || {
        let now = open_files(pid);
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}
