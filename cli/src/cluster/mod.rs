//! Access to a whole cluster with only a kubeconfig: agents and proxies are queried through the API
//! server.

mod api;
mod network_policy;
mod objects;
mod snapshot;
mod status;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use api::{Api, Permission};
pub(crate) use network_policy::{Direction, NetworkPolicy, PolicyPod, Rule};
pub(crate) use objects::{DaemonSet, Istiod, ReplicaStatus};
pub(crate) use snapshot::{ClusterSnapshot, NodeSnapshot, take_snapshot};
pub(crate) use status::status;

/// Label selector of the agents.
pub(crate) const AGENTS: &str = "k8s-app=underpass-cni-node";
/// Label selector of the proxies.
pub(crate) const PROXIES: &str = "app=ztunnel";

/// Options that select a cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Target {
    /// Kubeconfig file [default: $KUBECONFIG, or ~/.kube/config].
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Kubeconfig context [default: the current context].
    #[arg(long)]
    pub(crate) context: Option<String>,
}

impl Target {
    /// Whether the options name a cluster.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Whether the options name a cluster or a default kubeconfig exists.
    pub(crate) fn is_available(&self) -> bool {
        let in_home =
            || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
        self.is_named() || std::env::var_os("KUBECONFIG").is_some() || in_home()
    }
}

/// Repeats a query every second until the result is good or the timeout expires; returns the last
/// result.
pub(crate) fn retry_until<T>(
    timeout: Duration,
    mut query: impl FnMut() -> anyhow::Result<T>,
    is_good: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let result = query();
        if result.as_ref().is_ok_and(&is_good) || std::time::Instant::now() >= deadline {
            return result;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
