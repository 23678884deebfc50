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
use std::time::Duration;

use http::HeaderMap;
use identity::Credentials;
use mesh::ClientAddr;
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};
use tunnel::Handshake;

use super::{Client, Established, Stream, serve};
use crate::request::{ConnectRequest, Engine, IncomingRequest};
use crate::settings::Http2;

const HTTP2: Http2 = Http2 {
    streams: 100,
    stream_window: 1 << 20,
    connection_window: 1 << 30,
    frame: 64 << 10,
    growth: 16 << 20,
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
    let established = established.await.unwrap();
    let (client, task) = Client::start(established, peer, HTTP2, 1000, pending()).unwrap();
    tokio::task::spawn_local(task);
    client
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

/// Writes until nothing is accepted for a while; returns how much was.
async fn fill(stream: &mut (impl AsyncWrite + Unpin)) -> usize {
    let (mut accepted, chunk) = (0, [7; 10_000]);
    while let Ok(written) = timeout(Duration::from_millis(50), stream.write(&chunk)).await {
        accepted += written.unwrap();
    }
    accepted
}

#[test]
fn every_stream_gets_rid_of_some_bytes_while_the_peer_reads_nothing() {
    run(async |credentials| {
        const MAX_UNSENT: usize = 256 << 10;
        let (here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let gate = Rc::new(Gate::default());
        let client = connect_on(Gated(here, gate.clone()), &credentials).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(open(&client).await.into_io(None));
        }
        settle().await;
        gate.is_closed.set(true);
        let mut sent = vec![fill(&mut streams[0]).await];
        assert!((MAX_UNSENT..MAX_UNSENT + 10_000).contains(&sent[0]));
        for stream in &mut streams[1..] {
            // The others wait until the tunnel is stalled.
            stream.write_all(&[7; 200_000]).await.unwrap();
            sent.push(200_000 + fill(stream).await);
        }
        assert!(sent[1..].iter().all(|sent| *sent == MAX_UNSENT));
        sent[0] += fill(&mut streams[0]).await;
        assert!((2 * MAX_UNSENT..2 * MAX_UNSENT + 10_000).contains(&sent[0]));
        gate.open();
        let theirs = served.take().into_iter().map(|stream| stream.into_io(None));
        let mut theirs: Vec<_> = theirs.collect();
        for (stream, sent) in theirs.iter_mut().zip(&sent) {
            let mut data = vec![0; *sent];
            stream.read_exact(&mut data).await.unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
        }
        // Afterwards the limit is the usual one.
        gate.is_closed.set(true);
        let sent = fill(&mut streams[1]).await;
        assert!((MAX_UNSENT..MAX_UNSENT + 10_000).contains(&sent));
    });
}

/// Lets other tasks do something. Other than [`yield_now`], it does not wait until none is ready.
async fn pass() {
    let mut has_passed = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_passed, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn keys_change_under_load_from_both_ends() {
    run(async |credentials| {
        const LENGTH: usize = 8 << 20;
        let (here, there) = duplex(1 << 20);
        let served = serve_on(there, credentials.clone());
        let client = connect_on(Gated(here, Rc::default()), &credentials).await;
        let (ours, refreshing) = (open(&client).await, open(&client).await);
        settle().await;
        let mut served = served.take();
        let (theirs, refreshing_too) = (served.remove(0), served.remove(0));
        let updates = Rc::new(Cell::new(0));
        let counted = updates.clone();
        spawn_local(async move {
            loop {
                for end in [&refreshing, &refreshing_too] {
                    let updated = end.handle.update(|tunnel| tunnel.refresh_traffic_keys());
                    updated.unwrap();
                    counted.set(counted.get() + 1);
                }
                for _ in 0..4 {
                    pass().await;
                }
            }
        });
        let bulk = |stream: Stream, byte: u8| {
            spawn_local(async move {
                let (mut read, mut write) = tokio::io::split(stream.into_io(None));
                let sending = async { write.write_all(&vec![byte; LENGTH]).await.unwrap() };
                let mut data = vec![0; LENGTH];
                let receiving = async { read.read_exact(&mut data).await.unwrap() };
                tokio::join!(sending, receiving);
                data
            })
        };
        let (ours, theirs) = (bulk(ours, 1), bulk(theirs, 2));
        assert!(ours.await.unwrap().iter().all(|byte| *byte == 2));
        assert!(theirs.await.unwrap().iter().all(|byte| *byte == 1));
        assert!(updates.get() > 10, "{} key updates", updates.get());
    });
}

/// Passes bytes on with a delay.
async fn delay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        sleep(Duration::from_millis(5)).await;
        to.write_all(&buffer[..length]).await.unwrap();
    }
}

#[test]
fn the_window_of_a_distant_peer_grows() {
    run(async |credentials| {
        let (here, near) = duplex(16 << 20);
        let (far, there) = duplex(16 << 20);
        let ((near_read, near_write), (far_read, far_write)) =
            (tokio::io::split(near), tokio::io::split(far));
        spawn_local(delay(near_read, far_write));
        spawn_local(delay(far_read, near_write));
        let served = serve_on(there, credentials.clone());
        let client = connect_on(Gated(here, Rc::default()), &credentials).await;
        let mut ours = open(&client).await.into_io(None);
        settle().await;
        let mut theirs = served.take().remove(0).into_io(None);
        // On a busy machine, the bytes of one round may come too slowly for the window to grow.
        let growing = async {
            let bulk = vec![7; 16 << 20];
            let mut data = bulk.clone();
            loop {
                let sending = ours.write_all(&bulk);
                let (sent, received) = tokio::join!(sending, theirs.read_exact(&mut data));
                sent.unwrap();
                received.unwrap();
                sleep(Duration::from_millis(50)).await; // what it was granted last arrives
                let window = fill(&mut ours).await;
                if window > 2 * HTTP2.stream_window as usize {
                    break;
                }
                theirs.read_exact(&mut data[..window]).await.unwrap();
            }
        };
        let grown = timeout(Duration::from_secs(60), growing).await;
        grown.expect("the window grows");
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
