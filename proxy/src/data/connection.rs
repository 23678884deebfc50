//! Checks and descriptions that all kinds of connections share.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use istio::port;
use mesh::baggage::Baggage;
use mesh::{Identity, Mesh, Workload};
use telemetry::{ConnectionEvent, Side};
use tokio::time::{sleep, timeout};

use super::error::ConnectionError;
use super::worker::{Lifecycle, ProxyState, Worker};
use crate::inpod::Pod;

/// Whether the proxy listens on this port in every pod. It never connects to such a port itself.
pub(super) fn is_own_port(proxy: &ProxyState, port: u16) -> bool {
    matches!(port, port::OUTBOUND | port::INBOUND | port::HBONE)
        || proxy.dns.is_some() && port == port::DNS
}

/// Completes, with the reason, when the pod leaves or the proxy terminates.
pub(crate) async fn until_terminated(worker: &Worker, pod: &Pod) -> ConnectionError {
    let mut has_left = pod.has_left.clone();
    let mut lifecycle = worker.proxy.lifecycle.clone();
    tokio::select! {
        // An error means that the sender was dropped, which is equivalent.
        _ = has_left.wait_for(|left| *left) => ConnectionError::PodLeft,
        _ = lifecycle.wait_for(|l| *l == Lifecycle::Terminating) => ConnectionError::Drained,
    }
}

/// Bounds of how long a connection must be silent to count as idle while idle ones are closed. The
/// sooner all must be closed, the less.
const SILENCE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(200)];

/// While the proxy closes idle connections: how long a server must be silent after an answer. The
/// connection then ends with the answer. A client that keeps it for its next request opens another
/// one, whereas at the end of the drain it might be cut during a request.
pub(super) fn silence_after_answer(worker: &Worker) -> impl Fn() -> Option<Duration> + use<> {
    let lifecycle = worker.proxy.lifecycle.clone();
    move || {
        if matches!(lifecycle.has_changed(), Ok(false)) {
            return None; // it serves, which costs only this check
        }
        match *lifecycle.borrow() {
            Lifecycle::ClosingIdle(until) => Some(silence(until)),
            _ => None,
        }
    }
}

fn silence(until: Instant) -> Duration {
    let [shortest, longest] = SILENCE;
    let left = until.saturating_duration_since(Instant::now());
    (left / 10).clamp(shortest, longest)
}

/// Completes near the end of the time in which the proxy closes idle connections, when this one has
/// been silent since an answer. Before, it waits for another answer to end with: a request may be
/// on the way when it is closed between two.
pub(super) async fn until_closed_as_idle(worker: &Worker, event: &ConnectionEvent) {
    let mut lifecycle = worker.proxy.lifecycle.clone();
    let begun = lifecycle.wait_for(|l| matches!(l, Lifecycle::ClosingIdle(_)));
    let until = match begun.await.map(|l| *l) {
        Ok(Lifecycle::ClosingIdle(until)) => until,
        _ => return std::future::pending().await, // the proxy exits
    };
    let (mut relayed, mut since) = (event.relayed(), Instant::now());
    let last_part = until.saturating_duration_since(since) / 5;
    sleep(last_part * 4).await;
    loop {
        let now = Instant::now();
        if relayed != event.relayed() {
            (relayed, since) = (event.relayed(), now);
        }
        if event.is_answered() && now.duration_since(since) >= silence(until) {
            return;
        }
        sleep(SILENCE[0]).await;
    }
}

/// How long an inbound connection waits for the mesh to include its pod.
const POD_DEADLINE: Duration = Duration::from_secs(5);

/// Fails if the mesh state is older than the configured maximum.
pub(super) fn check_mesh_age(proxy: &ProxyState) -> Result<(), ConnectionError> {
    if proxy.is_too_old.load(Ordering::Relaxed) {
        Err(ConnectionError::StateTooOld)
    } else {
        Ok(())
    }
}

/// Waits until the mesh includes the pod and all policies that it refers to. Before, it is unknown
/// which policies apply. A policy that stays unknown denies.
pub(super) async fn wait_for_pod(worker: &Worker, pod: &Pod) -> Result<(), ConnectionError> {
    check_mesh_age(&worker.proxy)?;
    let proxy = &worker.proxy;
    let included = async {
        loop {
            let changed = worker.mesh_changed.notified();
            let mesh = proxy.mesh.load();
            let is_known = pod
                .find_in(&mesh)
                .is_some_and(|w| !proxy.policies_follow || !mesh.lacks_policy_of(w));
            if is_known {
                return;
            }
            drop(mesh);
            changed.await;
        }
    };
    let waited = POD_DEADLINE;
    if timeout(waited, included).await.is_err() {
        let mesh = proxy.mesh.load();
        if pod.find_in(&mesh).is_none() {
            let namesakes = pod.namesakes(&mesh);
            return Err(ConnectionError::PodUnknown { waited, namesakes });
        }
    }
    Ok(())
}

/// Describes the source of an inbound connection: the workload at its address, if that workload has
/// the authenticated identity.
pub(super) fn source_side(
    mesh: &Mesh,
    pod: &Workload,
    ip: IpAddr,
    identity: Option<Identity>,
) -> Side {
    match mesh.workload_by_ip(&pod.network, ip) {
        Some(workload) if identity.as_ref().is_none_or(|i| *i == workload.identity()) => {
            Side::workload(workload, identity)
        }
        _ => claimed_side(identity, Baggage::default()),
    }
}

/// Describes a source that is not a known workload by its own claims. Its namespace is that of its
/// identity.
pub(super) fn claimed_side(identity: Option<Identity>, claims: Baggage) -> Side {
    let namespace = identity.as_ref().map(|i| i.namespace.clone());
    let attributes = Baggage {
        namespace: namespace.unwrap_or(claims.namespace.clone()),
        ..claims
    };
    Side {
        attributes,
        workload: None,
        identity,
    }
}
