//! Opening tunnels and streams on them.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hbone::{
    ConnectRequest, EstablishedStream, InnerKey, OpenError, Reason, Transport, Tunnel, TunnelKey,
    TunnelTask,
};
use identity::KeyUsage;
use mesh::{Text, TunnelAddr};
use tokio::task::spawn_local;

use super::error::{ConnectionError, RevokedPeer};
use super::handshake::TlsError;
use super::worker::{OpenTunnel, Worker};
use crate::inpod::Pod;

/// Opens a stream to the destination. `reached` is whether there is a tunnel
/// to the peer, which is not known to be silent.
pub(super) async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    key: &TunnelKey,
    request: &ConnectRequest,
    reached: &Cell<bool>,
) -> Result<EstablishedStream, ConnectionError> {
    match &key.inner {
        None => {
            let open = || open_tunnel(worker.clone(), pod.clone(), key.clone());
            open_stream(worker, key, request, open, reached).await
        }
        Some(inner) => {
            let open =
                || open_nested_tunnel(worker.clone(), pod.clone(), key.clone(), inner.clone());
            open_stream(worker, key, request, open, reached).await
        }
    }
}

/// Opens a stream on a pooled tunnel or on one that `open_tunnel` opens. Pooled tunnels that turn
/// out to be closing or silent are skipped, and a failure on a new one is retried once, which is
/// safe because none of the connection's data has been sent yet.
async fn open_stream<F>(
    worker: &Worker,
    key: &TunnelKey,
    request: &ConnectRequest,
    open_tunnel: impl Fn() -> F,
    reached: &Cell<bool>,
) -> Result<EstablishedStream, ConnectionError>
where
    F: Future<Output = Result<Tunnel, ConnectionError>> + 'static,
{
    let began = Instant::now();
    let mut retried = false;
    loop {
        let tunnel = worker.pool.get(key, &open_tunnel).await?;
        let is_pooled = tunnel.opened() < began;
        reached.set(true);
        match tunnel.open(request, is_pooled).await {
            Err(OpenError::Closed(_)) if is_pooled || !retried => {
                worker.pool.discard(key, &tunnel);
                retried |= !is_pooled;
            }
            // The pool does not use it again until the peer is heard.
            Err(OpenError::Silent) => reached.set(false),
            Err(OpenError::Reset(Reason::REFUSED_STREAM)) if !retried => retried = true,
            result => return result.map_err(ConnectionError::Tunnel),
        }
    }
}

/// Opens a tunnel to a proxy.
async fn open_tunnel(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    key: TunnelKey,
) -> Result<Tunnel, ConnectionError> {
    let tcp =
        pod_socket::connect(&pod, key.to)
            .await
            .map_err(|e| ConnectionError::ConnectTunnel {
                to: key.to,
                cause: Arc::new(e),
            })?;
    start_tunnel(&worker, &pod, key.to, &key.expected, tcp).await
}

/// Opens a nested tunnel: the outer one ends at a network gateway, the inner one at the
/// destination's proxy. All connections to the same destination share both.
async fn open_nested_tunnel(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    key: TunnelKey,
    inner: InnerKey,
) -> Result<Tunnel, ConnectionError> {
    let outer = TunnelKey { inner: None, ..key };
    // Many clients share this stream; each is described in its own request on the inner tunnel.
    let request = ConnectRequest {
        authority: inner.authority,
        baggage: String::new(),
        forwarded: String::new(),
        network: None,
        join: None,
    };
    let open = || open_tunnel(worker.clone(), pod.clone(), outer.clone());
    let opened = open_stream(&worker, &outer, &request, open, &Cell::new(false)).await?;
    start_tunnel(&worker, &pod, outer.to, &inner.expected, opened.stream).await
}

/// Performs a TLS handshake with a peer that has one of the `expected` SPIFFE ids, then starts
/// HTTP/2. The task of the tunnel takes turns with the pod's connections.
async fn start_tunnel(
    worker: &Worker,
    pod: &Pod,
    to: TunnelAddr,
    expected: &[Text],
    transport: impl Into<Transport>,
) -> Result<Tunnel, ConnectionError> {
    let failed = |cause: TlsError| {
        if cause.is_revoked() {
            ConnectionError::Revoked(RevokedPeer::Expected(expected.to_vec()))
        } else {
            ConnectionError::ConnectTls { to, cause }
        }
    };
    let proxy = &worker.proxy;
    let credentials = pod.credentials().await?;
    let config = credentials.client_config(expected);
    let config = config.map_err(|e| failed(e.into()))?;
    let connected = hbone::connect(transport, config, proxy.options.tunnel_engine()).await;
    let connected = connected.map_err(|e| failed(e.into()))?;
    let chain = connected.peer_chain();
    let http2 = proxy.options.http2();
    let counted = OpenTunnel::count(proxy.clone());
    let revoked = async move {
        let _counted = counted; // dropped when the tunnel has closed
        let usage = KeyUsage::server_auth();
        let revoked = credentials.until_revoked(chain, usage).await;
        tracing::warn!(peer = %to, "closing tunnel: {}", ConnectionError::Revoked(revoked.into()));
    };
    let (budget, index) = (pod.budget.clone(), worker.index);
    let spawn = move |task: TunnelTask| {
        spawn_local(async move { budget.turns.take(index, pin!(task)).await });
    };
    let tunnel = connected.start(to, http2, revoked, spawn).await;
    tunnel.map_err(|e| ConnectionError::TunnelBroken(Arc::new(e)))
}
