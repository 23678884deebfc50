//! The sandbox of a campaign: two nodes, eight pods that stay in the mesh, two of a namespace that
//! joins and leaves, and two outside.

#![allow(clippy::disallowed_types)] // runs nft and ip, like an application in a pod

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use agent_status::NodeStatus;
use netns::NetNs;

use crate::machine::has_exited;
use crate::sandbox::until;
pub use crate::two_nodes::{NODES, Program, addresses, name, node};
use crate::two_nodes::{Resources, TwoNodes, workload};

/// Number of pods.
pub const PODS: usize = 12;
/// The pods of namespace `steady`, which belongs to the mesh throughout.
pub const STEADY: std::ops::Range<usize> = 0..8;
/// The pods of namespace `flipped`, which joins and leaves.
pub const FLIPPED: std::ops::Range<usize> = 8..10;
/// The pods of namespace `outside`.
pub const OUTSIDE: std::ops::Range<usize> = 10..12;
/// The plugin's deadline. A runtime calls it again.
const ADD_DEADLINE_MS: u64 = 3000;
/// The port on which every pod serves.
pub const PORT: u16 = 8080;

/// A running sandbox and its pods.
#[derive(Debug)]
pub struct Scene {
    nodes: TwoNodes,
    is_nat: bool,
    state: Mutex<State>,
}

/// What the adversary did last.
#[derive(Debug, Default)]
struct State {
    deleted: BTreeSet<usize>,
    is_flipped_out: bool,
}

/// The namespace of a pod.
pub fn namespace(pod: usize) -> &'static str {
    match pod {
        _ if STEADY.contains(&pod) => "steady",
        _ if FLIPPED.contains(&pod) => "flipped",
        _ => "outside",
    }
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
        text += &workload(pod, namespace(pod), &name(pod), "");
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
        let environment = [
            ("UNDERPASS_CAPTURE", capture),
            // So that unused tunnels do not count as a leak.
            ("POOL_UNUSED_RELEASE_TIMEOUT", "5s"),
        ];
        let name = format!("campaign-{capture}");
        let scene = Self {
            nodes: TwoNodes::up(&name, PODS, &mesh(true), &environment, ADD_DEADLINE_MS),
            is_nat: capture == "nat",
            state: Mutex::default(),
        };
        until("all pods of the mesh are verified", || {
            scene.unsettled().is_empty().then_some(())
        });
        scene
    }

    /// The network namespace of a pod.
    pub fn pod(&self, pod: usize) -> &NetNs {
        self.nodes.pod(pod)
    }

    /// The network namespace of a node.
    pub fn node(&self, node: usize) -> &NetNs {
        self.nodes.node(node)
    }

    /// The network namespace that connects the nodes.
    pub fn fabric(&self) -> NetNs {
        NetNs::open(self.nodes.sandbox.report["fabric"].as_str().unwrap()).unwrap()
    }

    /// The status of a node; `None` if its agent does not answer.
    pub fn status(&self, node: usize) -> Option<NodeStatus> {
        self.nodes.status(node)
    }

    /// The pods of the mesh that are not verified, with the reason.
    pub fn unsettled(&self) -> Vec<String> {
        self.nodes.unverified(0..OUTSIDE.start)
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
        self.nodes.sandbox.set_mesh(&mesh(is_in));
    }

    /// Kills a program of a node.
    pub fn kill(&self, node: usize, program: Program) {
        let pid = self.nodes.pid(node, program);
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
        // A program that is still exiting is not restarted.
        until("the program has exited", || has_exited(pid).then_some(()));
    }

    /// Starts the programs again that have exited.
    pub fn restart(&self) {
        self.nodes.sandbox.command(&["repair"]);
    }

    /// Ends a pod: the runtime calls DEL.
    pub fn delete(&self, pod: usize) {
        self.state.lock().unwrap().deleted.insert(pod);
        self.nodes.delete(pod);
    }

    /// Starts a pod again in its namespace, as a new one.
    ///
    /// # Errors
    /// What the plugin wrote, if its ADD failed.
    pub fn create(&self, pod: usize) -> Result<(), String> {
        self.nodes.create(pod)?;
        self.state.lock().unwrap().deleted.remove(&pod);
        Ok(())
    }

    /// Starts an ADD of a pod and kills the plugin after this time; then calls DEL.
    pub fn create_and_kill_the_plugin(&self, pod: usize, after: Duration) {
        let mut plugin = self.nodes.start_creating(pod);
        std::thread::sleep(after);
        let _ = plugin.kill();
        let _ = plugin.wait();
        self.delete(pod);
    }

    /// The resources of agents and proxies, by node.
    pub fn resources(&self) -> Vec<(String, Resources)> {
        TwoNodes::programs()
            .map(|(node, program, name)| (name, self.nodes.resources(node, program)))
            .collect()
    }

    /// Number of repairs that the agents have logged.
    pub fn repairs(&self) -> usize {
        NODES
            .iter()
            .map(|node| {
                let log = self.nodes.sandbox.log(node, "agent");
                log.matches("event=\"redirection_repaired\"").count()
            })
            .sum()
    }
}
