//! A pod of ours connects somewhere.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh::baggage::Baggage;
use mesh::route::{Route, route};
use mesh::{Mesh, OrigDst, Service, Text, Workload};
use rustls::pki_types::{IpAddr as TlsIp, Ipv4Addr as TlsIpv4, ServerName};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use webpki::KeyUsage;

use super::connection::{Accepted, cut_short, is_own_port};
use super::error::ConnectionError;
use super::worker::Worker;
use super::{probe, relay, sockets};
use crate::hbone::{HboneStream, OpenError, Opening, StreamCount, Tunnel, TunnelKey};
use crate::identity::{explain, is_revoked};
use crate::inpod::{PORTS, Pod};
use crate::telemetry::{Direction, Event, Facts, Side};

const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// From the accepted connection to its end.
pub(super) async fn serve(accepted: Accepted) {
    let Accepted { worker, pod, stream, peer, started } = accepted;
    let Ok(orig_dst) = sockets::orig_dst(&stream, PORTS.outbound) else { return };
    if mesh::probe::is_probe(orig_dst) {
        return probe::answer(stream, &pod).await;
    }
    let mesh = demanded(&worker, &pod, orig_dst).await;
    let source = pod.workload(&mesh);
    let decision = route(&mesh, &source, orig_dst, rand::random());
    let mut facts = Facts {
        direction: Direction::Outbound,
        client: peer.into(),
        source: Side::workload(&source, None),
        destination_addr: orig_dst.0,
        authority: None,
        destination: Side::default(),
        service: None,
    };
    let to_ourselves = is_own_port(&worker.node, orig_dst.port())
        && (orig_dst.ip().is_loopback() || source.workload_ips.contains(&orig_dst.ip()));
    if to_ourselves {
        let event = Event::opened(&worker.node.metrics, facts, started);
        let _ = netns::sockopt::reset_on_close(&stream);
        return event.finish(&Err(ConnectionError::SelfCall(orig_dst.0)));
    }
    tracing::debug!(from = source.namespaced_name(), to = %orig_dst, "route: {}", decision.reason);
    match decision.outcome {
        Route::Tunnel { tunnel, authority, expected, workload, service } => {
            facts.source.identity = Some(pod.identity());
            facts.destination = Side::workload(&workload, Some(workload.identity()));
            facts.destination_addr = tunnel.0;
            facts.authority = Some(authority);
            facts.service.clone_from(&service);
            let event = Event::opened(&worker.node.metrics, facts, started);
            let opening = Opening {
                authority,
                baggage: Baggage::from(&*source).encode(),
                forwarded: forwarded(peer, service.as_deref()),
            };
            let key = TunnelKey { pod: pod.uid.clone(), to: tunnel, expected };
            let cut = cut_short(&worker, &pod);
            tokio::pin!(cut);
            let opened = tokio::select! {
                opened = open(&worker, &pod, &key, &opening) => opened,
                why = &mut cut => Err(why),
            };
            let outcome = match opened {
                Ok((upstream, _count)) => relay::downstream_to_hbone(stream, upstream, &event, cut).await,
                Err(e) => {
                    let _ = netns::sockopt::reset_on_close(&stream);
                    Err(e)
                }
            };
            event.finish(&outcome);
        }
        Route::Direct { to, workload, service } => {
            facts.destination_addr = to.0;
            facts.destination = workload.as_deref().map(|w: &Workload| Side::workload(w, None)).unwrap_or_default();
            facts.service = service;
            let event = Event::opened(&worker.node.metrics, facts, started);
            let cut = cut_short(&worker, &pod);
            tokio::pin!(cut);
            let connected = tokio::select! {
                connected = sockets::connect(&pod, to.0, None) => connected.map_err(|e| ConnectionError::Connect { to: to.0, why: e.to_string() }),
                why = &mut cut => Err(why),
            };
            let outcome = match connected {
                Ok(upstream) => relay::downstream_to_upstream(stream, upstream, &event, cut).await,
                Err(e) => {
                    let _ = netns::sockopt::reset_on_close(&stream);
                    Err(e)
                }
            };
            event.finish(&outcome);
        }
        Route::Refuse { service } => {
            facts.service = service;
            let event = Event::opened(&worker.node.metrics, facts, started);
            let _ = netns::sockopt::reset_on_close(&stream);
            event.finish(&Err(ConnectionError::NoUpstream(decision.reason)));
        }
    }
}

/// The mesh, with what is needed for this connection where that has to be asked for.
async fn demanded(worker: &Worker, pod: &Pod, to: OrigDst) -> Arc<Mesh> {
    let mesh = worker.node.mesh.load_full();
    let Some(demand) = &worker.node.demand else { return mesh };
    let network = &pod.workload(&mesh).network;
    if mesh.workload_by_ip(network, to.ip()).is_some() || mesh.service_by_vip(network, to.ip()).is_some() {
        return mesh;
    }
    demand.address(network, to.ip()).await;
    worker.node.mesh.load_full()
}

/// A stream to the destination. A pooled tunnel may turn out to be closing: then once more, on a new one, for nothing of
/// the connection has been sent yet.
async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    key: &TunnelKey,
    opening: &Opening,
) -> Result<(HboneStream, StreamCount), ConnectionError> {
    for last in [false, true] {
        let tunnel = worker.pool.get(key, || start_tunnel(pod.clone(), key.clone())).await?;
        match tunnel.open(opening).await {
            Err(OpenError::Ended(_)) if !last => worker.pool.discard(key, &tunnel),
            done => return done.map_err(ConnectionError::Tunnel),
        }
    }
    unreachable!("the last attempt returns")
}

async fn start_tunnel(pod: Arc<Pod>, key: TunnelKey) -> Result<Tunnel, ConnectionError> {
    let to = key.to.0;
    let unreachable = |e: std::io::Error| {
        let hint =
            if e.kind() == std::io::ErrorKind::TimedOut { " (a NetworkPolicy may block port 15008)" } else { "" };
        ConnectionError::ConnectTunnel { to, why: format!("{e}{hint}") }
    };
    let credentials = pod.credentials().await?;
    let tcp = sockets::connect(&pod, to, None).await.map_err(unreachable)?;
    let tls_failed = |why: String| ConnectionError::Tls { with: to, why };
    let config = credentials.client(&key.expected).map_err(|e| tls_failed(e.to_string()))?;
    // Never sent: SNI is off, and the certificate is verified by its SPIFFE id.
    let name = ServerName::IpAddress(TlsIp::V4(TlsIpv4::from([0, 0, 0, 0])));
    let handshake = timeout(TLS_DEADLINE, TlsConnector::from(config).connect(name, tcp));
    let tls = handshake.await.map_err(|_| tls_failed(format!("not done within {} s", TLS_DEADLINE.as_secs())))?;
    let tls = tls.map_err(|e| match is_revoked(&e) {
        true => ConnectionError::Revoked(key.expected.iter().map(Text::as_str).collect::<Vec<_>>().join(" or ")),
        false => tls_failed(explain(&e)),
    })?;
    let peer = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let revoked = async move {
        let who = credentials.until_revoked(peer, KeyUsage::server_auth()).await;
        tracing::warn!("a tunnel is cut: {}", ConnectionError::Revoked(who));
    };
    Tunnel::start(tls, revoked).await.map_err(|e| ConnectionError::TunnelBroke(e.to_string()))
}

fn forwarded(client: SocketAddr, service: Option<&Service>) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    match service {
        Some(service) => format!("for=\"{client}\";host={}", service.hostname),
        None => format!("for=\"{client}\""),
    }
}
