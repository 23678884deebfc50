//! Pods that have finished or are gone from the API server are released, also when their DEL never came.

use std::rc::Rc;

use handoff::{Attachment, PodRef};

use super::facts::Cluster;
use crate::agent::Agent;

/// Forgets what has finished, and what the API server does not have any more. Their rules stay with their namespaces: if
/// anything still runs in one, it is cut off and never passes in plain. Returns whether something could not be said.
pub(crate) async fn release_departed(agent: &Rc<Agent>, cluster: &Cluster) -> bool {
    let pods: Vec<(Attachment, PodRef)> = {
        let pods = agent.pods.borrow();
        let enrolled =
            pods.enrolled().filter(|p| p.joined).map(|p| (p.record.attachment.clone(), p.record.pod.clone()));
        enrolled.chain(pods.skipped().map(|p| (p.attachment.clone(), p.pod.clone()))).collect()
    };
    for (attachment, pod) in pods {
        let why = match cluster.pod(&pod) {
            Some(known) if known.finished => "it has finished",
            Some(_) => continue,
            None if !cluster.is_synced() => continue,
            // A pod that has just started may be newer than the list.
            None => match cluster.still_has(&pod).await {
                Some(false) => "it is gone from the API server",
                Some(true) => continue,
                None => return true, // nor about any other, for now
            },
        };
        tracing::info!(namespace = pod.namespace, name = pod.name, "the pod is released: {why}");
        agent.remove(&attachment);
    }
    false
}
