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

/// Completes while the proxy closes idle connections, when this one is idle: the side that opened
/// it has its answer, and neither has sent anything since. A client that keeps it for its next
/// request opens another one, whereas at the end of the drain it might be cut during a request.
pub(super) async fn until_closed_as_idle(worker: &Worker, event: &ConnectionEvent) {
    let mut lifecycle = worker.proxy.lifecycle.clone();
    let begun = lifecycle.wait_for(|l| matches!(l, Lifecycle::ClosingIdle(_)));
    let until = match begun.await.map(|l| *l) {
        Ok(Lifecycle::ClosingIdle(until)) => until,
        _ => return std::future::pending().await, // the proxy exits
    };
    let (mut relayed, mut since) = (event.relayed(), Instant::now());
    let [shortest, longest] = SILENCE;
    loop {
        sleep(shortest).await;
        let (now, before) = (Instant::now(), relayed);
        relayed = event.relayed();
        if relayed != before {
            since = now;
        }
        let left = until.saturating_duration_since(now);
        let silence = (left / 10).clamp(shortest, longest);
        if event.is_answered() && now.duration_since(since) >= silence {
            return;
        }
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
