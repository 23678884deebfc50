#[path = "../../../tunnel/tests/support/credentials.rs"]
mod credentials;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::HeaderMap;
use identity::Credentials;
use mesh::ClientAddr;
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tunnel::Handshake;

use super::{Client, Established, Stream, serve};
use crate::request::{ConnectRequest, Engine, IncomingRequest};
use crate::settings::Http2;

const HTTP2: Http2 = Http2 {
    streams: 100,
    stream_window: 1 << 20,
    connection_window: 200 << 20,
    frame: 64 << 10,
};

/// A transport whose writes are counted, and can be blocked.
struct Gated(DuplexStream, Rc<Gate>);

#[derive(Default)]
struct Gate {
    writes: Cell<usize>,
    is_closed: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Gate {
    fn open(&self) {
        self.is_closed.set(false);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.1.is_closed.get() {
            *self.1.waiting.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.1.writes.set(self.1.writes.get() + 1);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Arc<Credentials>) -> F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().build().unwrap();
    let test = async { test(credentials::credentials().await).await };
    runtime.block_on(LocalSet::new().run_until(test));
}

fn name() -> ServerName<'static> {
    ServerName::try_from("10.0.0.1").unwrap()
}

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 15008))
}

/// The streams that a server has accepted.
type Streams = Rc<RefCell<Vec<Stream>>>;

/// Serves a connection in a task of its own.
fn serve_on(io: DuplexStream, credentials: Arc<Credentials>) -> Streams {
    let streams = Streams::default();
    let accepted = streams.clone();
    spawn_local(async move {
        let handle = |IncomingRequest(request)| {
            if let Engine::Own(request) = request {
                accepted.borrow_mut().push(request.accept(None).unwrap());
            }
        };
        let established = Established::accept(Box::new(io), &credentials.server);
        let established = established.await.unwrap();
        let peer = ClientAddr::from(address());
        serve(established, peer, HTTP2, 1000, pending(), handle).await
    });
    streams
}

async fn connect_on(io: Gated, credentials: &Credentials) -> Client {
    let config = credentials::client_config(credentials);
    let established = Established::connect(Box::new(io), &config, name());
    let peer = address().into();
    Client::start(established.await.unwrap(), peer, HTTP2, 1000, pending()).unwrap()
}

async fn open(client: &Client) -> Stream {
    let request = ConnectRequest {
        authority: address().into(),
        baggage: String::new(),
        forwarded: String::new(),
        network: None,
        join: None,
    };
    client.open(&request, false).await.ok().unwrap().0
}

/// Lets all tasks do what they can.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

#[test]
fn what_all_streams_send_in_a_turn_is_written_at_once() {
    run(async |credentials| {
        let (here, there) = duplex(1 << 20);
        let gate = Rc::new(Gate::default());
        let served = serve_on(there, credentials.clone());
        let client = connect_on(Gated(here, gate.clone()), &credentials).await;
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(open(&client).await.into_io(None));
        }
        settle().await;
        let before = gate.writes.get();
        for stream in &mut streams {
            stream.write_all(&[7; 100]).await.unwrap();
        }
        settle().await;
        assert_eq!(gate.writes.get(), before + 1);
        for stream in served.take() {
            let mut data = [0; 100];
            stream.into_io(None).read_exact(&mut data).await.unwrap();
            assert_eq!(data, [7; 100]);
        }
    });
}

#[test]
fn a_stream_that_is_complete_survives_its_tunnel() {
    run(async |credentials| {
        let (here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let client = connect_on(Gated(here, Rc::default()), &credentials).await;
        let ours = open(&client).await;
        ours.handle.finish();
        settle().await;
        let mut theirs = served.take().remove(0).into_io(None);
        theirs.write_all(b"last").await.unwrap();
        theirs.shutdown().await.unwrap();
        settle().await;
        drop((client, theirs));
        settle().await;
        let end = poll_fn(|cx| Poll::Ready(ours.handle.poll_end(cx).is_ready())).await;
        assert!(!end, "the end of the tunnel is not one of the stream");
        let mut data = Vec::new();
        ours.into_io(None).read_to_end(&mut data).await.unwrap();
        assert_eq!(data, b"last");
    });
}

#[test]
fn a_tunnel_ends_only_when_everything_is_sent() {
    run(async |credentials| {
        let (here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let gate = Rc::new(Gate::default());
        let client = connect_on(Gated(here, gate.clone()), &credentials).await;
        let connection = client.connection();
        let mut ours = open(&client).await.into_io(None);
        let theirs = served.take().remove(0);
        theirs.handle.finish();
        settle().await;
        gate.is_closed.set(true);
        ours.write_all(&[7; 100_000]).await.unwrap();
        ours.shutdown().await.unwrap();
        drop((client, ours));
        settle().await;
        assert!(connection.drive(|state| state.ended.is_none()));
        gate.open();
        let mut data = Vec::new();
        theirs.into_io(None).read_to_end(&mut data).await.unwrap();
        assert_eq!(data, [7; 100_000]);
        settle().await;
        assert!(connection.drive(|state| state.ended.is_some()));
    });
}

#[test]
fn a_stream_that_is_open_ends_with_its_tunnel() {
    run(async |credentials| {
        let (here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let client = connect_on(Gated(here, Rc::default()), &credentials).await;
        let ours = open(&client).await;
        let theirs = served.take().remove(0);
        ours.handle.update(|tunnel| tunnel.close());
        let error = theirs.into_io(None).read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(client.max_streams(), 0);
    });
}

#[test]
fn frames_that_arrive_with_the_handshake_are_handled() {
    run(async |credentials| {
        let (mut here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let config = credentials::client_config(&credentials);
        let mut handshake = Handshake::client(&config, name()).unwrap();
        here.write_all(handshake.output()).await.unwrap();
        handshake.sent(handshake.output().len());
        let mut buffer = vec![0; 16 << 10];
        while !handshake.is_complete() {
            let length = here.read(&mut buffer).await.unwrap();
            handshake.receive(&buffer[..length]).unwrap();
        }
        let mut bytes = handshake.output().to_vec();
        handshake.sent(bytes.len());
        let config = super::config(&HTTP2, 1, 1 << 14);
        let mut tunnel = handshake.into_tunnel(config, 0).unwrap();
        tunnel.open("10.0.0.1:80", &HeaderMap::new()).unwrap();
        bytes.extend_from_slice(tunnel.output());
        here.write_all(&bytes).await.unwrap();
        settle().await;
        assert_eq!(served.borrow().len(), 1);
    });
}
