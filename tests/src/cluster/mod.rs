//! A cluster with a real control plane: the Kubernetes API and istiod, in their own network
//! namespaces. Nodes and pods are objects to which a test adds network namespaces and proxies.

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
pub use api::{Api, ApiError};
pub use fabric::{Fabric, Families};
pub use istiod::{Istiod, shake_hands};
pub use kubernetes::Kubernetes;
pub use mesh_node::MeshNode;
pub use objects::{ClusterNode, ClusterPod};
pub use pki::RootCa;
pub use roots::Roots;

/// The required programs.
const PARTS: [&str; 6] = [
    "bin/etcd",
    "bin/kube-apiserver",
    "bin/kube-controller-manager",
    "bin/pilot-discovery",
    "bin/istioctl",
    "bin/manifests",
];

/// What this machine lacks for a cluster.
pub fn missing() -> Option<String> {
    control_plane_files(PARTS).err()
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// istiod.
    pub istiod: Istiod,
    /// The Kubernetes API.
    pub kubernetes: Kubernetes,
}

/// The cluster that all tests of a process share. It starts on first use and ends with the process.
static SHARED: LazyLock<RwLock<Cluster>> =
    LazyLock::new(|| RwLock::new(Cluster::start(&folder::until_exit("cluster"))));

impl Cluster {
    /// Starts a cluster in a folder and waits until it is ready, which takes about ten seconds.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// Starts a cluster with additional API server flags.
    pub fn start_with(folder: &Path, flags: &[&str]) -> Self {
        let kubernetes = Kubernetes::start(folder, flags);
        let istiod = Istiod::install(&kubernetes);
        Self { istiod, kubernetes }
    }

    /// The shared cluster, for tests that do not change istiod. Each uses its own nodes and
    /// Kubernetes namespaces.
    pub fn shared() -> RwLockReadGuard<'static, Self> {
        SHARED.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared cluster, locked for a test that stops istiod or changes its root.
    pub fn exclusive() -> RwLockWriteGuard<'static, Self> {
        SHARED.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts istiod again after [`Istiod::stop`] and waits until it is ready.
    pub fn start_istiod(&mut self) {
        self.istiod.start(&self.kubernetes);
    }

    /// A page below istiod's `/debug`; `null` when istiod does not answer.
    pub fn debug(&self, page: &str) -> Value {
        self.istiod.debug(&self.kubernetes, page)
    }
}

/// The roots that istiod has written into a Kubernetes namespace, if any.
pub fn root(cluster: &Cluster, namespace: &str) -> Option<String> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert");
    Some(
        cluster.kubernetes.api.get(&path).ok()?["data"]["root-cert.pem"]
            .as_str()?
            .to_owned(),
    )
}

/// The path of `istioctl`.
pub fn istioctl() -> PathBuf {
    binary("istioctl")
}

/// The path of a control plane program.
pub fn binary(name: &str) -> PathBuf {
    control_plane().join("bin").join(name)
}
