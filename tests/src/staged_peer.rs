//! A fake HBONE proxy, at either end of a tunnel, that stops at a stage of it. It is then silent,
//! or ends the TCP connection of the tunnel.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use netns::NetNs;
use netns::sockopt::{reset_on_close, unacknowledged};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::acceptor;
use crate::http2_frames::{
    self, ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, SETTINGS,
    connect_block, frame,
};
use crate::listener::connect_async;
use crate::raw_tunnel::{accepted, data, end};
use crate::sandbox::{Sandbox, until};
use crate::tls_client::{Certificate, TlsOptions, handshake};

/// How far a tunnel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The TCP connection is open.
    Connected,
    /// The TLS handshake has begun: the server has read the ClientHello, the client has sent a part
    /// of it.
    ClientHello,
    /// The server has sent a part of its answer, the client does not read it.
    ServerHello,
    /// The TLS handshake is complete.
    Tls,
    /// The HTTP/2 settings are sent.
    Settings,
    /// The server has received a CONNECT, the client has sent a part of it.
    Request,
    /// A stream is open, on which the peer has sent something.
    Data,
    /// The peer has half-closed the stream as well.
    HalfClose,
    /// The peer has asked for no more streams as well, and the stream is open.
    GoAway,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The TCP connection stays open, and nothing is sent or read.
    Silence,
    /// It is closed without the end of TLS.
    Fin,
    /// TLS is ended and it is closed.
    CloseNotify,
    /// It is reset.
    Reset,
}

/// Where a tunnel stops.
pub type Stop = (Stage, Then);

/// A fake server of tunnels. It serves until the process exits: each stream sends what was given,
/// and ends with the client's half.
#[derive(Debug, Clone, Default)]
pub struct StagedServer {
    stops: Arc<Mutex<Stops>>,
    opened: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Stops {
    next: VecDeque<Stop>,
    always: Option<Stop>,
}

impl StagedServer {
    /// Listens at an address of a pod that is not captured. Streams send `sent`.
    pub fn start(
        sandbox: &Sandbox,
        pod: &str,
        at: SocketAddr,
        identity: &str,
        sent: &[u8],
    ) -> Self {
        let (netns, acceptor) = (sandbox.pod(pod), acceptor(sandbox, identity));
        // An IPv6 address is usable only when the kernel has found no duplicate.
        let bind = || netns.run(|| std::net::TcpListener::bind(at)).unwrap().ok();
        let listener = until("the address is usable", bind);
        listener.set_nonblocking(true).unwrap();
        let (this, sent) = (Self::default(), Arc::<[u8]>::from(sent));
        let server = this.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    server.opened.fetch_add(1, Ordering::SeqCst);
                    let stop = {
                        let mut stops = server.stops.lock().unwrap();
                        stops.next.pop_front().or(stops.always)
                    };
                    let (acceptor, sent) = (acceptor.clone(), sent.clone());
                    tokio::spawn(async move { serve(tcp, acceptor, stop, &sent).await });
                }
            });
        });
        this
    }

    /// Stops the next tunnels, one of them at each of these.
    pub fn stop_next(&self, stops: impl IntoIterator<Item = Stop>) {
        self.stops.lock().unwrap().next.extend(stops);
    }

    /// Stops all other tunnels.
    pub fn stop_all(&self, stop: Stop) {
        self.stops.lock().unwrap().always = Some(stop);
    }

    /// How many connections were accepted.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, stop: Option<Stop>, sent: &[u8]) {
    let stage = stop.map(|stop| stop.0);
    let control = Control::of(&tcp);
    let limits = match stage {
        Some(Stage::Connected) => [0, 0],
        Some(Stage::ClientHello) => [usize::MAX, 0],
        Some(Stage::ServerHello) => [usize::MAX, 100],
        _ => [usize::MAX; 2],
    };
    let mut tls = acceptor.accept(Limited::new(tcp, limits)).await.ok();
    if let Some(io) = &mut tls {
        let _ = serve_streams(io, stage, sent).await; // an error is the end of the tunnel
    }
    if let Some((_, then)) = stop {
        control.end(tls, then).await;
    }
}

/// Returns when the stage is reached.
async fn serve_streams(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    stage: Option<Stage>,
    sent: &[u8],
) -> io::Result<()> {
    if stage == Some(Stage::Tls) {
        return Ok(());
    }
    io.read_exact(&mut [0; PREFACE.len()]).await?;
    let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])];
    io.write_all(&settings.concat()).await?;
    io.flush().await?;
    if stage == Some(Stage::Settings) {
        return Ok(());
    }
    loop {
        let next = http2_frames::read(io).await?;
        let mut answer = match next.kind {
            HEADERS if stage == Some(Stage::Request) => return Ok(()),
            HEADERS => [accepted(next.stream, false), data(next.stream, sent)].concat(),
            DATA if next.flags & END_STREAM != 0 => end(next.stream),
            PING if next.flags & ACK == 0 => frame(PING, ACK, 0, &next.payload),
            _ => continue,
        };
        if next.kind == HEADERS {
            match stage {
                Some(Stage::HalfClose) => answer.extend(end(next.stream)),
                Some(Stage::GoAway) => answer.extend(go_away(next.stream)),
                _ => {}
            }
        }
        io.write_all(&answer).await?;
        io.flush().await?;
        if next.kind == HEADERS && stage.is_some() {
            return Ok(());
        }
    }
}

fn go_away(last: u32) -> Vec<u8> {
    let no_error = 0_u32.to_be_bytes();
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), no_error].concat())
}

/// A fake client of a tunnel, which has stopped at a stage.
#[derive(Debug)]
pub struct StagedClient {
    control: Control,
    tls: Option<tokio_rustls::client::TlsStream<Limited>>,
}

impl StagedClient {
    /// Opens a tunnel to a pod from within another one, and on it a stream to `to`, which sends
    /// `sent`, as far as that.
    pub async fn open(
        netns: &NetNs,
        certificate: Certificate,
        to: SocketAddr,
        stage: Stage,
        sent: &[u8],
    ) -> Self {
        let proxy = SocketAddr::new(to.ip(), istio::port::HBONE);
        let tcp = connect_async(netns, proxy, Some(istio::mark::PROXY)).await;
        let tcp = tcp.unwrap();
        let control = Control::of(&tcp);
        let limits = match stage {
            Stage::Connected => [0, 0],
            Stage::ClientHello => [0, 100],
            Stage::ServerHello => [0, usize::MAX],
            _ => [usize::MAX; 2],
        };
        let io = Limited::new(tcp, limits);
        let tls = handshake(io, Some(certificate), TlsOptions::default()).await;
        let mut this = Self {
            control,
            tls: tls.ok(),
        };
        if let Some(io) = &mut this.tls {
            request(io, to, stage, sent).await.unwrap();
        }
        this
    }

    /// Waits until the peer has ended the tunnel.
    pub async fn ended(&mut self) {
        match &mut self.tls {
            Some(tls) => drain(tls).await,
            None => self.control.ended().await,
        }
    }

    /// Ends the tunnel.
    pub async fn end(self, then: Then) {
        self.control.end(self.tls, then).await;
    }
}

/// Sends a request as far as a stage.
async fn request(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    to: SocketAddr,
    stage: Stage,
    sent: &[u8],
) -> io::Result<()> {
    if stage == Stage::Tls {
        return Ok(());
    }
    let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])];
    io.write_all(&[&PREFACE[..], &settings.concat()].concat())
        .await?;
    let block = connect_block(&to.to_string());
    match stage {
        Stage::Settings => {}
        Stage::Request => io.write_all(&frame(HEADERS, 0, 1, &block)).await?,
        _ => {
            io.write_all(&frame(HEADERS, END_HEADERS, 1, &block))
                .await?;
            io.flush().await?;
            while http2_frames::read(io).await?.kind != HEADERS {}
            io.write_all(&data(1, sent)).await?;
        }
    }
    match stage {
        Stage::HalfClose => io.write_all(&end(1)).await?,
        Stage::GoAway => io.write_all(&go_away(0)).await?,
        _ => {}
    }
    io.flush().await
}

/// The TCP connection of a tunnel.
#[derive(Debug)]
struct Control(std::net::TcpStream);

impl Control {
    fn of(tcp: &TcpStream) -> Self {
        Self(tcp.as_fd().try_clone_to_owned().unwrap().into())
    }

    async fn end(self, tls: Option<impl AsyncRead + AsyncWrite + Unpin>, then: Then) {
        match (then, tls) {
            (Then::Silence, _tls) => std::future::pending().await,
            (Then::Reset, tls) => {
                self.acknowledged().await; // a kernel discards what it has not sent
                reset_on_close(&self.0).unwrap();
                drop(tls);
            }
            (Then::CloseNotify, Some(mut tls)) => {
                let _ = tls.shutdown().await; // the peer may have closed it
                drain(&mut tls).await;
            }
            (Then::Fin | Then::CloseNotify, _tls) => {
                let _ = self.0.shutdown(Shutdown::Write); // as above
                self.ended().await;
            }
        }
    }

    async fn acknowledged(&self) {
        // An error: the peer has reset the connection.
        while unacknowledged(&self.0).is_ok_and(|bytes| bytes > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until the peer has ended the connection.
    async fn ended(&self) {
        self.0.set_nonblocking(true).unwrap();
        let mut tcp = TcpStream::from_std(self.0.try_clone().unwrap()).unwrap();
        drain(&mut tcp).await;
    }
}

/// Reads until the end.
async fn drain(from: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(1..) = from.read(&mut buffer).await {}
}

/// A connection on which a limited number of bytes are read and written.
#[derive(Debug)]
struct Limited {
    tcp: TcpStream,
    reads: usize,
    writes: usize,
}

impl Limited {
    fn new(tcp: TcpStream, [reads, writes]: [usize; 2]) -> Self {
        Self { tcp, reads, writes }
    }
}

impl AsyncRead for Limited {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.reads == 0 {
            return Poll::Ready(Err(ErrorKind::Other.into()));
        }
        Pin::new(&mut this.tcp).poll_read(cx, to)
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.writes == 0 {
            return Poll::Ready(Err(ErrorKind::Other.into()));
        }
        let written =
            Pin::new(&mut this.tcp).poll_write(cx, &bytes[..bytes.len().min(this.writes)]);
        if let Poll::Ready(Ok(length)) = written {
            this.writes -= length;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
