//! Removes the taint with which a node may be created to keep pods away until the agent is ready.

use std::rc::Rc;
use std::time::Duration;

use ::kubernetes::{Api, Node, Patch, PatchParams, status_of};
use istio::taint::NOT_READY;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::cluster::Cluster;
use crate::readiness::Readiness;

/// Interval at which the agent's readiness is checked on a tainted node.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of attempts for which the agent lacks the permission.
const FORBIDDEN_INTERVAL: Duration = Duration::from_secs(60);
/// Time limit of a request to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the taint whenever the node has it and the agent is ready, forever.
pub(super) async fn run(readiness: Readiness, cluster: Rc<Cluster>) {
    loop {
        let is_tainted = |node: &Node| node.spec.taints.iter().any(|t| t.key == NOT_READY);
        let tainted = cluster
            .node_object
            .borrow()
            .as_ref()
            .is_some_and(is_tainted);
        let mut next = CHECK_INTERVAL;
        if tainted && readiness.missing().is_none() && !remove_taint(&cluster).await {
            next = FORBIDDEN_INTERVAL;
        }
        tokio::select! {
            () = cluster.node_changed.notified() => {}
            () = sleep(next), if tainted => {}
        }
    }
}

/// Returns `false` if the agent lacks the permission.
async fn remove_taint(cluster: &Cluster) -> bool {
    let node = cluster.node_object.borrow().clone().unwrap_or_default();
    let version = node.metadata.resource_version;
    let mut others = node.spec.taints;
    others.retain(|t| t.key != NOT_READY);
    // The resource version makes the request fail if another client changed the list.
    let change =
        json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": others } });
    let api: Api<Node> = Api::all(cluster.client.clone());
    let (params, change) = (PatchParams::default(), Patch::Merge(&change));
    match timeout(API_TIMEOUT, api.patch(&cluster.node, &params, &change)).await {
        Ok(Ok(node)) => {
            *cluster.node_object.borrow_mut() = Some(node);
            tracing::info!("removed the node's taint {NOT_READY}");
        }
        Ok(Err(e)) if status_of(&e) == Some(409) => {} // the watch will report the new list
        Ok(Err(e)) if status_of(&e) == Some(403) => {
            tracing::warn!(
                "not permitted to remove the node's taint {NOT_READY}. Next step: set the chart's \
                 value cni.removeTaint, or let istiod remove it: {e}"
            );
            return false;
        }
        Ok(Err(e)) => tracing::warn!("cannot remove the node's taint {NOT_READY}, retrying: {e}"),
        Err(_) => tracing::warn!(
            "cannot remove the node's taint {NOT_READY}, retrying: the API server did not answer \
             in time"
        ),
    }
    true
}
