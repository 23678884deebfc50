//! Plaintext connections to a pod of this node, from clients outside the mesh.

use std::rc::Rc;

use istio::port;
use mesh::PodAddr;
use mesh::authorize::Connection;
use telemetry::{ConnectionEvent, ConnectionFacts, Direction, Side};
use tokio::net::TcpStream;

use super::accept::Incoming;
use super::connection::{is_own_port, source_side, until_terminated, wait_for_pod};
use super::error::ConnectionError;
use super::policy_enforcer::Admitted;
use super::upstream::Upstream;
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
    let Ok(orig_dst) = pod_socket::orig_dst(&stream, port::INBOUND) else {
        return;
    };
    if mesh::probe::is_inbound_probe(orig_dst) {
        return probe::answer(stream, &pod).await;
    }
    let pod_included = wait_for_pod(&worker, &pod).await;
    let mesh = worker.proxy.mesh.load_full();
    let workload = pod.workload(&mesh);
    let facts = ConnectionFacts {
        direction: Direction::Inbound,
        client,
        source: source_side(&mesh, &workload, client.ip(), None),
        requested_addr: orig_dst,
        destination_addr: orig_dst.into(),
        authority: None,
        destination: Side::workload(&workload, None),
        service: mesh.service_of(&workload, None, orig_dst.port()).cloned(),
        delayed,
    };
    let event = ConnectionEvent::opened(&worker.recorder, facts, started);
    let connection = Connection {
        client,
        identity: None,
        destination: PodAddr(orig_dst.0),
    };
    let permit = if is_own_port(&worker.proxy, orig_dst.port()) {
        Err(ConnectionError::SelfCall(orig_dst.into()))
    } else {
        pod_included.and_then(|()| worker.policy.admit(&mesh, &pod, connection))
    };
    let open = pod.budget.open();
    let permit = permit.and_then(|permit| open.as_ref().map(|_| permit).map_err(Clone::clone));
    let connect = async |permit: &Admitted, _: &mut ConnectionEvent| {
        let connected = permit.connect(&pod, orig_dst).await;
        connected
            .map(Upstream::Plain)
            .map_err(ConnectionError::connecting(orig_dst))
    };
    let terminated = until_terminated(&worker, &pod);
    relay::connect_and_relay(&worker, &pod, permit, stream, event, terminated, connect).await;
}
