//! Tunnels opened by other proxies to a pod of this node.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hbone::{Accepted, IncomingRequest};
use identity::{Credentials, KeyUsage, peer_identity};
use mesh::admit::{Admission, ProxyHeader, admit};
use mesh::authorize::Connection;
use mesh::baggage::Baggage;
use mesh::{
    ClientAddr, Identity, Mesh, PodAddr, ServerAddr, TunnelAddr, Workload, is_gateway_of_network,
};
use telemetry::{ConnectionEvent, ConnectionFacts, Direction, Reporter, Side, log_tunnel_failure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::accept::Incoming;
use super::connection::{claimed_side, is_own_port, source_side, until_terminated, wait_for_pod};
use super::error::{ConnectionError, RevokedPeer};
use super::handshake::TlsError;
use super::join::Acceptance;
use super::options::SameNode;
use super::policy_enforcer::{Admitted, Permit};
use super::relay::{self, TunnelRequest};
use super::worker::{Lifecycle, Worker};
use crate::inpod::Pod;

/// The peer of a tunnel, shared by all its streams.
struct Peer {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    client: ClientAddr,
    /// The local address of the tunnel, which is one of the pod's.
    local: TunnelAddr,
    identity: Identity,
    /// True once the peer's certificate is revoked.
    revoked: watch::Receiver<bool>,
}

/// Serves an accepted tunnel until it closes.
pub(super) async fn serve(worker: Rc<Worker>, incoming: Incoming<TcpStream>) {
    let Incoming {
        pod,
        stream,
        peer: client,
        ..
    } = incoming;
    let Ok(local) = stream.local_addr() else {
        return;
    };
    let local = TunnelAddr::from(local);
    let _open = match pod.budget.open() {
        Ok(open) => open,
        Err(e) => return log_tunnel_failure(client, local, &e),
    };
    let credentials = match pod.credentials().await {
        Ok(credentials) => credentials,
        Err(e) => return log_tunnel_failure(client, local, &ConnectionError::from(e)),
    };
    let (accepted, identity) = match handshake(&worker, &credentials, stream, client).await {
        Ok(done) => done,
        Err(error) => {
            if matches!(error, ConnectionError::Revoked(_)) {
                worker.proxy.metrics.count_revoked(Reporter::destination);
            }
            return log_tunnel_failure(client, local, &error);
        }
    };
    let chain = accepted.peer_chain();
    let (revoke, revoked) = watch::channel(false);
    let peer = Rc::new(Peer {
        worker: worker.clone(),
        pod: pod.clone(),
        client,
        local,
        identity,
        revoked,
    });
    let mut lifecycle = worker.proxy.lifecycle.clone();
    let drain = async {
        // An error means that the sender was dropped on exit, which is equivalent.
        let _ = lifecycle.wait_for(|l| *l != Lifecycle::Serving).await;
    };
    let handle = |incoming: IncomingRequest| {
        let peer = peer.clone();
        peer.worker.clone().track(serve_stream(peer, incoming));
    };
    let http2 = worker.proxy.options.http2();
    let serving = pin!(accepted.serve(client, http2, drain, handle));
    tokio::select! {
        result = pod.budget.turns.take(worker.index, serving) => match result {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                log_tunnel_failure(client, local, &ConnectionError::TunnelBroken(Arc::new(e)));
            }
            Err(e) => tracing::debug!(peer = %client, "tunnel closed: {e}"),
        },
        _ = until_terminated(&worker, &pod) => {}
        revoked = credentials.until_revoked(chain, KeyUsage::client_auth()) => {
            let error = ConnectionError::Revoked(revoked.into());
            tracing::warn!(peer = %client, "closing tunnel: {error}");
            let _ = revoke.send(true); // the tunnel may have no streams
        }
    }
}

/// Performs the TLS handshake and returns the client's identity.
async fn handshake(
    worker: &Worker,
    credentials: &Credentials,
    stream: TcpStream,
    from: ClientAddr,
) -> Result<(Accepted, Identity), ConnectionError> {
    let failed = |cause: TlsError| {
        if cause.is_revoked() {
            ConnectionError::Revoked(RevokedPeer::Unknown)
        } else {
            ConnectionError::AcceptTls { from, cause }
        }
    };
    let engine = worker.proxy.options.tunnel_engine();
    let accepted = hbone::accept(stream, credentials.server.clone(), engine).await;
    let accepted = accepted.map_err(|e| failed(e.into()))?;
    let identity = peer_identity(Some(&accepted.peer_chain()));
    let identity = identity.ok_or_else(|| failed(TlsError::NoIdentity))?;
    Ok((accepted, identity))
}

/// Serves one CONNECT request until its stream closes.
async fn serve_stream(peer: Rc<Peer>, incoming: IncomingRequest) {
    let started = Instant::now();
    let (worker, pod) = (&peer.worker, &peer.pod);

    // What is requested, and by which client.
    let pod_included = wait_for_pod(worker, pod).await;
    let mesh = worker.proxy.mesh.load_full();
    let workload = pod.workload(&mesh);
    let target = pod_included.and_then(|()| target(&peer, &incoming, &mesh, &workload));
    let requested = target.as_ref().ok().map(|t| t.destination.0);
    let port = requested.map_or(0, |to| to.port());
    let service = mesh.service_of(&workload, service_name(&incoming).as_deref(), port);
    let facts = ConnectionFacts {
        direction: Direction::Inbound,
        client: peer.client,
        source: source(&peer, &incoming, &mesh, &workload),
        requested_addr: requested.unwrap_or(peer.local.0).into(),
        destination_addr: peer.local.into(),
        authority: requested.map(Into::into),
        destination: Side::workload(&workload, Some(workload.identity())),
        service: service.cloned(),
        delayed: None, // if the tunnel was, this connection may be far younger
    };
    let event = ConnectionEvent::opened(&worker.recorder, facts, started);

    // Whether policies allow it.
    let admitted = target.and_then(|target| {
        let connection = Connection {
            client: peer.client,
            identity: Some(peer.identity.clone()),
            destination: target.destination,
        };
        let permit = worker.policy.admit(&mesh, pod, connection)?;
        Ok(AdmittedRequest { permit, target })
    });
    let open = pod.budget.open();
    let admitted =
        admitted.and_then(|request| open.as_ref().map(|_| request).map_err(Clone::clone));

    // Connect to the application and relay.
    let join = accept_join(&peer, &incoming);
    let request = TunnelRequest {
        join,
        incoming,
        baggage_of: worker.proxy.options.response_baggage.then_some(workload),
        account: pod.budget.account(),
    };
    let terminated = async {
        tokio::select! {
            reason = until_terminated(worker, pod) => reason,
            reason = until_revoked(&peer) => reason,
        }
    };
    let connect = async |admitted: &AdmittedRequest, _: &mut ConnectionEvent| {
        let connected = connect(&peer, admitted).await;
        connected.map_err(ConnectionError::connecting(admitted.target.connect))
    };
    relay::connect_and_relay(worker, pod, admitted, request, event, terminated, connect).await;
}

/// The offer of the client's end to join the connection, if this process made it.
fn accept_join(peer: &Peer, incoming: &IncomingRequest) -> Option<Acceptance> {
    let proxy = &peer.worker.proxy;
    if proxy.options.same_node != SameNode::Join {
        return None;
    }
    let token = incoming.headers().get(hbone::JOIN)?.to_str().ok()?;
    proxy.joins.take(token, &peer.identity, peer.local)
}

/// Completes when the peer's certificate is revoked.
async fn until_revoked(peer: &Peer) -> ConnectionError {
    match peer.revoked.clone().wait_for(|revoked| *revoked).await {
        Ok(_) => ConnectionError::Revoked(RevokedPeer::Verified(peer.identity.clone())),
        Err(_) => std::future::pending().await, // the tunnel closed for another reason
    }
}

/// The host name of the service that the client connects to: that of the request, which another
/// network needs, or else what the client's proxy reports.
fn service_name(incoming: &IncomingRequest) -> Option<String> {
    let (host, _) = incoming.authority()?;
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return hbone::forwarded_host(incoming.headers());
    }
    Some(host.trim_end_matches('.').to_owned())
}

/// Describes the client. A client in another network describes itself, if it is behind a gateway
/// that the mesh names: its address is the gateway's. The claims of others are ignored, because
/// metrics would show whatever they say, in as many series.
fn source(peer: &Peer, incoming: &IncomingRequest, mesh: &Mesh, workload: &Workload) -> Side {
    let headers = incoming.headers();
    let network = headers
        .get(hbone::FORWARDED_NETWORK)
        .and_then(|v| v.to_str().ok());
    let (ip, identity) = (peer.client.ip(), Some(peer.identity.clone()));
    if network.is_none_or(|n| n.eq_ignore_ascii_case(&workload.network)) {
        return source_side(mesh, workload, ip, identity);
    }
    let is_trusted =
        peer.worker.proxy.options.response_baggage && is_gateway_of_network(mesh, ip, workload);
    let claims = if is_trusted {
        let values = headers.get_all("baggage").iter();
        Baggage::decode(values.filter_map(|v| v.to_str().ok()))
    } else {
        Baggage::default()
    };
    claimed_side(identity, claims)
}

/// The destination of a request within the pod.
struct InboundTarget {
    /// The destination that policies apply to.
    destination: PodAddr,
    /// The address to connect to.
    connect: ServerAddr,
    /// The PROXY protocol header to send first, if any.
    header: Option<ProxyHeader>,
}

/// A request that policies allow.
struct AdmittedRequest {
    permit: Admitted,
    target: InboundTarget,
}

impl Permit for AdmittedRequest {
    async fn withdrawn(&self) -> ConnectionError {
        self.permit.withdrawn().await
    }
}

/// Connects to the application, from the client's address or else sending a PROXY protocol header.
async fn connect(peer: &Peer, admitted: &AdmittedRequest) -> io::Result<TcpStream> {
    let AdmittedRequest { permit, target } = admitted;
    let Some(header) = &target.header else {
        return permit.connect(&peer.pod, target.connect).await;
    };
    let mut upstream = pod_socket::connect(&peer.pod, target.connect).await?;
    let header = mesh::proxy_protocol::header(permit.client, &peer.identity, header);
    upstream.write_all(&header).await?;
    Ok(upstream)
}

/// Determines the target of a request, or the error to reject it with.
fn target(
    peer: &Peer,
    incoming: &IncomingRequest,
    mesh: &Mesh,
    workload: &Workload,
) -> Result<InboundTarget, ConnectionError> {
    let Some((host, port)) = incoming.authority() else {
        return Err(ConnectionError::InvalidRequest);
    };
    let decision = admit(mesh, workload, peer.local.ip(), host, port);
    let Admission::Here {
        destination,
        connect,
        header,
    } = decision.outcome.clone()
    else {
        return Err(ConnectionError::NotInPod(Box::new(decision)));
    };
    if is_own_port(&peer.worker.proxy, destination.port()) {
        return Err(ConnectionError::SelfCall(destination.into()));
    }
    let connect = if peer.worker.proxy.options.localhost_app_tunnel {
        connect.into()
    } else {
        destination.into()
    };
    Ok(InboundTarget {
        destination,
        connect,
        header,
    })
}
