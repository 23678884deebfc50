//! The end of an agent: either another takes its place, as in an upgrade, or Underpass is being uninstalled. Only the second
//! takes the plugin off the node. While an agent is merely away, the plugin lets no pod start outside of the mesh.

use std::time::Duration;

use ::kubernetes::{Api, Client, DaemonSet, DeleteParams, status_of};
use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use super::announce;
use super::facts::Cluster;

/// How long the API server may take to tell which of the two it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether the agents have gone.
const AGAIN: Duration = Duration::from_millis(500);

/// Whether the DaemonSet of the agents is going or gone. What is not known, for the API server is away or does not say, is
/// no reason to leave the node without the plugin.
pub(crate) async fn is_due(cluster: &Cluster, daemon_set: &str) -> bool {
    let Some(namespace) = &cluster.own_namespace else { return false };
    let api: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), namespace);
    match timeout(PATIENCE, api.get(daemon_set)).await {
        Ok(Ok(set)) => set.metadata.deletion_timestamp.is_some(),
        Ok(Err(e)) if status_of(&e) == Some(404) => true,
        Ok(Err(e)) => unknown(daemon_set, &e),
        Err(_) => unknown(daemon_set, &"the API server is silent"),
    }
}

fn unknown(daemon_set: &str, why: &dyn std::fmt::Display) -> bool {
    tracing::warn!("the plugin stays on this node, for it is not known whether DaemonSet {daemon_set} is there: {why}");
    false
}

/// istiod and people are told that the pods of this node have left.
pub(crate) async fn tell(cluster: &Cluster) {
    announce::withdraw_all(cluster).await;
}

/// Deletes the DaemonSet of the agents, and waits until each has taken the plugin off its node.
///
/// # Errors
/// It cannot be deleted, or agents are still there when the time is up.
pub(crate) async fn order(client: Client, namespace: &str, daemon_set: &str, within: Duration) -> anyhow::Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    let ends = Instant::now() + within;
    // It stays until the last of its pods has gone.
    match api.delete(daemon_set, &DeleteParams::foreground()).await {
        Ok(_) => {}
        Err(e) if status_of(&e) == Some(404) => return gone(daemon_set),
        Err(e) => return Err(e).with_context(|| format!("DaemonSet {namespace}/{daemon_set} cannot be deleted")),
    }
    loop {
        let left = match api.get(daemon_set).await {
            Ok(set) => format!("on {} nodes", set.status.current_number_scheduled),
            Err(e) if status_of(&e) == Some(404) => return gone(daemon_set),
            Err(e) => format!("perhaps, for the API server says: {e}"),
        };
        anyhow::ensure!(
            Instant::now() < ends,
            "after {} s there are agents still, {left}. Next step: see which nodes do not answer (kubectl get nodes); \
             helm uninstall --no-hooks goes on without them, and `underpass-agent uninstall` does the rest on such a node",
            within.as_secs()
        );
        sleep(AGAIN).await;
    }
}

fn gone(daemon_set: &str) -> anyhow::Result<()> {
    println!("DaemonSet {daemon_set} is gone; its agents have taken the plugin off their nodes");
    Ok(())
}
