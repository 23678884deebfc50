//! A cluster whose control plane is real: the Kubernetes API and istiod, in namespaces of the test's own. Nodes and pods are
//! objects, and a test gives them network namespaces and proxies.

mod agent_node;
mod api;
pub mod daemon;
pub mod fabric;
mod http;
pub mod istiod;
mod kubernetes;
mod mesh_node;
mod objects;
mod pki;
mod roots;

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::binaries::{control_plane, control_plane_files};
use crate::folder;

pub use agent_node::{AgentNode, container_of};
pub use api::{Api, Refused};
pub use fabric::{Fabric, Families};
pub use istiod::{Istiod, shake_hands};
pub use kubernetes::Kubernetes;
pub use mesh_node::MeshNode;
pub use objects::{Node, Pod};
pub use pki::Authority;
pub use roots::Roots;

/// What it consists of.
const PARTS: [&str; 6] = [
    "bin/etcd",
    "bin/kube-apiserver",
    "bin/kube-controller-manager",
    "bin/pilot-discovery",
    "bin/istioctl",
    "bin/manifests",
];

/// What is missing for one on this machine.
pub fn missing() -> Option<String> {
    control_plane_files(PARTS).err()
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// istiod.
    pub istiod: Istiod,
    /// What istiod configures.
    pub kubernetes: Kubernetes,
}

/// The cluster that all tests of a process share. It starts when the first one asks, and ends with the process.
static SHARED: LazyLock<RwLock<Cluster>> =
    LazyLock::new(|| RwLock::new(Cluster::start(&folder::until_exit("cluster"))));

impl Cluster {
    /// Starts one in a folder, and waits until it is ready: about ten seconds.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// The same with more flags of the API server.
    pub fn start_with(folder: &Path, flags: &[&str]) -> Self {
        let kubernetes = Kubernetes::start(folder, flags);
        let istiod = Istiod::install(&kubernetes);
        Self { istiod, kubernetes }
    }

    /// The shared one, for tests that leave istiod as it is. Each has nodes and Kubernetes namespaces of its own.
    pub fn shared() -> RwLockReadGuard<'static, Self> {
        SHARED.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared one, for a test that stops istiod or changes its root: no other test has it meanwhile.
    pub fn alone() -> RwLockWriteGuard<'static, Self> {
        SHARED.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts istiod again, after [`Istiod::stop`], and waits until it is ready.
    pub fn start_istiod(&mut self) {
        self.istiod.start(&self.kubernetes);
    }

    /// What istiod tells under this path of its `debug` page; `null` when it cannot be asked.
    pub fn debug(&self, page: &str) -> Value {
        self.istiod.debug(&self.kubernetes, page)
    }
}

/// The roots that istiod has put into a Kubernetes namespace, if it has.
pub fn root(cluster: &Cluster, namespace: &str) -> Option<String> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert");
    Some(cluster.kubernetes.api.get(&path).ok()?["data"]["root-cert.pem"].as_str()?.to_owned())
}

/// The path of Istio's command.
pub fn istioctl() -> PathBuf {
    binary("istioctl")
}

/// The path of a part.
pub fn binary(name: &str) -> PathBuf {
    control_plane().join("bin").join(name)
}
