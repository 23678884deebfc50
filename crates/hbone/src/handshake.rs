//! From a connection to an authenticated peer with which HTTP/2 is about to start.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh::{ClientAddr, TunnelAddr};
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::engine::TunnelEngine;
use crate::own_engine::Established;
use crate::request::IncomingRequest;
use crate::settings::Http2;
use crate::stream::{ByteStream, HboneStream};
use crate::tunnel::{self, Tunnel};
use crate::{h2_engine, own_engine, packet};

/// Deadline for the TLS handshake.
const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// What a tunnel runs over.
pub enum Transport {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A stream of another tunnel.
    Stream(HboneStream),
}

impl Transport {
    /// The number of bytes that fill a packet.
    fn write_size(&self) -> usize {
        match self {
            Self::Tcp(tcp) => packet::payload_on(tcp),
            Self::Stream(stream) => packet::payload_within(stream.write_size()),
        }
    }

    fn into_io(self) -> Box<dyn ByteStream> {
        match self {
            Self::Tcp(tcp) => Box::new(tcp),
            Self::Stream(stream) => stream.into_io(),
        }
    }
}

impl From<TcpStream> for Transport {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

impl From<HboneStream> for Transport {
    fn from(stream: HboneStream) -> Self {
        Self::Stream(stream)
    }
}

/// Drives a tunnel that this end has opened.
pub type TunnelTask = Pin<Box<dyn Future<Output = ()>>>;

/// Why a TLS handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer did not complete the handshake. Likely cause: it is overloaded, or no TLS endpoint.
    #[error("no handshake within {} s", TLS_DEADLINE.as_secs())]
    TimedOut,
    /// The handshake failed. Likely cause: one side did not accept the other's certificate.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// An outgoing tunnel whose peer is authenticated.
pub struct Connected(Outgoing);

enum Outgoing {
    Tcp(client::TlsStream<TcpStream>),
    Nested {
        tls: client::TlsStream<Box<dyn ByteStream>>,
        write_size: usize,
    },
    Own {
        established: Established,
        write_size: usize,
    },
}

/// Performs the TLS handshake of an outgoing tunnel. `tls` must verify the peer by something else
/// than its name, for which it gets a placeholder.
///
/// # Errors
/// If the peer is not accepted, or does not answer in time.
pub async fn connect(
    transport: impl Into<Transport>,
    tls: Arc<ClientConfig>,
    engine: TunnelEngine,
) -> Result<Connected, HandshakeError> {
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
    let transport = transport.into();
    if engine.for_provider(tls.crypto_provider()) == TunnelEngine::Own {
        let write_size = transport.write_size();
        let connecting = Established::connect(transport.into_io(), &tls, name);
        let established = complete(connecting).await?;
        return Ok(Connected(Outgoing::Own {
            established,
            write_size,
        }));
    }
    let connector = TlsConnector::from(tls);
    let outgoing = match transport {
        Transport::Tcp(tcp) => Outgoing::Tcp(complete(connector.connect(name, tcp)).await?),
        Transport::Stream(stream) => {
            let write_size = packet::payload_within(stream.write_size());
            let tls = complete(connector.connect(name, stream.into_io())).await?;
            Outgoing::Nested { tls, write_size }
        }
    };
    Ok(Connected(outgoing))
}

impl Connected {
    /// The certificate chain of the peer, leaf first.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        match &self.0 {
            Outgoing::Tcp(tls) => peer_chain(tls.get_ref().1),
            Outgoing::Nested { tls, .. } => peer_chain(tls.get_ref().1),
            Outgoing::Own { established, .. } => established.peer_chain(),
        }
    }

    /// Starts HTTP/2. `spawn` starts a task that drives the tunnel to `peer` until it closes, its
    /// last clone is dropped, or `cancel` completes.
    ///
    /// # Errors
    /// If the peer does not complete the HTTP/2 handshake in time.
    pub async fn start(
        self,
        peer: TunnelAddr,
        http2: Http2,
        cancel: impl Future<Output = ()> + 'static,
        spawn: impl FnOnce(TunnelTask),
    ) -> io::Result<Tunnel> {
        let (client, task) = match self.0 {
            Outgoing::Own {
                established,
                write_size,
            } => {
                let (client, task) =
                    own_engine::Client::start(established, peer, http2, write_size, cancel)?;
                spawn(task);
                return Ok(Tunnel::new(tunnel::Engine::Own(client), http2));
            }
            Outgoing::Tcp(tls) => {
                let write_size = packet::payload_on(tls.get_ref().0);
                h2_engine::Client::start(tls, peer, http2, write_size, cancel).await?
            }
            Outgoing::Nested { tls, write_size } => {
                h2_engine::Client::start(tls, peer, http2, write_size, cancel).await?
            }
        };
        spawn(task);
        Ok(Tunnel::new(tunnel::Engine::H2(client), http2))
    }
}

/// An incoming tunnel whose peer is authenticated.
pub struct Accepted(Incoming);

enum Incoming {
    H2(server::TlsStream<TcpStream>),
    Own {
        established: Established,
        write_size: usize,
    },
}

/// Performs the TLS handshake of an incoming tunnel.
///
/// # Errors
/// If the peer is not accepted, or is too slow.
pub async fn accept(
    tcp: TcpStream,
    tls: Arc<ServerConfig>,
    engine: TunnelEngine,
) -> Result<Accepted, HandshakeError> {
    let incoming = match engine.for_provider(tls.crypto_provider()) {
        TunnelEngine::H2 => Incoming::H2(complete(TlsAcceptor::from(tls).accept(tcp)).await?),
        TunnelEngine::Own => {
            let write_size = packet::payload_on(&tcp);
            let accepting = Established::accept(Box::new(tcp), &tls);
            Incoming::Own {
                established: complete(accepting).await?,
                write_size,
            }
        }
    };
    Ok(Accepted(incoming))
}

impl Accepted {
    /// The certificate chain of the peer, leaf first.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        match &self.0 {
            Incoming::H2(tls) => peer_chain(tls.get_ref().1),
            Incoming::Own { established, .. } => established.peer_chain(),
        }
    }

    /// Serves the tunnel of `peer`: calls `handle` for each request and returns when the tunnel
    /// closes. When `drain` completes, a GOAWAY asks the peer to open no more streams.
    ///
    /// # Errors
    /// How the tunnel broke; `InvalidData` if the peer violated the protocol.
    pub async fn serve(
        self,
        peer: ClientAddr,
        http2: Http2,
        drain: impl Future<Output = ()>,
        handle: impl FnMut(IncomingRequest),
    ) -> io::Result<()> {
        match self.0 {
            Incoming::H2(tls) => {
                let write_size = packet::payload_on(tls.get_ref().0);
                h2_engine::serve(tls, peer, http2, write_size, drain, handle).await
            }
            Incoming::Own {
                established,
                write_size,
            } => own_engine::serve(established, peer, http2, write_size, drain, handle).await,
        }
    }
}

/// Completes a handshake, within the deadline.
async fn complete<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<T, HandshakeError> {
    match timeout(TLS_DEADLINE, handshake).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(HandshakeError::TimedOut),
    }
}

fn peer_chain(tls: &CommonState) -> Vec<CertificateDer<'static>> {
    let chain = tls.peer_certificates().unwrap_or_default();
    chain.iter().map(|c| c.clone().into_owned()).collect()
}
