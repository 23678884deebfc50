//! Somebody outside the mesh connects to a pod of ours in plain text.

use mesh::authorize::Connection;
use mesh::baggage::Baggage;
use mesh::{ClientAddr, PodAddr};
use netns::sockopt::reset_on_close;

use super::connection::{Accepted, cut_short, is_own_port, known, source_side};
use super::error::ConnectionError;
use super::{relay, sockets};
use crate::inpod::PORTS;
use crate::telemetry::{Direction, Event, Facts, Side};

/// From the accepted connection to its end.
pub(super) async fn serve(accepted: Accepted) {
    let Accepted { worker, pod, stream, peer, started } = accepted;
    let Ok(orig_dst) = sockets::orig_dst(&stream, PORTS.inbound) else { return };
    let known = known(&worker, &pod).await;
    let mesh = worker.node.mesh.load_full();
    let workload = pod.workload(&mesh);
    let client = ClientAddr::from(peer);
    let facts = Facts {
        direction: Direction::Inbound,
        client,
        source: source_side(&mesh, &workload, client.ip(), None, Baggage::default()),
        asked_for: orig_dst.0,
        destination_addr: orig_dst.0,
        authority: None,
        destination: Side::workload(&workload, None),
        service: mesh.service_of(&workload).cloned(),
    };
    let event = Event::opened(&worker.node.metrics, facts, started);
    let connection = Connection { client, identity: None, destination: PodAddr(orig_dst.0) };
    let admitted = match is_own_port(&worker.node, orig_dst.port()) {
        true => Err(ConnectionError::SelfCall(orig_dst.0)),
        false => known.and_then(|()| worker.policed.admit(&mesh, &pod, connection)),
    };
    let mut registration = match admitted {
        Ok(registration) => registration,
        Err(error) => {
            let _ = reset_on_close(&stream); // closed already
            return event.finish(&Err(error));
        }
    };
    let cut = async {
        tokio::select! {
            why = registration.denied() => why,
            why = cut_short(&worker, &pod) => why,
        }
    };
    tokio::pin!(cut);
    let connected = tokio::select! {
        connected = sockets::connect(&pod, orig_dst.0, Some(client)) =>
            connected.map_err(|e| ConnectionError::Connect { to: orig_dst.0, why: e.to_string() }),
        why = &mut cut => Err(why),
    };
    let outcome = match connected {
        Ok(upstream) => relay::downstream_to_upstream(stream, upstream, &event, cut).await,
        Err(e) => {
            let _ = reset_on_close(&stream); // closed already
            Err(e)
        }
    };
    event.finish(&outcome);
}
