//! Opening tunnels, and streams on them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh::Text;
use rustls::pki_types::{IpAddr as TlsIp, Ipv4Addr as TlsIpv4, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use webpki::KeyUsage;

use super::error::ConnectionError;
use super::sockets;
use super::worker::Worker;
use crate::hbone::{HboneIo, Http2, OpenError, Opened, Opening, Tunnel, TunnelKey};
use crate::identity::{explain, is_revoked};
use crate::inpod::Pod;

const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// A stream to the destination. A pooled tunnel may turn out to be closing: then once more, on a new one, for nothing of
/// the connection has been sent yet.
pub(super) async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    key: &TunnelKey,
    opening: &Opening,
) -> Result<Opened, ConnectionError> {
    for last in [false, true] {
        let tunnel = match &key.inner {
            None => worker.pool.get(key, || start(worker.node.options.http2(), pod.clone(), key.clone())).await?,
            Some(_) => worker.pool.get(key, || start_within(worker.clone(), pod.clone(), key.clone())).await?,
        };
        match tunnel.open(opening).await {
            Err(OpenError::Ended(_)) if !last => worker.pool.discard(key, &tunnel),
            done => return done.map_err(ConnectionError::Tunnel),
        }
    }
    unreachable!("the last attempt returns")
}

/// A tunnel to a proxy.
async fn start(http2: Http2, pod: Arc<Pod>, key: TunnelKey) -> Result<Tunnel, ConnectionError> {
    let to = key.to.0;
    let unreachable = |e: std::io::Error| {
        let hint =
            if e.kind() == std::io::ErrorKind::TimedOut { " (a NetworkPolicy may block port 15008)" } else { "" };
        ConnectionError::ConnectTunnel { to, why: format!("{e}{hint}") }
    };
    let tcp = sockets::connect(&pod, to, None).await.map_err(unreachable)?;
    secure(http2, &pod, &key, &key.expected, tcp).await
}

/// A tunnel within a tunnel: the outer one ends at the gateway of a network, the inner one at the proxy of the destination.
/// All connections to the same destination share both.
async fn start_within(worker: Rc<Worker>, pod: Arc<Pod>, key: TunnelKey) -> Result<Tunnel, ConnectionError> {
    let outer = TunnelKey { inner: None, ..key.clone() };
    let http2 = worker.node.options.http2();
    let Some(inner) = &key.inner else { return start(http2, pod, outer).await };
    for last in [false, true] {
        let tunnel = worker.pool.get(&outer, || start(http2, pod.clone(), outer.clone())).await?;
        // Nothing is said of the client here: many will share it, and each says it inside.
        let opening = Opening {
            authority: inner.authority.clone(),
            baggage: String::new(),
            forwarded: String::new(),
            network: None,
        };
        match tunnel.open(&opening).await {
            Ok(Opened { stream, count, .. }) => {
                return secure(http2, &pod, &key, &inner.expected, HboneIo::new(stream, count)).await;
            }
            Err(OpenError::Ended(_)) if !last => worker.pool.discard(&outer, &tunnel),
            Err(e) => return Err(ConnectionError::Tunnel(e)),
        }
    }
    unreachable!("the last attempt returns")
}

/// TLS to one of `expected`, and HTTP/2 in it.
async fn secure<I>(
    http2: Http2,
    pod: &Pod,
    key: &TunnelKey,
    expected: &[Text],
    io: I,
) -> Result<Tunnel, ConnectionError>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let tls_failed = |why: String| ConnectionError::Tls { with: key.to.0, why };
    let credentials = pod.credentials().await?;
    let config = credentials.client(expected).map_err(|e| tls_failed(e.to_string()))?;
    // Never sent: SNI is off, and the certificate is verified by its SPIFFE id.
    let name = ServerName::IpAddress(TlsIp::V4(TlsIpv4::from([0, 0, 0, 0])));
    let handshake = timeout(TLS_DEADLINE, TlsConnector::from(config).connect(name, io));
    let tls = handshake.await.map_err(|_| tls_failed(format!("not done within {} s", TLS_DEADLINE.as_secs())))?;
    let tls = tls.map_err(|e| match is_revoked(&e) {
        true => ConnectionError::Revoked(expected.iter().map(Text::as_str).collect::<Vec<_>>().join(" or ")),
        false => tls_failed(explain(&e)),
    })?;
    let peer = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let to = key.to;
    let revoked = async move {
        let who = credentials.until_revoked(peer, KeyUsage::server_auth()).await;
        tracing::warn!(peer = %to, "a tunnel is cut: {}", ConnectionError::Revoked(who));
    };
    Tunnel::start(tls, key.to.0, http2, revoked).await.map_err(|e| ConnectionError::TunnelBroke(e.to_string()))
}
