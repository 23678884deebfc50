//! Releases pods that have finished or were deleted from the API server, even without a DEL.

use handoff::PodRef;
use pod_life::{Input, LifeId, Phase};

use super::cluster::{Cluster, KnownPod};
use super::lookup::Existence;
use crate::inbox::{Inbox, Message};
use crate::pods_view::PodsView;

/// Reports finished and deleted pods. Their rules stay in place: a process that still runs there
/// has no connectivity rather than unencrypted connections. Returns false while the API server does
/// not answer.
pub(super) async fn release_departed(pods: &PodsView, cluster: &Cluster, inbox: &Inbox) -> bool {
    let settled: Vec<(LifeId, PodRef)> = pods
        .read()
        .iter()
        .filter(|(_, life)| {
            let phase = &life.phase;
            matches!(
                phase,
                Phase::Outside(_) | Phase::Member(_) | Phase::Leaving(_)
            )
        })
        .map(|(id, life)| (id, life.sandbox.pod.clone()))
        .collect();
    for (id, pod) in settled {
        let why = match watched(cluster.pod(&pod).as_ref(), cluster.is_synced()) {
            Watched::Finished => "the pod has finished",
            Watched::Present => continue,
            Watched::Unlisted => match cluster.existence(&pod).await {
                Existence::Deleted => "the API server no longer has it",
                Existence::Exists => continue,
                Existence::Unknown => return false, // for all other pods as well
            },
        };
        inbox.send(Message::Pod(id, Input::Released(why.to_owned())));
    }
    true
}

/// What the watch reports about a pod that the agent has.
#[derive(Debug, PartialEq, Eq)]
enum Watched {
    Finished,
    Present,
    /// A pod that was deleted, or that has just started and is not in the watch yet.
    Unlisted,
}

fn watched(pod: Option<&KnownPod>, is_synced: bool) -> Watched {
    match pod {
        Some(pod) if pod.finished => Watched::Finished,
        Some(_) => Watched::Present,
        // Until the lists are complete, a missing pod means nothing.
        None if !is_synced => Watched::Present,
        None => Watched::Unlisted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_and_unlisted_pods_can_be_released() {
        let pod = |finished| KnownPod {
            finished,
            ..KnownPod::default()
        };
        for (known, is_synced, expected) in [
            (Some(pod(false)), true, Watched::Present),
            (Some(pod(false)), false, Watched::Present),
            (Some(pod(true)), true, Watched::Finished),
            (Some(pod(true)), false, Watched::Finished),
            (None, true, Watched::Unlisted),
            (None, false, Watched::Present),
        ] {
            assert_eq!(watched(known.as_ref(), is_synced), expected, "{known:?}");
        }
    }
}
