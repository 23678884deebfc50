//! A node may be made with a taint that keeps pods away until the mesh is there. Whoever makes it puts the taint there; the
//! agent takes it away when it is ready.

use std::rc::Rc;
use std::time::Duration;

use ::kubernetes::{Api, Node, Patch, PatchParams, status_of};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::facts::Cluster;
use crate::agent::Agent;
use crate::readiness::unready;

/// The name of the taint, which is Istio's.
const NOT_READY: &str = "cni.istio.io/not-ready";
/// A node that has it is looked at again this soon.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the taint away whenever it is there and the agent is ready, for as long as the agent lives.
pub(super) async fn keep(agent: Rc<Agent>, cluster: Rc<Cluster>) {
    loop {
        let tainted = cluster.taints.borrow().0.iter().any(|t| t.key == NOT_READY);
        if tainted && unready(&agent).is_none() {
            take_away(&cluster).await;
        }
        tokio::select! {
            () = cluster.node_changed.notified() => {}
            () = sleep(AGAIN), if tainted => {}
        }
    }
}

async fn take_away(cluster: &Cluster) {
    let (taints, version) = cluster.taints.borrow().clone();
    let others: Vec<_> = taints.into_iter().filter(|t| t.key != NOT_READY).collect();
    // With the version, for somebody else may be writing the same list.
    let change = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": others } });
    let api: Api<Node> = Api::all(cluster.client.clone());
    let (params, change) = (PatchParams::default(), Patch::Merge(&change));
    match timeout(PATIENCE, api.patch(&cluster.node, &params, &change)).await {
        Ok(Ok(node)) => {
            *cluster.taints.borrow_mut() = (node.spec.taints, node.metadata.resource_version);
            tracing::info!("the node's taint {NOT_READY} is taken away");
        }
        Ok(Err(e)) if status_of(&e) == Some(409) => {} // the watch tells what it is now
        Ok(Err(e)) => tracing::warn!("the node's taint {NOT_READY} cannot be taken away yet: {e}"),
        Err(_) => tracing::warn!("the node's taint {NOT_READY} cannot be taken away yet: the API server is silent"),
    }
}
