//! A fake waypoint or gateway: accepts tunnels, records the destinations of their streams, and
//! either echoes or forwards the data.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use netns::NetNs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::certificates::acceptor;
use crate::listener::connect_async;
use crate::sandbox::{Sandbox, until};

/// What to do with a stream.
#[derive(Debug, Clone)]
pub enum StreamAction {
    /// Send a line with this text, then echo all data.
    Echo(&'static str),
    /// Forward it to this address, from within the same pod.
    ForwardTo(SocketAddr),
}

/// A fake waypoint. It serves until the process exits.
#[derive(Debug, Clone, Default)]
pub struct FakeWaypoint(Arc<Mutex<Vec<(String, HeaderMap)>>>);

impl FakeWaypoint {
    /// Listens at an address of a pod that is not captured, with the given identity.
    pub fn start(
        sandbox: &Sandbox,
        pod: &str,
        at: SocketAddr,
        identity: &str,
        then: StreamAction,
    ) -> Self {
        let (netns, acceptor) = (sandbox.pod(pod), acceptor(sandbox, identity));
        // An IPv6 address is usable only when the kernel has found no duplicate.
        let bind = || netns.run(|| std::net::TcpListener::bind(at)).unwrap().ok();
        let listener = until("the address is usable", bind);
        listener.set_nonblocking(true).unwrap();
        let waypoint = Self::default();
        let this = waypoint.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let netns = Arc::new(netns);
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    let (this, acceptor, then, netns) =
                        (this.clone(), acceptor.clone(), then.clone(), netns.clone());
                    tokio::task::spawn_local(async move {
                        let Ok(tls) = acceptor.accept(tcp).await else {
                            return;
                        };
                        let Ok(mut tunnel) = h2::server::handshake(tls).await else {
                            return;
                        };
                        while let Some(Ok((request, respond))) = tunnel.accept().await {
                            this.record(&request);
                            tokio::task::spawn_local(serve(
                                request,
                                respond,
                                then.clone(),
                                netns.clone(),
                            ));
                        }
                    });
                }
            });
        });
        waypoint
    }

    fn record(&self, request: &Request<RecvStream>) {
        self.0
            .lock()
            .unwrap()
            .push((request.uri().to_string(), request.headers().clone()));
    }

    /// Authorities and headers of the streams opened since the last call.
    pub fn seen(&self) -> Vec<(String, HeaderMap)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Authorities of the streams opened since the last call.
    pub fn authorities(&self) -> Vec<String> {
        self.seen()
            .into_iter()
            .map(|(authority, _)| authority)
            .collect()
    }
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    then: StreamAction,
    netns: Arc<NetNs>,
) {
    let Ok(mut send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let mut body = request.into_body();
    match then {
        StreamAction::Echo(greeting) => {
            let _ = send.send_data(Bytes::from(format!("{greeting}\n")), false);
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                let _ = send.send_data(bytes, false);
            }
            let _ = send.send_data(Bytes::new(), true);
        }
        StreamAction::ForwardTo(to) => {
            let (read, mut write) = dial(&netns, to).await.into_split();
            let down = tokio::task::spawn_local(forward_response(read, send));
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                if write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
            let _ = down.await;
        }
    }
}

async fn forward_response(mut read: tokio::net::tcp::OwnedReadHalf, mut send: SendStream<Bytes>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = read.read(&mut buffer).await {
        if send
            .send_data(Bytes::copy_from_slice(&buffer[..n]), false)
            .is_err()
        {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

/// Connects from within a pod with the proxy's mark.
pub async fn dial(from: &NetNs, to: SocketAddr) -> TcpStream {
    let connected = connect_async(from, to, Some(istio::mark::PROXY)).await;
    connected.unwrap()
}

/// The address at which the proxy of a pod accepts tunnels.
pub fn hbone(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, istio::port::HBONE)
}
