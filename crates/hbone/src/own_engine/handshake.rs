//! From a connection to a tunnel.

use std::io::{self, Error, ErrorKind};
use std::rc::Rc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Config, Handshake, HandshakeError};

use super::connection::Connection;
use super::driver::Driver;
use crate::stream::ByteStream;

/// Size of a read during the handshake, in bytes.
const READ: usize = 8 * 1024;

/// A connection whose TLS handshake is complete.
pub(crate) struct Established {
    io: Box<dyn ByteStream>,
    handshake: Handshake,
}

impl Established {
    /// Performs a handshake as a client.
    pub(crate) async fn connect(
        io: Box<dyn ByteStream>,
        tls: &ClientConfig,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let handshake = Handshake::client(tls, name).map_err(describe)?;
        Self { io, handshake }.complete().await
    }

    /// Performs a handshake as a server.
    pub(crate) async fn accept(io: Box<dyn ByteStream>, tls: &ServerConfig) -> io::Result<Self> {
        let handshake = Handshake::server(tls).map_err(describe)?;
        Self { io, handshake }.complete().await
    }

    async fn complete(mut self) -> io::Result<Self> {
        let mut buffer = vec![0; READ];
        loop {
            self.flush().await?;
            if self.handshake.is_complete() {
                return Ok(self);
            }
            let length = self.io.read(&mut buffer).await?;
            if length == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "tls handshake eof"));
            }
            if let Err(error) = self.handshake.receive(&buffer[..length]) {
                let _ = self.flush().await; // an alert, which the peer may not read
                return Err(describe(error));
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let output = self.handshake.output();
        self.io.write_all(output).await?;
        let length = output.len();
        self.handshake.sent(length);
        Ok(())
    }

    /// The certificate chain of the peer, leaf first.
    pub(crate) fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        self.handshake.peer_chain()
    }

    /// Begins HTTP/2.
    pub(super) fn start(self, config: Config, growth: u64) -> io::Result<(Driver, Rc<Connection>)> {
        let Self { io, handshake } = self;
        let connection = Connection::new(|now_ms| {
            let mut tunnel = handshake.into_tunnel(config, now_ms)?;
            tunnel.set_growth_budget(growth);
            Ok(tunnel)
        });
        let connection = connection.map_err(describe)?;
        Ok((Driver::new(io, connection.clone()), connection))
    }
}

/// The error as tokio-rustls reports it.
fn describe(error: HandshakeError) -> Error {
    match error {
        HandshakeError::Tls(error) => Error::new(ErrorKind::InvalidData, error),
        other => Error::other(other),
    }
}
