//! Peers that do not keep to the protocol: how far they get before, and what they do then.

use std::io;
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::http2_frames::{
    ACK, END_HEADERS, HEADERS, PREFACE, SETTINGS, connect_block, frame, read,
};
use crate::raw_tunnel::{accepted, data};
use crate::tls_client::{Certificate, TlsOptions, handshake};

/// How far a peer gets before it becomes faulty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connected.
    Tcp,
    /// Within the first message of TLS.
    Hello,
    /// After the handshake.
    Tls,
    /// After the settings of HTTP/2.
    Settings,
    /// A stream is open, and data was sent on it.
    Stream,
}

/// What a peer does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Neither sends nor reads.
    Silent,
    /// Sends random bytes, and does not read.
    Garbage,
    /// Closes the connection.
    Closes,
    /// Resets the connection.
    Resets,
}

/// A way to fail.
#[derive(Debug)]
pub struct Fault {
    /// Where.
    pub stage: Stage,
    /// What.
    pub defect: Defect,
    /// For how long a peer is silent before it closes the connection.
    hold: Duration,
    rng: Rng,
}

/// The start of a TLS record with a ClientHello or ServerHello, the rest of which does not come.
const HALF_HELLO: [u8; 16] = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0];

impl Fault {
    /// A random one, with a silence of up to this many milliseconds.
    pub fn random(rng: &mut Rng, longest_hold: u64) -> Self {
        use {Defect::*, Stage::*};
        let stages = [Tcp, Hello, Tls, Settings, Stream];
        let defects = [Silent, Garbage, Closes, Resets];
        Self {
            stage: stages[rng.usize(0..stages.len())],
            defect: defects[rng.usize(0..defects.len())],
            hold: Duration::from_millis(rng.u64(0..longest_hold)),
            rng: rng.fork(),
        }
    }

    /// Acts as a client of a proxy on a new connection; requests a stream to this destination.
    ///
    /// # Errors
    /// Those of the connection, which the proxy may close at any time.
    pub async fn play_client(
        mut self,
        mut tcp: TcpStream,
        certificate: Option<Certificate>,
        destination: &str,
    ) -> io::Result<()> {
        self.prepare(&tcp)?;
        if self.stage <= Stage::Hello {
            return self.before_tls(&mut tcp).await;
        }
        let mut tls = handshake(tcp, certificate, TlsOptions::default()).await?;
        if self.stage >= Stage::Settings {
            tls.write_all(PREFACE).await?;
            tls.write_all(&settings()).await?;
        }
        if self.stage == Stage::Stream {
            let block = connect_block(destination);
            tls.write_all(&frame(HEADERS, END_HEADERS, 1, &block))
                .await?;
            tls.write_all(&data(1, &[7; 1000])).await?;
        }
        self.fail(&mut tls).await
    }

    /// Acts as a proxy on a connection that it has accepted.
    ///
    /// # Errors
    /// Those of the connection, which the client may close at any time.
    pub async fn play_server(
        mut self,
        mut tcp: TcpStream,
        acceptor: TlsAcceptor,
    ) -> io::Result<()> {
        self.prepare(&tcp)?;
        if self.stage <= Stage::Hello {
            return self.before_tls(&mut tcp).await;
        }
        let mut tls = acceptor.accept(tcp).await?;
        if self.stage >= Stage::Settings {
            tls.read_exact(&mut [0; PREFACE.len()]).await?;
            tls.write_all(&settings()).await?;
        }
        if self.stage == Stage::Stream {
            let mut next = read(&mut tls).await?;
            while next.kind != HEADERS {
                next = read(&mut tls).await?;
            }
            let answer = [accepted(next.stream, false), data(next.stream, b"hello")];
            tls.write_all(&answer.concat()).await?;
        }
        self.fail(&mut tls).await
    }

    fn prepare(&self, tcp: &TcpStream) -> io::Result<()> {
        let linger = (self.defect == Defect::Resets).then_some(Duration::ZERO);
        SockRef::from(tcp).set_linger(linger)
    }

    async fn before_tls(&mut self, tcp: &mut TcpStream) -> io::Result<()> {
        if self.stage == Stage::Hello {
            tcp.write_all(&HALF_HELLO).await?;
        }
        self.fail(tcp).await
    }

    async fn fail(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.flush().await?;
        match self.defect {
            Defect::Silent => tokio::time::sleep(self.hold).await,
            Defect::Garbage => {
                let length = self.rng.usize(1..4096);
                let garbage: Vec<u8> = (0..length).map(|_| self.rng.u8(..)).collect();
                stream.write_all(&garbage).await?;
                stream.flush().await?;
                tokio::time::sleep(self.hold).await;
            }
            Defect::Closes => stream.shutdown().await?,
            Defect::Resets => {}
        }
        Ok(())
    }
}

fn settings() -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()
}
