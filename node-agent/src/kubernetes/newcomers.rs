//! Pods that no plugin has presented, for they are older than the installation: they are found by their processes, and join
//! as any running pod does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use handoff::Attachment;
use mesh::enrol::Enrolment;

use super::facts::{Cluster, KnownPod};
use super::processes::places;
use crate::agent::Agent;
use crate::pods::Skipped;
use crate::refusal::Refusal;

/// Pods that were not found are looked for again this soon, and less often the longer it lasts.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The interface that a kubelet asks every runtime for.
const INTERFACE: &str = "eth0";

/// Who was looked for and not found.
#[derive(Debug, Default)]
pub(crate) struct Search(RefCell<Missed>);

#[derive(Debug, Default)]
struct Missed {
    /// Each with how often.
    uids: BTreeMap<String, u32>,
    wait: Duration,
    next: Option<Instant>,
}

impl Search {
    /// When it is to be looked again, if somebody was missed.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.borrow().next
    }

    /// Whether this pod was looked for in vain.
    pub(crate) fn missed(&self, uid: &str) -> bool {
        self.0.borrow().uids.contains_key(uid)
    }

    /// Whether it is time to look for these.
    fn is_due(&self, uids: &BTreeSet<String>) -> bool {
        let missed = self.0.borrow();
        uids.iter().any(|uid| !missed.uids.contains_key(uid)) || missed.next.is_some_and(|next| next <= Instant::now())
    }

    /// Returns those that were missed for the second time: one whose first process is just starting is none of them.
    fn note(&self, uids: &BTreeSet<String>) -> BTreeSet<String> {
        let mut missed = self.0.borrow_mut();
        let often = |uid: &String| missed.uids.get(uid).copied().unwrap_or_default().saturating_add(1);
        let counted: BTreeMap<String, u32> = uids.iter().map(|uid| (uid.clone(), often(uid))).collect();
        let new = counted.values().any(|times| *times == 1);
        missed.wait = if new { FIRST_RETRY } else { (missed.wait * 2).clamp(FIRST_RETRY, LAST_RETRY) };
        missed.next = (!uids.is_empty()).then(|| Instant::now() + missed.wait);
        missed.uids = counted;
        missed.uids.iter().filter(|(_, times)| **times == 2).map(|(uid, _)| uid.clone()).collect()
    }
}

/// Presents every pod that should join and that nobody has presented, as a plugin would have; and those again whose
/// namespace is not where it was when they were presented.
pub(crate) async fn present_newcomers(agent: &Rc<Agent>, cluster: &Cluster) {
    if !cluster.is_synced() {
        return;
    }
    let placed = agent.placed_uids();
    let is_new = |pod: &KnownPod| !placed.contains(&*pod.workload.uid) && should_join(agent, cluster, pod);
    let strangers: Vec<KnownPod> = cluster.pods().into_iter().filter(is_new).collect();
    let uids = strangers.iter().map(|p| p.workload.uid.to_string()).collect();
    if !cluster.search.is_due(&uids) {
        return;
    }
    if strangers.is_empty() {
        cluster.search.note(&uids);
        return;
    }
    let wanted: HashMap<_, _> =
        strangers.iter().map(|p| (p.workload.uid.to_string(), p.workload.workload_ips.clone())).collect();
    let (processes, node) = (cluster.host_proc.clone(), agent.node_namespaces.clone());
    // Beside the agent's own thread: a node has thousands of processes.
    let looked = tokio::task::spawn_blocking(move || places(&processes, &wanted, &node)).await;
    let mut found = looked.unwrap_or_default();
    let mut missed = BTreeMap::new();
    let placed = agent.placed_uids();
    for pod in strangers {
        // Its ADD may have come meanwhile.
        if placed.contains(&*pod.workload.uid) || !should_join(agent, cluster, &pod) {
            continue;
        }
        let (reference, uid) = (pod.reference(), pod.workload.uid.to_string());
        let Some(place) = found.remove(&uid) else {
            missed.insert(uid, reference);
            continue;
        };
        tracing::info!(uid, namespace = reference.namespace, name = reference.name, "found by its processes");
        if agent.found_again(&uid, &place.netns, place.inode) {
            continue;
        }
        let container_id = place.container.unwrap_or_else(|| format!("pod-{uid}"));
        agent.skip(Skipped {
            attachment: Attachment { container_id, ifname: INTERFACE.to_owned() },
            pod: reference,
            reason: "it is older than the agent".to_owned(),
            addresses: pod.workload.workload_ips.clone(),
            annotations: BTreeMap::new(),
            netns_inode: place.inode,
            netns_path: Some(place.netns),
            is_clear: false,
        });
    }
    let lost = cluster.search.note(&missed.keys().cloned().collect());
    // Of one that was presented, joining or verification tells.
    let untold = |uid: &String| lost.contains(uid) && !agent.knows(uid);
    for pod in missed.into_iter().filter(|(uid, _)| untold(uid)).map(|(_, pod)| pod) {
        let refusal = Refusal::NotFound(cluster.host_proc.display().to_string());
        tracing::warn!(namespace = pod.namespace, name = pod.name, "cannot join yet: {}", refusal.explained());
        cluster.events.not_enrolled(&pod, &refusal);
    }
}

/// Whether a pod runs, should join, and is not being added.
fn should_join(agent: &Agent, cluster: &Cluster, pod: &KnownPod) -> bool {
    let runs = !pod.finished && !pod.workload.workload_ips.is_empty() && !agent.joining.has(&pod.workload.uid);
    runs && matches!(cluster.decide(&pod.reference()).outcome, Enrolment::Enrol(_))
}
