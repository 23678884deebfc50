//! A complete cluster: a real control plane, and nodes with real kubelets and containerds, in their
//! own namespaces.

#![allow(clippy::disallowed_types)] // kubectl, istioctl and helm are programs

pub mod app;
pub mod app_connection;
mod configuration;
pub mod demo;
mod dns;
pub mod gateways;
pub mod http;
pub mod images;
mod istio;
mod leftovers;
mod node;
pub mod request_loop;
pub mod underpass;
mod variant;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use serde_json::Value;

use crate::binaries::{control_plane, control_plane_files, runtime_files};
use crate::cluster::daemon::Daemon;
use crate::cluster::{Families, Kubernetes, Roots};
use crate::folder;

pub use crate::sandbox::{await_within, until};
pub use istio::{await_istiod, publish_roots};
pub use node::{KubeNode, printed};
use variant::KubeProxyMode;

/// The number of nodes.
const NODES: u8 = 2;

const PARTS: [&str; 18] = [
    "bin/etcd",
    "bin/kube-apiserver",
    "bin/kube-controller-manager",
    "bin/kube-scheduler",
    "bin/kubelet",
    "bin/kube-proxy",
    "bin/kubectl",
    "bin/containerd",
    "bin/containerd-shim-runc-v2",
    "bin/ctr",
    "bin/bridge",
    "bin/host-local",
    "bin/portmap",
    "bin/coredns",
    "bin/helm",
    "bin/pilot-discovery",
    "bin/istioctl",
    "bin/manifests",
];

/// What this machine lacks for a cluster.
pub fn missing() -> Option<String> {
    control_plane_files(PARTS)
        .and(runtime_files(["bin/runc"]))
        .err()
        .or_else(|| KubeProxyMode::chosen().missing())
}

/// The name of a node.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// A running cluster. It ends with this value, or with the process.
#[derive(Debug)]
pub struct Kube {
    /// The nodes.
    pub nodes: Vec<KubeNode>,
    /// The API.
    pub kubernetes: Kubernetes,
    /// Istio's certificate authority.
    pub roots: Roots,
    /// The kubeconfig of a client with all rights.
    pub kubeconfig: String,
    _dns: Daemon,
}

static SHARED: LazyLock<RwLock<Kube>> = LazyLock::new(|| {
    RwLock::new(Kube::start(
        &folder::until_exit("kube"),
        Families::Dual,
        &mut |_| (),
    ))
});

impl Kube {
    /// Starts a cluster in a folder and waits until its nodes and istiod are ready. `progress` is
    /// called after each part.
    pub fn start(folder: &Path, families: Families, progress: &mut dyn FnMut(&str)) -> Self {
        let started = Instant::now();
        let mut report = |part: &str| {
            progress(&format!(
                "{:5.1} s  {part}",
                started.elapsed().as_secs_f64()
            ))
        };
        let mut images = images::app(folder);
        images.push(images::istiod(folder));
        report("images");
        let kubernetes = Kubernetes::start_for_nodes(folder, families);
        report("API server");
        let nodes: Vec<_> = std::thread::scope(|scope| {
            let start = |number| {
                let (kubernetes, images) = (&kubernetes, &images);
                let netns = kubernetes.fabric.host(number);
                scope.spawn(move || {
                    let node = KubeNode::start(kubernetes, number, netns);
                    images.iter().for_each(|image| node.import(image));
                    node
                })
            };
            let starting: Vec<_> = (1..=NODES).map(start).collect();
            starting.into_iter().map(|s| s.join().unwrap()).collect()
        });
        report("nodes, with their images");
        let dns = dns::start(&kubernetes);
        let kubeconfig = kubernetes.kubeconfig("admin", "admin");
        let roots = Roots::create(&folder.join("istio-roots"));
        let kube = Self {
            nodes,
            kubernetes,
            roots,
            kubeconfig,
            _dns: dns,
        };
        kube.await_nodes();
        report("both nodes ready");
        istio::install(&kube);
        report("istiod ready");
        kube
    }

    /// The shared cluster, for tests that do not stop or change its parts.
    pub fn shared() -> RwLockReadGuard<'static, Self> {
        SHARED.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared cluster, locked for a test that stops or changes its parts.
    pub fn exclusive() -> RwLockWriteGuard<'static, Self> {
        SHARED.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared cluster with Underpass installed.
    pub fn mesh() -> RwLockReadGuard<'static, Self> {
        let kube = Self::shared();
        kube.ensure_underpass();
        kube
    }

    /// The shared cluster with Underpass installed, locked for a test that stops or changes its
    /// parts.
    pub fn mesh_exclusive() -> RwLockWriteGuard<'static, Self> {
        let kube = Self::exclusive();
        kube.ensure_underpass();
        kube
    }

    /// Installs Underpass if another test has uninstalled it.
    fn ensure_underpass(&self) {
        static ONE_AT_A_TIME: Mutex<bool> = Mutex::new(false);
        let mut imported = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut imported, true) {
            self.import_underpass();
        }
        if !self.has_underpass() {
            self.install_underpass(&[]);
        }
        // The previous test may have stopped it.
        await_istiod(self);
    }

    /// A command of `kubectl`, `istioctl` or `helm`, with all rights, on the control plane's host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(control_plane().join("bin").join(program));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.kubernetes.folder());
        command.env("KUBECONFIG", &self.kubeconfig);
        netns::process::in_netns(&mut command, &self.kubernetes.netns).unwrap();
        command
    }

    /// Runs such a command and returns its output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        printed(&self.command(program).args(arguments).output().unwrap())
    }

    /// Runs `kubectl`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.run("kubectl", arguments)
    }

    /// Creates or updates objects, in YAML.
    ///
    /// # Panics
    /// When the server rejects them.
    #[track_caller]
    pub fn apply(&self, objects: &str) {
        let mut child = self.command("kubectl");
        child
            .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
            .stdin(std::process::Stdio::piped());
        child
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), objects.as_bytes()).unwrap();
        printed(&child.wait_with_output().unwrap());
    }

    /// An object of the API.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.kubernetes.api.get(path).ok()
    }

    /// Waits until all nodes are ready.
    pub fn await_nodes(&self) {
        until("all nodes are ready", || {
            let nodes = self.get("/api/v1/nodes")?;
            let ready = nodes["items"]
                .as_array()?
                .iter()
                .filter(|n| condition(n, "Ready"))
                .count();
            (ready == usize::from(NODES)).then_some(())
        });
    }

    /// Reboots a node: its disk is unchanged, and its network is new.
    pub fn reboot(&mut self, name: &str) {
        let node = self.nodes.iter_mut().find(|n| n.name == name).unwrap();
        node.power_off();
        node.rewire(&self.kubernetes.fabric);
        node.power_on();
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> &KubeNode {
        self.nodes.iter().find(|n| n.name == name).unwrap()
    }

    /// The folder of its files.
    pub fn folder(&self) -> PathBuf {
        self.kubernetes.folder().to_owned()
    }
}

/// Whether a condition of an object is true.
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
    })
}
