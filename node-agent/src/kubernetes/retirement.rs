//! Decides, when an agent stops, whether another one will follow on its node. Only if none will,
//! the plugin is removed; otherwise it prevents pods from starting outside the mesh until the next
//! agent runs.

use std::time::Duration;

use ::kubernetes::{Api, Client, DaemonSet, DeleteParams, Node, status_of};
use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::{Cluster, WatchedSet};
use super::{annotation, placement};

/// Time limit for the API server to report whether the DaemonSet is being deleted.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for removing the annotations of all pods.
const ANNOTATIONS_LIMIT: Duration = Duration::from_secs(8);
/// Interval at which `retire` polls the DaemonSet.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Why Underpass leaves this node: its DaemonSet is deleted, or no longer selects the node. `None`
/// if another agent may follow, or if that is unknown, so that the node keeps the plugin.
pub(crate) async fn is_due(cluster: &Cluster, daemon_set: &str) -> Option<String> {
    let namespace = cluster.own_namespace.as_ref()?;
    let api: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), namespace);
    let fetched = match timeout(API_TIMEOUT, api.get(daemon_set)).await {
        Ok(Ok(set)) => Ok(WatchedSet::Exists(Box::new(set))),
        Ok(Err(e)) if status_of(&e) == Some(404) => Ok(WatchedSet::Deleted),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the API server did not answer in time".to_owned()),
    };
    // The watch may have reported the end before the permission to read was revoked.
    let known = match &fetched {
        Ok(set) => set,
        Err(_) => &*cluster.daemon_set.borrow(),
    };
    let node = cluster.node_object.borrow();
    let due = reason(known, cluster.namespace_ends.get(), node.as_ref());
    if let (None, Err(why)) = (due, &fetched) {
        tracing::warn!(
            "keeping the plugin on this node: cannot check whether DaemonSet {daemon_set} exists: \
             {why}"
        );
    }
    due.map(str::to_owned)
}

/// Why no other agent will follow on this node; `None` if one may.
fn reason(set: &WatchedSet, namespace_ends: bool, node: Option<&Node>) -> Option<&'static str> {
    match set {
        WatchedSet::Deleted => Some("its DaemonSet is deleted"),
        WatchedSet::Exists(set) if set.metadata.deletion_timestamp.is_some() => {
            Some("its DaemonSet is being deleted")
        }
        _ if namespace_ends => Some("its namespace is being deleted"),
        WatchedSet::Exists(set) => placement::excludes(set, node?),
        WatchedSet::Unknown => None,
    }
}

/// Removes the redirection annotations of this node's pods, within a time limit.
pub(crate) async fn withdraw_annotations(client: &Client, cluster: &Cluster) {
    annotation::withdraw_all(client, cluster, ANNOTATIONS_LIMIT).await;
}

/// Deletes the agents' DaemonSet, and waits until every agent has cleaned up its node and exited.
///
/// # Errors
/// The DaemonSet cannot be deleted, or agents still run at the deadline.
pub(crate) async fn retire(
    client: Client,
    namespace: &str,
    daemon_set: &str,
    within: Duration,
) -> anyhow::Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    let deadline = Instant::now() + within;
    // Foreground deletion keeps the object until the last of its pods is deleted.
    match api.delete(daemon_set, &DeleteParams::foreground()).await {
        Ok(_) => {}
        Err(e) if status_of(&e) == Some(404) => return deleted(daemon_set),
        Err(e) => {
            let what = format!("cannot delete DaemonSet {namespace}/{daemon_set}");
            return Err(e).context(what);
        }
    }
    loop {
        let remaining = match api.get(daemon_set).await {
            Ok(set) => format!(
                "agents still run on {} nodes",
                set.status.current_number_scheduled
            ),
            Err(e) if status_of(&e) == Some(404) => return deleted(daemon_set),
            Err(e) => format!("cannot check whether agents still run: {e}"),
        };
        anyhow::ensure!(
            Instant::now() < deadline,
            "after {} s, {remaining}. Next step: find nodes that are not ready (kubectl get \
             nodes); `helm uninstall --no-hooks` continues without them, and `underpass-agent \
             uninstall` cleans up such a node",
            within.as_secs()
        );
        sleep(POLL_INTERVAL).await;
    }
}

fn deleted(daemon_set: &str) -> anyhow::Result<()> {
    println!("deleted DaemonSet {daemon_set}; its agents removed the plugin from their nodes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(metadata: &Value, selector: &Value) -> WatchedSet {
        let spec = json!({ "template": { "spec": { "nodeSelector": selector } } });
        let set = json!({ "metadata": metadata, "spec": spec });
        WatchedSet::Exists(serde_json::from_value(set).unwrap())
    }

    #[test]
    fn a_node_is_given_up_only_if_no_agent_will_follow() {
        let node = json!({ "metadata": { "name": "a", "labels": { "pool": "x" } } });
        let node: Node = serde_json::from_value(node).unwrap();
        let deleting = json!({ "name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let name = json!({ "name": "d" });
        for (known, namespace_ends, is_due) in [
            (WatchedSet::Unknown, false, false),
            (WatchedSet::Unknown, true, true),
            (WatchedSet::Deleted, false, true),
            (set(&name, &json!({})), false, false),
            (set(&name, &json!({ "pool": "x" })), false, false),
            (set(&name, &json!({ "pool": "y" })), false, true),
            (set(&name, &json!({})), true, true),
            (set(&deleting, &json!({})), false, true),
        ] {
            let due = reason(&known, namespace_ends, Some(&node));
            assert_eq!(due.is_some(), is_due, "{known:?} {namespace_ends}");
        }
        let elsewhere = set(&name, &json!({ "pool": "y" }));
        assert_eq!(reason(&elsewhere, false, None), None, "the node is unknown");
    }
}
