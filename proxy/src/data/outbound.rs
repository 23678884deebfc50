//! A pod of ours connects somewhere.

use super::connection::{Accepted, cut_short, is_fresh, is_own_port};
use super::error::ConnectionError;
use super::upstream::{Attempt, Upstream};
use super::{probe, relay, sockets};
use crate::inpod::PORTS;
use crate::telemetry::{Direction, Event, Facts, Side};

/// From the accepted connection to its end.
pub(super) async fn serve(accepted: Accepted) {
    let Accepted { worker, pod, stream, peer, started } = accepted;
    let Ok(orig_dst) = sockets::orig_dst(&stream, PORTS.outbound) else { return };
    if mesh::probe::is_probe(orig_dst) {
        return probe::answer(stream, &pod).await;
    }
    let source = pod.workload(&worker.node.mesh.load());
    let mut facts = Facts {
        direction: Direction::Outbound,
        client: peer.into(),
        source: Side::workload(&source, None),
        asked_for: orig_dst.0,
        destination_addr: orig_dst.0,
        authority: None,
        destination: Side::default(),
        service: None,
    };
    let to_ourselves = is_own_port(&worker.node, orig_dst.port())
        && (orig_dst.ip().is_loopback() || source.workload_ips.contains(&orig_dst.ip()));
    let cut = cut_short(&worker, &pod);
    tokio::pin!(cut);
    let connected = if to_ourselves {
        Err(ConnectionError::SelfCall(orig_dst.0))
    } else if let Err(too_old) = is_fresh(&worker.node) {
        Err(too_old)
    } else {
        let attempt = Attempt { worker: &worker, pod: &pod, source: &source, orig_dst, client: peer, started };
        tokio::select! {
            connected = attempt.connect(&mut facts) => connected,
            why = &mut cut => Err(why),
        }
    };
    let event = Event::opened(&worker.node.metrics, facts, started);
    let outcome = match connected {
        Ok(Upstream::Tunnel(upstream, _count)) => relay::downstream_to_hbone(stream, upstream, &event, cut).await,
        Ok(Upstream::Plain(upstream)) => relay::downstream_to_upstream(stream, upstream, &event, cut).await,
        Err(e) => {
            let _ = netns::sockopt::reset_on_close(&stream); // closed already
            Err(e)
        }
    };
    event.finish(&outcome);
}
