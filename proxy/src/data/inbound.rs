//! A peer's proxy connects to a pod of ours through a tunnel.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh::authorize::Connection;
use mesh::baggage::Baggage;
use mesh::{ClientAddr, Identity, PodAddr};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use webpki::KeyUsage;

use super::connection::{Accepted, cut_short, is_own_port, source_side};
use super::error::ConnectionError;
use super::worker::{Phase, Worker};
use super::{policed, relay, sockets};
use crate::hbone::{self, Incoming};
use crate::identity::{explain, is_revoked, peer_identity};
use crate::inpod::Pod;
use crate::telemetry::{Direction, Event, Facts, Side};

const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// What all streams of a tunnel have in common.
struct Peer {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    client: ClientAddr,
    /// Where the tunnel was accepted: an address of the pod.
    local: SocketAddr,
    identity: Identity,
    /// True when the certificate that proved it is revoked.
    revoked: watch::Receiver<bool>,
}

/// Serves a tunnel until it ends.
pub(super) async fn serve(accepted: Accepted) {
    let Accepted { worker, pod, stream, peer, .. } = accepted;
    let Ok(local) = stream.local_addr() else { return };
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let credentials = match pod.credentials().await {
        Ok(credentials) => credentials,
        Err(e) => return early_end(peer, local, &e.into()),
    };
    let tls = match timeout(TLS_DEADLINE, TlsAcceptor::from(credentials.server.clone()).accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) if is_revoked(&e) => {
            return early_end(peer, local, &ConnectionError::Revoked("the peer".to_owned()));
        }
        Ok(Err(e)) => return early_end(peer, local, &ConnectionError::Tls { with: peer, why: explain(&e) }),
        Err(_) => {
            return early_end(peer, local, &ConnectionError::Tls { with: peer, why: "not done in time".to_owned() });
        }
    };
    let Some(identity) = peer_identity(tls.get_ref().1.peer_certificates()) else {
        let why = "the peer proved no identity".to_owned(); // the verifier has seen one
        return early_end(peer, local, &ConnectionError::Tls { with: peer, why });
    };
    let chain =
        tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let (revoke, revoked) = watch::channel(false);
    let peer =
        Rc::new(Peer { worker: worker.clone(), pod: pod.clone(), client: peer.into(), local, identity, revoked });
    let mut phase = worker.node.phase.clone();
    let drain = async {
        let _ = phase.wait_for(|p| *p != Phase::Serving).await; // the end of everything is a drain, too
    };
    let handle = |incoming: Incoming| {
        let peer = peer.clone();
        peer.worker.clone().track(stream_of(peer, incoming));
    };
    tokio::select! {
        over = hbone::serve(tls, drain, handle) => if let Err(e) = over {
            tracing::debug!(peer = %peer.client, "a tunnel ended: {e}");
        },
        _ = cut_short(&worker, &pod) => {}
        who = credentials.until_revoked(chain, KeyUsage::client_auth()) => {
            tracing::warn!(peer = %peer.client, "a tunnel is cut: {}", ConnectionError::Revoked(who));
            let _ = revoke.send(true); // it has no stream
        }
    }
}

fn early_end(peer: SocketAddr, local: SocketAddr, error: &ConnectionError) {
    tracing::event!(target: "access", tracing::Level::WARN, src.addr = %ClientAddr::from(peer), dst.addr = %local, direction = "inbound", error = error.to_string().as_str(), "connection failed");
}

/// One CONNECT, from the request to the end of its bytes.
async fn stream_of(peer: Rc<Peer>, incoming: Incoming) {
    let started = Instant::now();
    let mesh = peer.worker.node.mesh.load_full();
    let pod = &peer.pod;
    let workload = pod.workload(&mesh);
    let headers = incoming.headers().get_all("baggage");
    let says = Baggage::decode(headers.iter().filter_map(|v| v.to_str().ok()));
    let mut facts = Facts {
        direction: Direction::Inbound,
        client: peer.client,
        source: source_side(&mesh, &workload, peer.client.ip(), Some(peer.identity.clone()), says),
        destination_addr: peer.local,
        authority: None,
        destination: Side::workload(&workload, Some(workload.identity())),
        service: mesh.service_of(&workload).cloned(),
    };
    let destination = match destination(&peer, &incoming, &mesh) {
        Ok(destination) => destination,
        Err((status, error)) => {
            incoming.refuse(status);
            return Event::opened(&peer.worker.node.metrics, facts, started).finish(&Err(error));
        }
    };
    facts.authority = Some(destination);
    let event = Event::opened(&peer.worker.node.metrics, facts, started);
    let connection = Connection { client: peer.client, identity: Some(peer.identity.clone()), destination };
    let mut registration = peer.worker.policed.register(pod.clone(), connection.clone());
    if let Err(denied) = policed::check(&mesh, pod, &connection) {
        incoming.refuse(StatusCode::UNAUTHORIZED);
        return event.finish(&Err(denied));
    }
    let cut = async {
        tokio::select! {
            why = registration.denied() => why,
            why = cut_short(&peer.worker, pod) => why,
            why = revoked(&peer) => why,
        }
    };
    tokio::pin!(cut);
    let connected = tokio::select! {
        connected = sockets::connect(pod, destination.0, Some(peer.client)) =>
            connected.map_err(|e| ConnectionError::Connect { to: destination.0, why: e.to_string() }),
        why = &mut cut => Err(why),
    };
    let outcome = match connected {
        Ok(upstream) => match incoming.accept(&Baggage::from(&*workload).encode()) {
            Ok(downstream) => relay::hbone_to_upstream(downstream, upstream, &event, cut).await,
            Err(e) => Err(e.into()),
        },
        Err(e) => {
            incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
            Err(e)
        }
    };
    event.finish(&outcome);
}

/// Completes when the peer's certificate is revoked.
async fn revoked(peer: &Peer) -> ConnectionError {
    match peer.revoked.clone().wait_for(|revoked| *revoked).await {
        Ok(_) => ConnectionError::Revoked(peer.identity.to_string()),
        Err(_) => std::future::pending().await, // the tunnel has ended otherwise
    }
}

/// What the peer asks for, if it is something in this pod.
fn destination(peer: &Peer, incoming: &Incoming, mesh: &mesh::Mesh) -> Result<PodAddr, (StatusCode, ConnectionError)> {
    let refuse = |status, why: String| Err((status, ConnectionError::Serving(why)));
    let Some((host, port)) = incoming.authority() else {
        return refuse(StatusCode::BAD_REQUEST, "no CONNECT to an address with a port".to_owned());
    };
    let own = peer.local.ip();
    let port = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if ip.to_canonical() == own => port,
        Ok(ip) => return refuse(StatusCode::BAD_REQUEST, format!("ip mismatch: {ip} is asked for and {own} is here")),
        Err(_) => {
            let workload = peer.pod.workload(mesh);
            match mesh.target_port(&workload, host, port) {
                Some(port) => port,
                None => return refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{host}:{port} is not served here")),
            }
        }
    };
    let destination = SocketAddr::new(own, port);
    if is_own_port(&peer.worker.node, port) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, ConnectionError::SelfCall(destination)));
    }
    Ok(PodAddr(destination))
}
