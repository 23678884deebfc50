//! A node for one test: a network namespace in which the test starts the built agent and proxy.

#![allow(clippy::disallowed_types)] // starts the programs under test

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use agent_status::{NodeStatus, PodStatus, VerificationState};
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::LinkUnspec;

use crate::binaries::binary;
use crate::cni::{Call, config, path_of};
use crate::machine::{Machine, children, has_exited};
use crate::sandbox::{eventually, until};
use crate::wire::{Wire, configure};

/// Pod `default/client` with the addresses of the pod of a [`crate::wire::Wire`], and its peer,
/// which is outside the mesh.
pub const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: outside }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: peer, namespace: outside, workloadIps: [10.78.0.2, "fd78::2"] }
"#;

/// A node. Its processes and files end with it.
#[derive(Debug)]
pub struct TestNode {
    /// The node's network namespace.
    pub netns: NetNs,
    folder: PathBuf,
    children: Vec<Child>,
    /// The `nsenter` arguments that start the agent in a [`Machine`], if it runs there.
    machine: Option<Vec<String>>,
}

impl TestNode {
    /// A node with an agent, a proxy, and an enrolled pod.
    pub fn with_pod(name: &str) -> (Self, Wire) {
        let (mut node, wire) = (Self::new(name, MESH), Wire::new());
        node.start_agent();
        node.start_ready_proxy();
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
        assert!(
            add.status.success(),
            "{}",
            String::from_utf8_lossy(&add.stdout)
        );
        (node, wire)
    }

    /// Creates a namespace with loopback, and a folder with this mesh file.
    pub fn new(name: &str, mesh: &str) -> Self {
        let netns = NetNs::create().unwrap();
        configure(&netns, async |handle| {
            handle
                .link()
                .set(LinkUnspec::new_with_index(1).up().build())
                .execute()
                .await
                .unwrap();
        });
        Self::within(name, mesh, netns)
    }

    /// A node in an existing namespace.
    pub fn within(name: &str, mesh: &str, netns: NetNs) -> Self {
        let folder = crate::folder::folder(name);
        fs::write(folder.join("mesh.yaml"), mesh).unwrap();
        Self {
            netns,
            folder,
            children: Vec::new(),
            machine: None,
        }
    }

    /// Makes agents run in the process and mount namespaces of a machine, where the paths that the
    /// runtime passes are valid. The proxy does not need this.
    pub fn run_agent_in(&mut self, machine: &Machine) {
        self.machine = Some(machine.nsenter_arguments());
    }

    /// Starts the agent and waits until it is healthy; returns its process id.
    pub fn start_agent(&mut self) -> u32 {
        self.start_agent_with(&[])
    }

    /// Like [`Self::start_agent`], with additional arguments.
    pub fn start_agent_with(&mut self, arguments: &[&std::ffi::OsStr]) -> u32 {
        let program = binary("underpass-agent");
        let mut command = Command::new(if self.machine.is_some() {
            Path::new("nsenter")
        } else {
            &program
        });
        if let Some(arguments) = &self.machine {
            command.args(arguments).arg(&program);
        }
        self.start_agent_by(command, arguments)
    }

    /// Starts the agent with its state on a tmpfs of this many KiB, which only the agent sees.
    pub fn start_agent_on_small_disk(&mut self, kib: usize) -> u32 {
        let state = self.file("state");
        fs::create_dir_all(&state).unwrap();
        let mount = format!("mount -t tmpfs -o size={kib}k none '{}'", state.display());
        self.start_agent_after(&mount)
    }

    /// Starts the agent after this shell command in a mount namespace of its own.
    pub fn start_agent_after(&mut self, prepare: &str) -> u32 {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg(format!("{prepare} && exec \"$0\" \"$@\""))
            .arg(binary("underpass-agent"));
        self.start_agent_by(command, &[])
    }

    /// Starts the agent on a disk that takes this long to sync a file.
    pub fn start_agent_on_slow_disk(&mut self, sync: Duration) -> u32 {
        let inject = format!("inject=fdatasync:delay_enter={}", sync.as_micros());
        let mut command = Command::new("strace");
        command
            .args(["-D", "-f", "-qq", "-o", "/dev/null"])
            .args(["-e", "trace=fdatasync", "-e", &inject])
            .arg(binary("underpass-agent"));
        self.start_agent_by(command, &[])
    }

    /// Starts the agent on a node whose inotify instances are all in use.
    pub fn start_agent_without_inotify(&mut self, arguments: &[&std::ffi::OsStr]) -> u32 {
        let mut command = Command::new("strace");
        command
            .args(["-D", "-f", "-qq", "-o", "/dev/null"])
            .args(["-e", "trace=inotify_init1"])
            .args(["-e", "inject=inotify_init1:error=EMFILE"])
            .arg(binary("underpass-agent"));
        self.start_agent_by(command, arguments)
    }

    /// Starts the agent under strace, which logs every execve to `log`.
    pub fn start_agent_traced(&mut self, log: &Path) -> u32 {
        self.start_agent_by(traced(log, "underpass-agent"), &[])
    }

    /// Starts the agent with this soft limit of open files.
    pub fn start_agent_with_few_files(&mut self, files: usize) -> u32 {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -S -n {files} && exec \"$0\" \"$@\""))
            .arg(binary("underpass-agent"));
        self.start_agent_by(command, &[])
    }

    /// Starts an agent that watches pods through an API server, as the given node.
    pub fn start_agent_of_cluster(
        &mut self,
        node: &str,
        kubeconfig: &str,
        arguments: &[&str],
    ) -> u32 {
        let mut command = Command::new(binary("underpass-agent"));
        command
            .arg("--node")
            .arg(node)
            .arg("--kubernetes")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(arguments);
        self.start_healthy_agent(command)
    }

    fn start_agent_by(&mut self, mut command: Command, arguments: &[&std::ffi::OsStr]) -> u32 {
        command
            .arg("--node")
            .arg("node")
            .arg("--mesh-file")
            .arg(self.file("mesh.yaml"))
            .args(arguments);
        self.start_healthy_agent(command)
    }

    fn start_healthy_agent(&mut self, mut command: Command) -> u32 {
        command
            .arg("--agent-socket")
            .arg(self.agent_socket())
            .arg("--zds-socket")
            .arg(self.zds_socket());
        command.arg("--state-dir").arg(self.file("state"));
        let pid = self.spawn(command, "agent.log");
        until("the agent is healthy", || {
            self.get("127.0.0.1:15014", "/healthz")
                .ok()
                .filter(|(status, _)| *status == 200)
        });
        pid
    }

    /// Starts the proxy; returns its process id.
    pub fn start_proxy(&mut self) -> u32 {
        self.start_proxy_with(&[])
    }

    /// Like [`Self::start_proxy`], with additional environment variables.
    pub fn start_proxy_with(&mut self, environment: &[(&str, &str)]) -> u32 {
        let command = self.proxy(Command::new(binary("underpass-proxy")), environment);
        self.spawn(command, "proxy.log")
    }

    /// Starts the proxy with this group, and waits until it is ready.
    pub fn start_proxy_as_group(&mut self, gid: u32) -> u32 {
        let mut command = Command::new("setpriv");
        command
            .args(["--regid", &gid.to_string(), "--clear-groups"])
            .arg(binary("underpass-proxy"));
        let command = self.proxy(command, &[]);
        let pid = self.spawn(command, "proxy.log");
        self.await_proxy();
        pid
    }

    /// Starts the proxy with this hard limit of open files, and waits until it is ready.
    pub fn start_proxy_with_few_files(&mut self, files: usize) -> u32 {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""))
            .arg(binary("underpass-proxy"));
        let command = self.proxy(command, &[]);
        let pid = self.spawn(command, "proxy.log");
        self.await_proxy();
        pid
    }

    /// Starts the proxy, waits until it is ready, and returns the pipe to which it logs.
    pub fn start_unread_proxy(&mut self, environment: &[(&str, &str)]) -> ChildStdout {
        let mut command = self.proxy(Command::new(binary("underpass-proxy")), environment);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        netns::process::in_netns(&mut command, &self.netns).unwrap();
        let mut child = netns::process::die_with_parent(&mut command)
            .spawn()
            .unwrap();
        let unread = child.stdout.take().unwrap();
        self.children.push(child);
        self.await_proxy();
        unread
    }

    fn proxy(&self, mut command: Command, environment: &[(&str, &str)]) -> Command {
        command
            .arg("proxy")
            .env("NODE_NAME", "node")
            .env("LOCAL_XDS_PATH", self.file("mesh.yaml"));
        command
            .env("INPOD_UDS", self.zds_socket())
            .env("PROXY_MODE", "shared")
            .env("CLUSTER_ID", "Kubernetes");
        command
            .env("NETWORK", "")
            .env("IPV6_ENABLED", "true")
            .env("ZTUNNEL_WORKER_THREADS", "2");
        command
            .arg("--ca-dir")
            .arg(self.file("ca"))
            .envs(environment.iter().copied());
        command
    }

    fn await_proxy(&self) {
        until("the proxy is ready", || {
            self.get("127.0.0.1:15021", "/healthz/ready")
                .ok()
                .filter(|(status, _)| *status == 200)
        });
    }

    /// Starts a proxy that gets its mesh from the control plane named in the environment.
    pub fn start_controlled_proxy(&mut self, environment: &[(&str, &str)]) -> u32 {
        let command = Command::new(binary("underpass-proxy"));
        self.start_controlled_proxy_by(command, environment)
    }

    /// Like [`Self::start_controlled_proxy`], with other contents of `/etc/hosts`, which only the
    /// proxy sees.
    pub fn start_controlled_proxy_with_hosts(
        &mut self,
        environment: &[(&str, &str)],
        hosts: &str,
    ) -> u32 {
        let file = self.file("hosts");
        fs::write(&file, hosts).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"")
            .arg("sh")
            .arg(file)
            .arg(binary("underpass-proxy"));
        self.start_controlled_proxy_by(command, environment)
    }

    fn start_controlled_proxy_by(
        &mut self,
        mut command: Command,
        environment: &[(&str, &str)],
    ) -> u32 {
        command
            .args(["proxy", "ztunnel"])
            .env("NODE_NAME", "node")
            .env("INPOD_UDS", self.zds_socket());
        command
            .env("ZTUNNEL_WORKER_THREADS", "2")
            .arg("--ca-dir")
            .arg(self.file("ca"));
        command.envs(environment.iter().copied());
        self.spawn(command, "proxy.log")
    }

    /// Starts any proxy that has ztunnel's command line and environment variables; returns its
    /// process id.
    pub fn start_proxy_program(&mut self, program: &Path, environment: &[(&str, &str)]) -> u32 {
        let mut command = Command::new(program);
        command
            .args(["proxy", "ztunnel"])
            .env("INPOD_UDS", self.zds_socket())
            .envs(environment.iter().copied());
        self.spawn(command, "proxy.log")
    }

    /// Starts the proxy and waits until it has the agent's snapshot.
    pub fn start_ready_proxy(&mut self) -> u32 {
        self.start_ready_proxy_with(&[])
    }

    /// Like [`Self::start_ready_proxy`], with additional environment variables.
    pub fn start_ready_proxy_with(&mut self, environment: &[(&str, &str)]) -> u32 {
        let pid = self.start_proxy_with(environment);
        self.await_proxy();
        pid
    }

    fn spawn(&mut self, mut command: Command, log: &str) -> u32 {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.file(log))
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // Backtraces of panics only: those of errors would load all symbols.
        command.env("RUST_LIB_BACKTRACE", "0");
        netns::process::in_netns(&mut command, &self.netns).unwrap();
        let child = netns::process::die_with_parent(&mut command)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    /// Kills one of the node's processes, and waits until it has exited.
    pub fn kill(&mut self, pid: u32) {
        let position = self.children.iter().position(|c| c.id() == pid).unwrap();
        let mut child = self.children.remove(position);
        let descendants = children(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        until("its children have exited", || {
            descendants.iter().all(|pid| has_exited(*pid)).then_some(())
        });
    }

    /// Kills all processes of the node.
    pub fn kill_all(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops one of the node's processes, or continues it.
    pub fn freeze(&self, pid: u32, frozen: bool) {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// The agent's `/status`.
    pub fn status(&self) -> NodeStatus {
        let (status, body) = self.get("127.0.0.1:15014", "/status").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e} in {body}"))
    }

    /// The pods in the agent's `/status`.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.status().pods
    }

    /// One pod in the agent's `/status`.
    ///
    /// # Panics
    /// When the agent does not list it.
    #[track_caller]
    pub fn pod(&self, name: &str) -> PodStatus {
        let pods = self.pods();
        let found = pods.iter().find(|p| p.name == name).cloned();
        found.unwrap_or_else(|| panic!("{name} is not among {pods:?}"))
    }

    /// How many pods are verified.
    pub fn verified_pods(&self) -> usize {
        let is_verified = |p: &PodStatus| {
            p.verification
                .as_ref()
                .is_some_and(|v| v.state == VerificationState::Verified)
        };
        self.pods().iter().filter(|p| is_verified(p)).count()
    }

    /// Verifies a pod of namespace `default` now, through the agent's `/verify`.
    pub fn verify(&self, name: &str) -> PodStatus {
        let path = format!("/verify?pod=default/{name}");
        let (status, body) = self.request("POST", "127.0.0.1:15014", &path).unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e} in {body}"))
    }

    /// A file in the node's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The socket to which plugins connect.
    pub fn agent_socket(&self) -> PathBuf {
        self.file("agent.sock")
    }

    /// The socket to which proxies connect.
    pub fn zds_socket(&self) -> PathBuf {
        self.file("zds.sock")
    }

    /// The log of the `agent` or `proxy`.
    pub fn log(&self, of: &str) -> String {
        fs::read_to_string(self.file(&format!("{of}.log"))).unwrap_or_default()
    }

    /// Whether an ADD with this error failed for the reason of this code. On a busy machine the
    /// plugin's deadline may pass before the agent's error arrives; then the agent has logged it.
    pub fn failed_by(&self, error: &str, code: &str) -> bool {
        let logged = || self.log("agent").contains(code).then_some(());
        error.contains(code) || error.contains("UP-CNI-008") && eventually(logged).is_some()
    }

    /// Sends a GET request in the node's namespace; returns the status and the body.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn get(&self, address: &str, path: &str) -> std::io::Result<(u16, String)> {
        self.request("GET", address, path)
    }

    /// Sends a request without a body; returns the status and the body.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn request(
        &self,
        method: &str,
        address: &str,
        path: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut stream = self.netns.run(|| TcpStream::connect(address)).unwrap()?;
        // One write: the server limits the time for a request, and this process may be stopped.
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Ok((
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        ))
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            eprintln!(
                "-- agent\n{}\n-- proxy\n{}",
                self.log("agent"),
                self.log("proxy")
            );
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A command that runs a built program under strace. The program is the direct child and strace its
/// descendant, so that both exit when the program is killed.
pub fn traced(log: &Path, program: &str) -> Command {
    let mut command = Command::new("strace");
    command
        .args([
            "-D",
            "-f",
            "-qq",
            "-s",
            "4096",
            "-e",
            "trace=execve,execveat",
            "-o",
        ])
        .arg(log)
        .arg(binary(program));
    command
}

/// The number of files that a process has open, and of the network namespaces and sockets among
/// them. The process's own namespace is not counted: each thread keeps it open after entering
/// another one.
pub fn open_files(pid: u32) -> (usize, usize, usize) {
    let process = Path::new("/proc").join(pid.to_string());
    let own = fs::read_link(process.join("ns/net"))
        .unwrap()
        .display()
        .to_string();
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

/// Whether no more files are open than before. Fewer may be, if a probe was in progress before.
pub fn no_more_open(now: (usize, usize, usize), before: (usize, usize, usize)) -> bool {
    now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2
}

/// The open files of a process, once their number no longer changes.
pub fn stable_open_files(pid: u32) -> (usize, usize, usize) {
    let mut last = (0, 0, 0);
    until("the open files no longer change", || {
        let now = open_files(pid);
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}
