//! istiod sends a pod tunnels when its annotation says that it is in the mesh. It says so once that is verified, and no
//! longer when the pod leaves. What the pods carry is compared with what they should, and the difference is written.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ::kubernetes::{Api, Patch, PatchParams, Pod, status_of};
use agent_status::VerificationState;
use futures_util::StreamExt;
use handoff::PodRef;
use mesh::enrol::{Enrolment, REDIRECTION};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::facts::{Cluster, ENABLED, KnownPod};
use crate::agent::Agent;
use crate::verification::Verification;

/// Requests that are under way at a time.
const AT_ONCE: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What could not be written is written again this soon, and less often the longer it lasts.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A pod whose annotation is to change.
struct Order {
    pod: PodRef,
    /// What it is to say; none takes it away.
    value: Option<&'static str>,
}

/// When a pod's annotation may be written again, and how long the wait is after that.
type Waits = HashMap<String, (Instant, Duration)>;

/// Keeps the annotations right, for as long as the agent lives.
pub(super) async fn keep(agent: Rc<Agent>, cluster: Rc<Cluster>) {
    let mut waits = Waits::new();
    loop {
        let orders = orders(&agent, &cluster);
        waits.retain(|uid, _| orders.iter().any(|o| o.pod.uid.as_ref() == Some(uid)));
        let now = Instant::now();
        let (due, later): (Vec<Order>, Vec<Order>) =
            orders.into_iter().partition(|o| at(&waits, &o.pod).is_none_or(|at| at <= now));
        let written = futures_util::stream::iter(due).map(|order| write(&cluster, order)).buffer_unordered(AT_ONCE);
        let failed: Vec<Order> = written.filter_map(std::future::ready).collect().await;
        for order in &failed {
            let wait = waits.get(uid(&order.pod)).map_or(FIRST_RETRY, |(_, wait)| (*wait * 2).min(LAST_RETRY));
            waits.insert(uid(&order.pod).to_owned(), (Instant::now() + wait, wait));
        }
        let next = failed.iter().chain(&later).filter_map(|o| at(&waits, &o.pod)).min();
        tokio::select! {
            () = cluster.changed.notified() => {}
            () = sleep(next.map_or(Duration::ZERO, |n| n.saturating_duration_since(Instant::now()))), if next.is_some() => {}
        }
    }
}

/// Takes it off every pod of this node that has it.
pub(super) async fn withdraw_all(cluster: &Cluster) {
    let annotated = cluster.pods().into_iter().filter(|known| known.redirection.is_some());
    let orders = annotated.map(|known| Order { pod: known.reference(), value: None });
    let written = futures_util::stream::iter(orders).map(|order| write(cluster, order)).buffer_unordered(AT_ONCE);
    written.for_each(|_| std::future::ready(())).await; // what failed was told
}

/// The pods whose annotation is not what it should be.
fn orders(agent: &Agent, cluster: &Cluster) -> Vec<Order> {
    let leaving: HashMap<String, bool> =
        agent.pods.borrow().enrolled().map(|p| (p.record.uid.clone(), p.record.leaving)).collect();
    let order = |known: KnownPod| {
        let pod = known.reference();
        let wanted = match leaving.get(uid(&pod)) {
            Some(true) => Some(false),
            Some(false) => is_verified(agent, uid(&pod)).then_some(true),
            None => (cluster.is_synced() && cluster.decide(&pod).outcome == Enrolment::Skip).then_some(false),
        };
        // What is not known yet, or is about to join, stays as it is.
        let value = wanted?.then_some(ENABLED);
        (known.redirection.as_deref() != value).then_some(Order { pod, value })
    };
    cluster.pods().into_iter().filter_map(order).collect()
}

fn is_verified(agent: &Agent, uid: &str) -> bool {
    agent.verifier.borrow().of(uid).map(Verification::state) == Some(VerificationState::Verified)
}

/// Writes an annotation; returns the order when it has to be done again.
async fn write(cluster: &Cluster, order: Order) -> Option<Order> {
    let PodRef { namespace, name, uid } = &order.pod;
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    // With the uid, for a pod of the same name may have come instead.
    let change = json!({ "metadata": { "uid": uid, "annotations": { REDIRECTION: order.value } } });
    let (params, change) = (PatchParams::default(), Patch::Merge(&change));
    let why = match timeout(PATIENCE, api.patch_status(name, &params, &change)).await {
        Ok(Ok(_)) => {
            cluster.wrote_redirection(&order.pod, order.value);
            return None;
        }
        // It has gone, or has been replaced: the watch will tell.
        Ok(Err(e)) if matches!(status_of(&e), Some(404 | 409)) => {
            cluster.wrote_redirection(&order.pod, order.value);
            return None;
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the API server does not answer".to_owned(),
    };
    tracing::warn!(namespace, name, "the annotation {REDIRECTION} is not written yet: {why}");
    Some(order)
}

fn at(waits: &Waits, pod: &PodRef) -> Option<Instant> {
    waits.get(uid(pod)).map(|(at, _)| *at)
}

fn uid(pod: &PodRef) -> &str {
    pod.uid.as_deref().unwrap_or_default()
}
