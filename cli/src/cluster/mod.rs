//! A whole cluster, as somebody sees it who has a kubeconfig and nothing else: the API server is asked, and through it the
//! agents and the proxies.

mod api;
mod objects;
mod seen;
mod status;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use api::{Api, Right};
pub(crate) use objects::{DaemonSet, Istiod, Running};
pub(crate) use seen::{NodeSeen, Seen, look};
pub(crate) use status::status;

/// The label by which the agents are found.
pub(crate) const AGENTS: &str = "k8s-app=underpass-cni-node";
/// The label by which the proxies are found.
pub(crate) const PROXIES: &str = "app=ztunnel";

/// Which cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Target {
    /// The kubeconfig; without it KUBECONFIG, or the one in the home folder.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of it, other than the current one.
    #[arg(long)]
    pub(crate) context: Option<String>,
}

impl Target {
    /// Whether a cluster was named.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Whether a cluster was named, or there is a kubeconfig where one is looked for.
    pub(crate) fn is_there(&self) -> bool {
        let of_home = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
        self.is_named() || std::env::var_os("KUBECONFIG").is_some() || of_home()
    }
}

/// Looks again until something is as it should be, or time is up.
pub(crate) fn until<T>(
    wait: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
    good: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let end = std::time::Instant::now() + wait;
    loop {
        let seen = look();
        if seen.as_ref().is_ok_and(&good) || std::time::Instant::now() >= end {
            return seen;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
