//! Maintains the redirection annotation of pods, by which istiod decides whether clients connect to
//! them through tunnels. A pod is annotated once it is verified, until it leaves.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ::kubernetes::{Api, Client, Patch, PatchParams, Pod, status_of};
use agent_status::VerificationState;
use futures_util::StreamExt;
use handoff::PodRef;
use istio::annotation::REDIRECTION;
use mesh::enrol::Enrolment;
use pod_life::{Phase, Pods, Standing};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::cluster::{Cluster, ENABLED, KnownPod};
use crate::pods_view::PodsView;

/// Limit of concurrent requests.
const CONCURRENCY: usize = 8;
/// Time limit of a request.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before the first retry of a failed write; doubles up to `LAST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A change of a pod's annotation.
struct AnnotationUpdate {
    pod: PodRef,
    /// The new value; `None` removes the annotation.
    value: Option<&'static str>,
}

/// For each pod uid, the time of the next retry and the delay that led to it.
type Retries = HashMap<String, (Instant, Duration)>;

/// Updates annotations after changes, forever.
pub(super) async fn run(pods: PodsView, cluster: Rc<Cluster>) {
    let mut retries = Retries::new();
    loop {
        let updates = pending_updates(&pods.read(), &cluster);
        retries.retain(|uid, _| updates.iter().any(|u| u.pod.uid.as_ref() == Some(uid)));
        let now = Instant::now();
        let (due, later): (Vec<AnnotationUpdate>, Vec<AnnotationUpdate>) = updates
            .into_iter()
            .partition(|u| retry_at(&retries, &u.pod).is_none_or(|at| at <= now));
        let written = futures_util::stream::iter(due)
            .map(|update| write(&cluster, update))
            .buffer_unordered(CONCURRENCY);
        let failed: Vec<AnnotationUpdate> = written.filter_map(std::future::ready).collect().await;
        for update in &failed {
            let previous = retries.get(uid(&update.pod));
            let delay = previous.map_or(FIRST_RETRY, |(_, delay)| (*delay * 2).min(LAST_RETRY));
            retries.insert(uid(&update.pod).to_owned(), (Instant::now() + delay, delay));
        }
        let next = failed
            .iter()
            .chain(&later)
            .filter_map(|u| retry_at(&retries, &u.pod))
            .min();
        let wait = next.map_or(Duration::ZERO, |n| {
            n.saturating_duration_since(Instant::now())
        });
        tokio::select! {
            () = cluster.changed.notified() => {}
            () = sleep(wait), if next.is_some() => {}
        }
    }
}

/// Removes the annotation from every pod of this node, within a time limit. Logs the pods that
/// keep it.
pub(super) async fn withdraw_all(client: &Client, cluster: &Cluster, within: Duration) {
    let annotated = || {
        let pods = cluster.pods().into_iter();
        pods.filter(|known| known.redirection.is_some())
            .map(|known| known.reference())
    };
    let removed = futures_util::stream::iter(annotated())
        .map(|pod| async {
            let update = AnnotationUpdate { pod, value: None };
            request(client, cluster, &update).await.inspect_err(|why| {
                let PodRef {
                    namespace, name, ..
                } = &update.pod;
                tracing::warn!(
                    namespace,
                    name,
                    "cannot remove annotation {REDIRECTION}: {why}"
                );
            })
        })
        .buffer_unordered(CONCURRENCY);
    // Failures are logged with those that are not done in time.
    let _ = timeout(within, removed.for_each(|_| std::future::ready(()))).await;
    for PodRef {
        namespace, name, ..
    } in annotated()
    {
        tracing::error!(
            namespace,
            name,
            "the pod keeps its annotation, and clients will connect to it through tunnels. Next \
             step: kubectl annotate pod -n {namespace} {name} {REDIRECTION}-"
        );
    }
}

/// The updates of all pods whose annotation differs from what it should be.
fn pending_updates(pods: &Pods, cluster: &Cluster) -> Vec<AnnotationUpdate> {
    let members: HashMap<&str, MembershipState> = pods
        .iter()
        .filter_map(|(_, life)| {
            let state = match (life.standing(), &life.phase) {
                (Standing::Leaving(_), _) => MembershipState::Leaving,
                (Standing::Member(_), Phase::Member(member))
                    if member.checks.state() == Some(VerificationState::Verified) =>
                {
                    MembershipState::Verified
                }
                (Standing::Member(_), _) => MembershipState::Undecided,
                (Standing::Outside(_) | Standing::Hidden, _) => return None,
            };
            Some((life.uid()?, state))
        })
        .collect();
    let update = |known: KnownPod| {
        let pod = known.reference();
        let state = match members.get(uid(&pod)) {
            Some(state) => *state,
            None if cluster.is_synced() && cluster.decide(&pod).outcome == Enrolment::Skip => {
                MembershipState::Outside
            }
            None => MembershipState::Undecided,
        };
        let value = changed_value(state, known.redirection.as_deref())?;
        Some(AnnotationUpdate { pod, value })
    };
    cluster.pods().into_iter().filter_map(update).collect()
}

/// The state of a pod, as far as its annotation depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MembershipState {
    Outside,
    Verified,
    Leaving,
    /// Joining, not verified, or not known well enough: the pod keeps its annotation.
    Undecided,
}

/// The value to write, if a pod's annotation must change; `Some(None)` removes it.
fn changed_value(state: MembershipState, current: Option<&str>) -> Option<Option<&'static str>> {
    let wanted = match state {
        MembershipState::Verified => Some(ENABLED),
        MembershipState::Outside | MembershipState::Leaving => None,
        MembershipState::Undecided => return None,
    };
    (current != wanted).then_some(wanted)
}

/// Writes an annotation; returns the update if it must be retried.
async fn write(cluster: &Cluster, update: AnnotationUpdate) -> Option<AnnotationUpdate> {
    let why = request(&cluster.client, cluster, &update).await.err()?;
    let PodRef {
        namespace, name, ..
    } = &update.pod;
    tracing::warn!(
        namespace,
        name,
        "cannot write annotation {REDIRECTION}, retrying: {why}"
    );
    Some(update)
}

/// Writes an annotation, or fails with the reason.
async fn request(
    client: &Client,
    cluster: &Cluster,
    update: &AnnotationUpdate,
) -> Result<(), String> {
    let PodRef {
        namespace, name, ..
    } = &update.pod;
    let Some(KnownPod { api_uid: uid, .. }) = cluster.pod(&update.pod) else {
        return Ok(()); // deleted or replaced
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // The uid makes the request fail for a new pod of the same name.
    let change =
        json!({ "metadata": { "uid": uid, "annotations": { REDIRECTION: update.value } } });
    let (params, change) = (PatchParams::default(), Patch::Merge(&change));
    match timeout(API_TIMEOUT, api.patch_status(name, &params, &change)).await {
        Ok(Ok(_)) => {}
        // The pod was deleted or replaced, which the watch will report.
        Ok(Err(e)) if matches!(status_of(&e), Some(404 | 409)) => {}
        Ok(Err(e)) => return Err(e.to_string()),
        Err(_) => return Err("the API server did not answer in time".to_owned()),
    }
    cluster.set_redirection(&update.pod, update.value);
    Ok(())
}

fn retry_at(retries: &Retries, pod: &PodRef) -> Option<Instant> {
    retries.get(uid(pod)).map(|(at, _)| *at)
}

fn uid(pod: &PodRef) -> &str {
    pod.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_pods_are_annotated_and_undecided_ones_are_left_alone() {
        let (enabled, write, remove) = (Some("enabled"), Some(Some("enabled")), Some(None));
        for (state, current, expected) in [
            (MembershipState::Verified, None, write),
            (MembershipState::Verified, Some("disabled"), write),
            (MembershipState::Verified, enabled, None),
            (MembershipState::Leaving, enabled, remove),
            (MembershipState::Leaving, None, None),
            (MembershipState::Outside, Some("disabled"), remove),
            (MembershipState::Outside, None, None),
            (MembershipState::Undecided, enabled, None),
            (MembershipState::Undecided, None, None),
        ] {
            assert_eq!(
                changed_value(state, current),
                expected,
                "{state:?} {current:?}"
            );
        }
    }
}
