//! Whether pods can join here: the plugin is called, a proxy takes them, and who they are is known.

use crate::agent::Agent;

/// What is missing; none when the agent is ready.
pub(crate) fn unready(agent: &Agent) -> Option<String> {
    if let Some(why) = agent.install.missing() {
        return Some(why);
    }
    if agent.facts.cluster().is_some_and(|c| !c.is_synced()) {
        return Some("the API server has not told all pods and namespaces yet".to_owned());
    }
    if !agent.proxies.any_synced() {
        return Some("no proxy has taken the snapshot".to_owned());
    }
    None
}
