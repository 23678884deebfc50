//! Readiness: the plugin is installed and called, pod data is complete, and a proxy accepts pods.

use std::rc::Rc;

use agent_status::UnreadyReason;

use crate::install::Installation;
use crate::pod_source::PodSource;
use crate::proxies::Proxies;
use crate::runtime_calls::RuntimeCalls;

/// What readiness depends on.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    pub(crate) install: Installation,
    pub(crate) source: Rc<PodSource>,
    pub(crate) proxies: Rc<Proxies>,
    pub(crate) runtime_calls: Rc<RuntimeCalls>,
}

impl Readiness {
    /// Why the agent is not ready; `None` when it is.
    pub(crate) fn missing(&self) -> Option<(UnreadyReason, String)> {
        self.join_obstacle().or_else(|| {
            let why = self.runtime_calls.problem()?;
            Some((UnreadyReason::PluginNotCalled, why))
        })
    }

    /// Why pods cannot join with an ADD; `None` if they can.
    pub(crate) fn join_obstacle(&self) -> Option<(UnreadyReason, String)> {
        if let Some(why) = self.install.missing() {
            return Some((UnreadyReason::PluginMissing, why));
        }
        if self.source.cluster().is_some_and(|c| !c.is_synced()) {
            let why = "waiting for the initial list of pods and namespaces";
            return Some((UnreadyReason::ApiServerUnsynced, why.to_owned()));
        }
        if !self.proxies.any_synced() {
            let why = "no connected proxy has accepted all pods yet";
            return Some((UnreadyReason::ProxyUnsynced, why.to_owned()));
        }
        None
    }
}
