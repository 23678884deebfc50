//! A sandbox of two nodes whose pods have numbers, run for a long time: its pods are deleted and
//! created again as by a runtime, and its programs are measured.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use agent_status::NodeStatus;
use netns::NetNs;

use crate::cni::{Call, config};
use crate::measure::anonymous;
use crate::sandbox::Sandbox;

/// The names of the nodes. Pods with an even number run on the first one.
pub const NODES: [&str; 2] = ["node-1", "node-2"];

/// A program on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The node agent.
    Agent,
    /// The node proxy.
    Proxy,
}

impl Program {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Agent, Self::Proxy];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Proxy => "proxy",
        }
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory that is not of files, such as the program itself, in KiB.
    pub memory_kib: usize,
}

/// A running sandbox and its pods.
#[derive(Debug)]
pub struct TwoNodes {
    /// The sandbox.
    pub sandbox: Sandbox,
    pods: Vec<NetNs>,
    nodes: [NetNs; 2],
    deadline_ms: u64,
    /// How often each pod was created again.
    generations: Mutex<Vec<usize>>,
}

/// The name of a pod.
pub fn name(pod: usize) -> String {
    format!("pod-{pod}")
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

/// A pod in the mesh file, with more fields such as `, protocol: HBONE`.
pub fn workload(pod: usize, namespace: &str, service_account: &str, more: &str) -> String {
    let (name, node, [v4, v6]) = (name(pod), NODES[node(pod)], addresses(pod));
    format!(
        "  - {{ name: {name}, namespace: {namespace}, serviceAccount: {service_account}, node: \
         {node}, workloadIps: [{v4}, \"{v6}\"]{more} }}\n"
    )
}

impl TwoNodes {
    /// Starts a sandbox whose mesh has the pods 0 to `pods` - 1, made by [`workload`]. The plugin
    /// gets `deadline_ms` for each call; then a runtime calls it again.
    pub fn up(
        name_of_folder: &str,
        pods: usize,
        mesh: &str,
        environment: &[(&str, &str)],
        deadline_ms: u64,
    ) -> Self {
        let sandbox = Sandbox::up_in(name_of_folder, mesh, environment);
        let open = |node: &str| NetNs::open(sandbox.node(node)["netns"].as_str().unwrap()).unwrap();
        Self {
            pods: (0..pods).map(|pod| sandbox.pod(&name(pod))).collect(),
            nodes: NODES.map(open),
            deadline_ms,
            generations: Mutex::new(vec![0; pods]),
            sandbox,
        }
    }

    /// The network namespace of a pod.
    pub fn pod(&self, pod: usize) -> &NetNs {
        &self.pods[pod]
    }

    /// The network namespace of a node.
    pub fn node(&self, node: usize) -> &NetNs {
        &self.nodes[node]
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

    /// Which of these pods are not verified, with the reason. Deleted pods are not counted.
    pub fn unverified(&self, pods: impl Iterator<Item = usize>) -> Vec<String> {
        let statuses = [self.status(0), self.status(1)];
        pods.filter_map(|pod| {
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

    /// Ends a pod: the runtime calls DEL.
    pub fn delete(&self, pod: usize) {
        let _ = self.call("DEL", pod).run();
    }

    /// Starts a pod again in its namespace, as a new one.
    ///
    /// # Errors
    /// What the plugin wrote, if its ADD failed; then DEL was called as well.
    pub fn create(&self, pod: usize) -> Result<(), String> {
        self.generations.lock().unwrap()[pod] += 1;
        let output = self.call("ADD", pod).run();
        if !output.status.success() {
            self.delete(pod); // as a runtime does
            return Err(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Ok(())
    }

    /// Starts an ADD of a pod, as a new one.
    pub fn start_creating(&self, pod: usize) -> Child {
        self.generations.lock().unwrap()[pod] += 1;
        self.call("ADD", pod).start()
    }

    fn call(&self, verb: &str, pod: usize) -> Call {
        let report = self.sandbox.node(NODES[node(pod)]);
        let socket = PathBuf::from(report["agent_socket"].as_str().unwrap());
        let [v4, v6] = addresses(pod);
        let config = config(&socket, &[&format!("{v4}/32"), &format!("{v6}/128")]);
        let pods = self.sandbox.report["pods"].as_array().unwrap();
        let found = pods.iter().find(|p| p["name"] == name(pod)).unwrap();
        let text = |field: &str| found[field].as_str().unwrap();
        let call = Call::new(verb, text("netns"), &config).with_deadline(self.deadline_ms);
        // The first attachment was the sandbox's.
        let id = match self.generations.lock().unwrap()[pod] {
            0 => first_attachment(text("namespace"), pod),
            n => format!("again-{pod}-{n}"),
        };
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}",
            text("namespace"),
            name(pod)
        );
        call.with("CNI_CONTAINERID", Some(&id))
            .with("CNI_ARGS", Some(&arguments))
    }

    /// The process id of a program of a node.
    pub fn pid(&self, node: usize, program: Program) -> u32 {
        let report = self.sandbox.node(NODES[node]);
        let pid = &report[format!("{}_pid", program.name())];
        u32::try_from(pid.as_u64().unwrap()).unwrap()
    }

    /// What a program uses; zeros if it has exited.
    pub fn resources(&self, node: usize, program: Program) -> Resources {
        let pid = self.pid(node, program);
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let count = |of: &str| fs::read_dir(folder.join(of)).map_or(0, Iterator::count);
        Resources {
            files: count("fd"),
            threads: count("task"),
            memory_kib: anonymous(pid),
        }
    }

    /// The programs of both nodes, with their names in reports.
    pub fn programs() -> impl Iterator<Item = (usize, Program, String)> {
        (0..NODES.len()).flat_map(|node| {
            Program::ALL.map(|program| {
                let name = format!("{} of {}", program.name(), NODES[node]);
                (node, program, name)
            })
        })
    }
}

/// The container id under which the sandbox enrolled a pod.
fn first_attachment(namespace: &str, pod: usize) -> String {
    let name = format!("{namespace}/{}", name(pod));
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{hex:0<64}").chars().take(64).collect()
}
