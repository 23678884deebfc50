//! From a listening socket in a pod to the task that serves the connection: [`accept`] on the pod's
//! home worker, [`dispatch`] to the next worker in turn, [`receive`] there, and [`serve`].

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use error_code::proxy::TOO_MANY_NEW;
use istio::port;
use mesh::ClientAddr;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::budget::Budget;
use super::dns_client::DnsClient;
use super::worker::{Lifecycle, ProxyState, Worker, WorkerCommand};
use super::{inbound, outbound, passthrough, probe};
use crate::inpod::Pod;

/// Pause after `accept` failed because descriptors or memory ran out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The kind of connection that a listening socket in a pod accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ListenerKind {
    /// Connections opened by the pod.
    Outbound,
    /// Plaintext connections to the pod.
    Inbound,
    /// Tunnels to the pod.
    Hbone,
    /// DNS queries of the pod over TCP.
    Dns,
}

impl ListenerKind {
    /// The port of the listening socket.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Outbound => port::OUTBOUND,
            Self::Inbound => port::INBOUND,
            Self::Hbone => port::HBONE,
            Self::Dns => port::DNS,
        }
    }
}

/// An accepted connection on its way to the worker that serves it. `S` is its socket: registered
/// with a worker's runtime, or between two of them.
pub(crate) struct Incoming<S> {
    pub(super) pod: Arc<Pod>,
    kind: ListenerKind,
    pub(super) stream: S,
    pub(super) peer: ClientAddr,
    pub(super) started: Instant,
    /// Code of the budget for which it was accepted late, if it was.
    pub(super) delayed: Option<&'static str>,
}

impl<S> Incoming<S> {
    fn try_map<T>(self, convert: impl FnOnce(S) -> io::Result<T>) -> io::Result<Incoming<T>> {
        Ok(Incoming {
            pod: self.pod,
            kind: self.kind,
            stream: convert(self.stream)?,
            peer: self.peer,
            started: self.started,
            delayed: self.delayed,
        })
    }
}

/// Accepts connections until the pod leaves or the proxy drains.
pub(super) async fn accept(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    kind: ListenerKind,
    socket: std::net::TcpListener,
) {
    let _open = OpenListener::count(&worker.proxy);
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(e) => {
            return tracing::error!(
                pod = pod.uid,
                "cannot register {kind:?} listener with the runtime: {e}"
            );
        }
    };
    let (mut has_left, mut lifecycle) = (pod.has_left.clone(), worker.proxy.lifecycle.clone());
    let stopped = async {
        tokio::select! {
            _ = has_left.wait_for(|left| *left) => {}
            _ = lifecycle.wait_for(|l| *l != Lifecycle::Serving) => {}
        }
    };
    tokio::pin!(stopped);
    let incoming = |stream, peer: SocketAddr| Incoming {
        pod: pod.clone(),
        kind,
        stream,
        peer: peer.into(),
        started: Instant::now(),
        delayed: None,
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let mut incoming = incoming(stream, peer);
                let is_stopped = match pause_of(&pod, incoming.started) {
                    Some(pause) => {
                        incoming.delayed = Some(TOO_MANY_NEW.code);
                        timeout(pause, &mut stopped).await.is_ok()
                    }
                    None => false,
                };
                dispatch(&worker, incoming);
                if is_stopped {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                tracing::error!(
                    event = "accept_failed",
                    pod = pod.uid,
                    "cannot accept {kind:?} connection: {e}"
                );
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    if *pod.has_left.borrow() {
        return;
    }
    // Closing the socket resets the connections that wait in its queue, whose clients consider them
    // open.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            let registered = stream.set_nonblocking(true);
            if let Ok(stream) = registered.and_then(|()| TcpStream::from_std(stream)) {
                dispatch(&worker, incoming(stream, peer));
            }
        }
    }
}

/// How long a connection that was accepted in a pod waits, and with it those behind it in the queue
/// of its socket; `None` if it need not. The pod's sockets take turns: many connections to one of
/// them do not block those to another.
fn pause_of(pod: &Pod, now: Instant) -> Option<Duration> {
    let pause = pod.budget.accept(now)?;
    if pause.is_first {
        let (code, setting) = (TOO_MANY_NEW, Budget::NewConnections.setting());
        tracing::warn!(
            event = "accepting_delayed",
            pod = pod.uid,
            "{code}: the pod has more new connections per second than its limit ({setting}): they \
             wait until they are accepted"
        );
    }
    Some(pause.duration)
}

/// Counts a listening socket as open for as long as it lives.
struct OpenListener(Arc<ProxyState>);

impl OpenListener {
    fn count(proxy: &Arc<ProxyState>) -> Self {
        proxy.listeners.fetch_add(1, Ordering::Relaxed);
        Self(proxy.clone())
    }
}

impl Drop for OpenListener {
    fn drop(&mut self) {
        // After the connections that it accepted were counted.
        self.0.listeners.fetch_sub(1, Ordering::Release);
    }
}

/// Hands a connection to the next worker in turn, possibly this one.
fn dispatch(worker: &Rc<Worker>, incoming: Incoming<TcpStream>) {
    let Some(next) = worker.next_worker() else {
        return serve(worker.clone(), incoming);
    };
    let peer = incoming.peer;
    match incoming.try_map(TcpStream::into_std) {
        Ok(incoming) => {
            // Sending cannot fail, because workers live as long as the process.
            let _ = next.send(WorkerCommand::Serve(incoming, worker.count_open()));
        }
        Err(e) => tracing::error!(%peer, "cannot pass connection to another worker: {e}"),
    }
}

/// Receives a connection from the worker that accepted it.
pub(super) fn receive(worker: Rc<Worker>, incoming: Incoming<std::net::TcpStream>) {
    let peer = incoming.peer;
    match incoming.try_map(TcpStream::from_std) {
        Ok(incoming) => serve(worker, incoming),
        Err(e) => tracing::error!(%peer, "cannot register connection with the runtime: {e}"),
    }
}

/// Spawns the task that serves a connection.
fn serve(worker: Rc<Worker>, incoming: Incoming<TcpStream>) {
    if probe::is_direct_probe(&incoming.stream, incoming.peer) {
        return worker.track(async move { probe::answer(incoming.stream, &incoming.pod).await });
    }
    let tracker = worker.clone();
    match incoming.kind {
        ListenerKind::Outbound => tracker.track(outbound::serve(worker, incoming)),
        ListenerKind::Inbound => tracker.track(passthrough::serve(worker, incoming)),
        ListenerKind::Hbone => tracker.track(inbound::serve(worker, incoming)),
        ListenerKind::Dns => {
            let pod = incoming.pod;
            let client = DnsClient { worker, pod };
            tracker.track(dns::serve_tcp(client, incoming.stream, incoming.peer.0));
        }
    }
}
