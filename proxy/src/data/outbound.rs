//! Connections opened by a pod of this node.

use std::future::pending;
use std::rc::Rc;
use std::time::Instant;

use istio::port;
use telemetry::{ConnectionEvent, ConnectionFacts, Recorder};
use tokio::net::TcpStream;

use super::accept::Incoming;
use super::budget::OpenConnection;
use super::connection::{check_mesh_age, is_own_port, until_terminated};
use super::error::ConnectionError;
use super::policy_enforcer::Permit;
use super::upstream::Attempt;
use super::worker::Worker;
use super::{probe, relay};

/// Serves an accepted connection until it closes.
pub(super) async fn serve(worker: Rc<Worker>, incoming: Incoming<TcpStream>) {
    let Incoming {
        pod,
        stream,
        peer: client,
        started,
        delayed,
        ..
    } = incoming;
    let Ok(orig_dst) = pod_socket::orig_dst(&stream, port::OUTBOUND) else {
        return;
    };
    if mesh::probe::is_probe(orig_dst) {
        return probe::answer(stream, &pod).await;
    }
    let source = pod.workload(&worker.proxy.mesh.load());
    let pending = PendingEvent {
        recorder: worker.recorder.clone(),
        facts: ConnectionFacts {
            delayed,
            ..ConnectionFacts::outbound(client, &source, orig_dst)
        },
        started,
    };
    let is_self_call = is_own_port(&worker.proxy, orig_dst.port())
        && (orig_dst.ip().is_loopback() || source.workload_ips.contains(&orig_dst.ip()));
    let permit = if is_self_call {
        Err(ConnectionError::SelfCall(orig_dst.into()))
    } else {
        let may_open = check_mesh_age(&worker.proxy).and_then(|()| pod.budget.open());
        may_open.map(OutboundPermit)
    };
    let attempt = Attempt {
        worker: &worker,
        pod: &pod,
        source: &source,
        orig_dst,
        client,
        started,
    };
    let connect = async |_: &OutboundPermit, pending: &mut PendingEvent| {
        attempt.connect(&mut pending.facts).await
    };
    let terminated = until_terminated(&worker, &pod);
    relay::connect_and_relay(&worker, &pod, permit, stream, pending, terminated, connect).await;
}

/// The permit of an outbound connection. Authorization policies apply to inbound connections: the
/// proxy of the destination enforces them.
struct OutboundPermit(#[expect(dead_code, reason = "counted until dropped")] OpenConnection);

impl Permit for OutboundPermit {
    async fn withdrawn(&self) -> ConnectionError {
        pending().await
    }
}

/// The event of a connection whose destination is not known yet.
struct PendingEvent {
    recorder: Rc<Recorder>,
    facts: ConnectionFacts,
    started: Instant,
}

impl From<PendingEvent> for ConnectionEvent {
    fn from(event: PendingEvent) -> Self {
        Self::opened(&event.recorder, event.facts, event.started)
    }
}
