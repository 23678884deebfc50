//! A peer's proxy connects to a pod of ours through a tunnel.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh::admit::{Admission, Header, admit};
use mesh::authorize::Connection;
use mesh::baggage::Baggage;
use mesh::{ClientAddr, Identity, Mesh, PodAddr, Workload};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use webpki::KeyUsage;

use super::connection::{Accepted, cut_short, is_own_port, known, source_side, stranger};
use super::error::ConnectionError;
use super::worker::{Phase, Worker};
use super::{proxy_protocol, relay, sockets};
use crate::hbone::{self, Incoming};
use crate::identity::{explain, is_revoked, peer_identity};
use crate::inpod::Pod;
use crate::telemetry::{Direction, Event, Facts, Reporter, Side};

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
            worker.node.metrics.revoked(Reporter::destination);
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
        over = hbone::serve(tls, peer.client.0, worker.node.options.http2(), drain, handle) => match over {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                early_end(peer.client, local, &ConnectionError::TunnelBroke(e.to_string()));
            }
            Err(e) => tracing::debug!(peer = %peer.client, "a tunnel ended: {e}"),
        },
        _ = cut_short(&worker, &pod) => {}
        who = credentials.until_revoked(chain, KeyUsage::client_auth()) => {
            tracing::warn!(peer = %peer.client, "a tunnel is cut: {}", ConnectionError::Revoked(who));
            let _ = revoke.send(true); // it has no stream
        }
    }
}

fn early_end(peer: impl Into<ClientAddr>, local: SocketAddr, error: &ConnectionError) {
    tracing::event!(target: "access", tracing::Level::WARN, src.addr = %peer.into(), dst.addr = %local, direction = "inbound", error = error.to_string().as_str(), "connection failed");
}

/// One CONNECT, from the request to the end of its bytes.
async fn stream_of(peer: Rc<Peer>, incoming: Incoming) {
    let started = Instant::now();
    let pod = &peer.pod;
    let known = known(&peer.worker, pod).await;
    let mesh = peer.worker.node.mesh.load_full();
    let workload = pod.workload(&mesh);
    let mut facts = Facts {
        direction: Direction::Inbound,
        client: peer.client,
        source: source(&peer, &incoming, &mesh, &workload),
        asked_for: peer.local,
        destination_addr: peer.local,
        authority: None,
        destination: Side::workload(&workload, Some(workload.identity())),
        service: mesh.service_of(&workload).cloned(),
    };
    let asked = match known.map_err(unavailable).and_then(|()| destination(&peer, &incoming, &mesh, &workload)) {
        Ok(asked) => asked,
        Err((status, error)) => {
            incoming.refuse(status);
            return Event::opened(&peer.worker.node.metrics, facts, started).finish(&Err(error));
        }
    };
    facts.authority = Some(asked.destination.0.into());
    facts.asked_for = asked.destination.0;
    let event = Event::opened(&peer.worker.node.metrics, facts, started);
    let connection =
        Connection { client: peer.client, identity: Some(peer.identity.clone()), destination: asked.destination };
    let mut registration = match peer.worker.policed.admit(&mesh, pod, connection) {
        Ok(registration) => registration,
        Err(denied) => {
            incoming.refuse(StatusCode::UNAUTHORIZED);
            return event.finish(&Err(denied));
        }
    };
    let cut = async {
        tokio::select! {
            why = registration.denied() => why,
            why = cut_short(&peer.worker, pod) => why,
            why = revoked(&peer) => why,
        }
    };
    tokio::pin!(cut);
    let connected = tokio::select! {
        connected = connect(&peer, &asked) =>
            connected.map_err(|e| ConnectionError::Connect { to: asked.connect, why: e.to_string() }),
        why = &mut cut => Err(why),
    };
    let baggage = peer.worker.node.options.response_baggage.then(|| Baggage::from(&*workload).encode());
    let outcome = match connected {
        Ok(upstream) => match incoming.accept(baggage.as_deref()) {
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

/// Who the client is. In another network its address may be that of somebody else here.
fn source(peer: &Peer, incoming: &Incoming, mesh: &Mesh, workload: &Workload) -> Side {
    let headers = incoming.headers();
    let believed = peer.worker.node.options.response_baggage;
    let says = headers.get_all("baggage").iter().filter(|_| believed).filter_map(|v| v.to_str().ok());
    let says = Baggage::decode(says);
    let network = headers.get(hbone::FORWARDED_NETWORK).and_then(|v| v.to_str().ok());
    let identity = Some(peer.identity.clone());
    match network.is_none_or(|n| n.eq_ignore_ascii_case(&workload.network)) {
        true => source_side(mesh, workload, peer.client.ip(), identity, says),
        false => stranger(identity, says),
    }
}

/// What a peer asks for, when it is here.
struct Asked {
    destination: PodAddr,
    connect: SocketAddr,
    header: Option<Header>,
}

/// Connects to the application, in the client's name; or tells it who the client is.
async fn connect(peer: &Peer, asked: &Asked) -> io::Result<TcpStream> {
    let Some(told) = &asked.header else {
        return sockets::connect(&peer.pod, asked.connect, Some(peer.client)).await;
    };
    let mut upstream = sockets::connect(&peer.pod, asked.connect, None).await?;
    upstream.write_all(&proxy_protocol::header(peer.client, &peer.identity, told)).await?;
    Ok(upstream)
}

fn unavailable(error: ConnectionError) -> (StatusCode, ConnectionError) {
    (StatusCode::SERVICE_UNAVAILABLE, error)
}

fn destination(
    peer: &Peer,
    incoming: &Incoming,
    mesh: &Mesh,
    workload: &Workload,
) -> Result<Asked, (StatusCode, ConnectionError)> {
    let Some((host, port)) = incoming.authority() else {
        let why = "no CONNECT to an address with a port".to_owned();
        return Err((StatusCode::BAD_REQUEST, ConnectionError::Serving(why)));
    };
    let decision = admit(mesh, workload, peer.local.ip(), host, port);
    match decision.outcome {
        Admission::Here { destination, .. } if is_own_port(&peer.worker.node, destination.port()) => {
            Err(unavailable(ConnectionError::SelfCall(destination.0)))
        }
        Admission::Here { destination, header: Some(header), .. } if !peer.worker.node.options.localhost_app_tunnel => {
            Ok(Asked { destination, connect: destination.0, header: Some(header) })
        }
        Admission::Here { destination, connect, header } => Ok(Asked { destination, connect, header }),
        Admission::Mismatch => Err((StatusCode::BAD_REQUEST, ConnectionError::Serving(decision.reason))),
        Admission::Unavailable => Err(unavailable(ConnectionError::Serving(decision.reason))),
    }
}
