//! The sandbox of a campaign: two nodes, eight pods that stay in the mesh, two of a namespace that
//! joins and leaves, and two outside.

#![allow(clippy::disallowed_types)] // runs nft and ip, like an application in a pod

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use agent_status::NodeStatus;
use netns::NetNs;
use serde_json::Value;

use crate::cni::{Call, config};
use crate::machine::has_exited;
use crate::sandbox::{Sandbox, until};

/// Number of pods.
pub const PODS: usize = 12;
/// The pods of namespace `steady`, which belongs to the mesh throughout.
pub const STEADY: std::ops::Range<usize> = 0..8;
/// The pods of namespace `flipped`, which joins and leaves.
pub const FLIPPED: std::ops::Range<usize> = 8..10;
/// The pods of namespace `outside`.
pub const OUTSIDE: std::ops::Range<usize> = 10..12;
/// The names of the nodes. Pods with an even index run on the first one.
pub const NODES: [&str; 2] = ["node-1", "node-2"];
/// The plugin's deadline. A runtime calls it again.
const ADD_DEADLINE_MS: u64 = 3000;
/// The port on which every pod serves.
pub const PORT: u16 = 8080;

/// A program on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The node agent.
    Agent,
    /// The node proxy.
    Proxy,
}

/// Open files and threads of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

/// A running sandbox and its pods.
#[derive(Debug)]
pub struct Scene {
    sandbox: Sandbox,
    pods: Vec<NetNs>,
    nodes: [NetNs; 2],
    is_nat: bool,
    state: Mutex<State>,
}

/// What the adversary did last.
#[derive(Debug, Default)]
struct State {
    /// How often each pod was created.
    generations: [usize; PODS],
    deleted: BTreeSet<usize>,
    is_flipped_out: bool,
}

/// The name of a pod.
pub fn name(pod: usize) -> String {
    format!("pod-{pod}")
}

/// The namespace of a pod.
pub fn namespace(pod: usize) -> &'static str {
    match pod {
        _ if STEADY.contains(&pod) => "steady",
        _ if FLIPPED.contains(&pod) => "flipped",
        _ => "outside",
    }
}

/// The node of a pod, as an index of [`NODES`].
pub fn node(pod: usize) -> usize {
    pod % 2
}

/// The addresses of a pod, IPv4 first.
pub fn addresses(pod: usize) -> [IpAddr; 2] {
    let (subnet, host) = (node(pod) as u8 + 1, pod as u8 + 10);
    [
        Ipv4Addr::new(10, 77, subnet, host).into(),
        Ipv6Addr::new(0xfd77, u16::from(subnet), 0, 0, 0, 0, 0, u16::from(host)).into(),
    ]
}

/// The mesh. Every pod of the mesh accepts only clients with an identity.
fn mesh(is_flipped_in: bool) -> String {
    let mode = if is_flipped_in { "ambient" } else { "none" };
    let mut text = format!(
        "namespaces:
  - {{ name: steady, labels: {{ istio.io/dataplane-mode: ambient }} }}
  - {{ name: flipped, labels: {{ istio.io/dataplane-mode: {mode} }} }}
  - {{ name: outside }}
workloads:
"
    );
    for pod in 0..PODS {
        let (name, namespace, node, [v4, v6]) =
            (name(pod), namespace(pod), NODES[node(pod)], addresses(pod));
        text += &format!(
            "  - {{ name: {name}, namespace: {namespace}, serviceAccount: {name}, node: {node}, \
             workloadIps: [{v4}, \"{v6}\"] }}\n"
        );
    }
    text += "policies:\n";
    for namespace in ["steady", "flipped"] {
        text += &format!(
            "  - {{ name: strict, namespace: {namespace}, scope: Namespace, action: Deny, rules: \
             [[[{{ notPrincipals: [Presence] }}]]] }}\n"
        );
    }
    text
}

impl Scene {
    /// Starts the sandbox and waits until every pod of the mesh is verified.
    pub fn up(capture: &str) -> Self {
        let sandbox = Sandbox::up_in(
            &format!("campaign-{capture}"),
            &mesh(true),
            &[
                ("UNDERPASS_CAPTURE", capture),
                // So that tunnels that nobody uses are no leak.
                ("POOL_UNUSED_RELEASE_TIMEOUT", "5s"),
            ],
        );
        let open = |node: &str| NetNs::open(sandbox.node(node)["netns"].as_str().unwrap()).unwrap();
        let scene = Self {
            pods: (0..PODS).map(|pod| sandbox.pod(&name(pod))).collect(),
            nodes: NODES.map(open),
            is_nat: capture == "nat",
            state: Mutex::default(),
            sandbox,
        };
        until("all pods of the mesh are verified", || {
            scene.unsettled().is_empty().then_some(())
        });
        scene
    }

    /// The network namespace of a pod.
    pub fn pod(&self, pod: usize) -> &NetNs {
        &self.pods[pod]
    }

    /// The network namespace of a node.
    pub fn node(&self, node: usize) -> &NetNs {
        &self.nodes[node]
    }

    /// The network namespace that connects the nodes.
    pub fn fabric(&self) -> NetNs {
        NetNs::open(self.sandbox.report["fabric"].as_str().unwrap()).unwrap()
    }

    /// The status of a node; `None` if its agent does not answer.
    pub fn status(&self, node: usize) -> Option<NodeStatus> {
        let connected = self.nodes[node].run(|| {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15014));
            TcpStream::connect_timeout(&to, Duration::from_secs(2))
        });
        let mut stream = connected.ok()?.ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        let request = b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The pods of the mesh that are not verified, with the reason.
    pub fn unsettled(&self) -> Vec<String> {
        let statuses = [self.status(0), self.status(1)];
        (0..OUTSIDE.start)
            .filter_map(|pod| {
                let Some(status) = &statuses[node(pod)] else {
                    return Some(format!("{}: no answer of the agent", name(pod)));
                };
                let found = status.pods.iter().find(|p| p.name == name(pod))?;
                let verification = found.verification.as_ref();
                let is_verified = verification.is_some_and(|v| v.state.as_str() == "verified");
                (!is_verified).then(|| {
                    let why = verification.and_then(|v| v.reason.as_deref());
                    format!(
                        "{}: {} {}",
                        name(pod),
                        found.reason,
                        why.unwrap_or_default()
                    )
                })
            })
            .collect()
    }

    /// Runs `nft` or `ip` in a pod, for `ip` once for each part between `;`; whether all succeeded.
    pub fn run_in_pod(&self, pod: usize, program: &str, arguments: &str) -> bool {
        let calls: Vec<Vec<&str>> = if program == "nft" {
            vec![vec![arguments]] // one argument: `;` belongs to its language
        } else {
            let calls = arguments.split(';');
            calls
                .map(|call| call.split_whitespace().collect())
                .collect()
        };
        let succeeds = |arguments: &Vec<&str>| {
            let mut command = Command::new(program);
            command.args(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            netns::process::in_netns(&mut command, self.pod(pod)).unwrap();
            command.status().is_ok_and(|s| s.success())
        };
        calls.iter().all(succeeds)
    }

    /// Replaces a sysctl of a pod's namespace; returns its previous value.
    pub fn set_sysctl(&self, pod: usize, path: &str, value: &str) -> Option<String> {
        let path = format!("/proc/sys/{path}");
        let set = self.pod(pod).run(|| {
            let before = fs::read_to_string(&path)?;
            fs::write(&path, value).map(|()| before)
        });
        set.ok()?.ok().map(|before| before.trim().to_owned())
    }

    /// Whether the capture is `nat`.
    pub fn is_nat(&self) -> bool {
        self.is_nat
    }

    /// Whether namespace `flipped` belongs to the mesh.
    pub fn is_flipped_in(&self) -> bool {
        !self.state.lock().unwrap().is_flipped_out
    }

    /// Whether a pod was deleted and not created again yet.
    pub fn is_deleted(&self, pod: usize) -> bool {
        self.state.lock().unwrap().deleted.contains(&pod)
    }

    /// Labels namespace `flipped`, or removes the label.
    pub fn flip(&self, is_in: bool) {
        self.state.lock().unwrap().is_flipped_out = !is_in;
        self.sandbox.set_mesh(&mesh(is_in));
    }

    /// Kills a program of a node.
    pub fn kill(&self, node: usize, program: Program) {
        let pid = self.pid(node, program);
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
        // A program that is still exiting is not restarted.
        until("the program has exited", || has_exited(pid).then_some(()));
    }

    /// Starts the programs again that have exited.
    pub fn restart(&self) {
        self.sandbox.command(&["repair"]);
    }

    /// Ends a pod: the runtime calls DEL.
    pub fn delete(&self, pod: usize) {
        self.state.lock().unwrap().deleted.insert(pod);
        let _ = self.call("DEL", pod).run();
    }

    /// Starts a pod again in its namespace, as a new one.
    ///
    /// # Errors
    /// What the plugin wrote, if its ADD failed.
    pub fn create(&self, pod: usize) -> Result<(), String> {
        self.state.lock().unwrap().generations[pod] += 1;
        let output = self.call("ADD", pod).run();
        if !output.status.success() {
            self.delete(pod); // as a runtime does
            return Err(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        self.state.lock().unwrap().deleted.remove(&pod);
        Ok(())
    }

    /// Starts an ADD of a pod and kills the plugin after this time; then calls DEL.
    pub fn create_and_kill_the_plugin(&self, pod: usize, after: Duration) {
        self.state.lock().unwrap().generations[pod] += 1;
        let mut plugin = self.call("ADD", pod).start();
        std::thread::sleep(after);
        let _ = plugin.kill();
        let _ = plugin.wait();
        self.delete(pod);
    }

    fn call(&self, verb: &str, pod: usize) -> Call {
        let report = self.sandbox.node(NODES[node(pod)]);
        let socket = PathBuf::from(report["agent_socket"].as_str().unwrap());
        let [v4, v6] = addresses(pod);
        let (name, namespace) = (name(pod), namespace(pod));
        let config = config(&socket, &[&format!("{v4}/32"), &format!("{v6}/128")]);
        let generation = self.state.lock().unwrap().generations[pod];
        let path = self.path(pod);
        let call = Call::new(verb, &path, &config).with_deadline(ADD_DEADLINE_MS);
        // The first attachment was the sandbox's.
        let id = match generation {
            0 => Self::first_attachment(pod),
            n => format!("campaign-{pod}-{n}"),
        };
        call.with("CNI_CONTAINERID", Some(&id)).with(
            "CNI_ARGS",
            Some(&format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
            )),
        )
    }

    fn path(&self, pod: usize) -> String {
        let pods = self.sandbox.report["pods"].as_array().unwrap();
        let pod = pods.iter().find(|p| p["name"] == name(pod)).unwrap();
        pod["netns"].as_str().unwrap().to_owned()
    }

    /// The container id under which the sandbox enrolled a pod.
    fn first_attachment(pod: usize) -> String {
        let name = format!("{}/{}", namespace(pod), name(pod));
        let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        format!("{hex:0<64}").chars().take(64).collect()
    }

    /// The resources of agents and proxies, by node.
    pub fn resources(&self) -> Vec<(String, Resources)> {
        let mut found = Vec::new();
        for (index, node) in NODES.iter().enumerate() {
            for (program, of) in [(Program::Agent, "agent"), (Program::Proxy, "proxy")] {
                let pid = self.pid(index, program);
                let count = |what: &str| {
                    fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count)
                };
                let resources = Resources {
                    files: count("fd"),
                    threads: count("task"),
                };
                found.push((format!("{of} of {node}"), resources));
            }
        }
        found
    }

    fn pid(&self, node: usize, program: Program) -> u32 {
        let report: Value = self.sandbox.node(NODES[node]);
        let key = match program {
            Program::Agent => "agent_pid",
            Program::Proxy => "proxy_pid",
        };
        u32::try_from(report[key].as_u64().unwrap()).unwrap()
    }

    /// Number of repairs that the agents have logged.
    pub fn repairs(&self) -> usize {
        NODES
            .iter()
            .map(|node| {
                let log = self.sandbox.log(node, "agent");
                log.matches("event=\"redirection_repaired\"").count()
            })
            .sum()
    }
}
