//! A control plane server: its address, how it is verified, and the metadata of every request.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::GrpcConnection;
use api::grpc::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial::{KnownAddresses, connect_first};
use crate::roots::{RootSource, root_store};
use crate::token::{Token, TokenError};

/// Deadline for each step of connecting: name resolution, TCP, TLS, HTTP/2.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// TCP keepalive, with the values that ztunnel uses.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(75))
    .with_retries(9);

/// Address of a control plane server: `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A control plane server and the settings for connecting to it.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: ServerAddress,
    /// Name that its certificate must have.
    pub(crate) name: ServerName<'static>,
    pub(crate) roots: RootSource,
    pub(crate) token: Token,
    /// Headers of every request.
    pub(crate) headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    pub(crate) tls: identity::TlsPolicy,
    /// What earlier connections have shown of its addresses.
    pub(crate) known: Arc<Mutex<KnownAddresses>>,
}

/// Connecting to the control plane failed. Likely cause: it is down, or its roots are not trusted.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {address}: {reason}", code = error_code::control::UNREACHABLE)]
pub(crate) struct ConnectError {
    address: String,
    reason: String,
}

impl ServerAddress {
    /// Parses `https://HOST:PORT` or `HOST:PORT`, with IPv6 addresses in brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid = |reason: &str| {
            Err(format!(
                "invalid address {text:?}: {reason}; \
                 expected e.g. https://istiod.istio-system.svc:15012"
            ))
        };
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest.trim_end_matches('/'),
            Some(_) => return invalid("only https is supported"),
            None => text,
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return invalid("missing port");
        };
        let Ok(port) = port.parse() else {
            return invalid("invalid port");
        };
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        match ServerName::try_from(host) {
            Ok(_) => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            Err(_) => invalid("the host is neither a DNS name nor an IP address"),
        }
    }

    /// `HOST:PORT`, as in the `:authority` of requests.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Display for ServerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl Server {
    /// Connects, and returns the PEM roots that the server was verified with.
    pub(crate) async fn connect(&self) -> Result<(GrpcConnection, String), ConnectError> {
        self.try_connect().await.map_err(|reason| ConnectError {
            address: self.address.to_string(),
            reason,
        })
    }

    async fn try_connect(&self) -> Result<(GrpcConnection, String), String> {
        let pem = self.roots.read()?;
        let config = self.client_config(root_store(&pem)?);
        let tls = TlsConnector::from(Arc::new(config.map_err(|e| e.to_string())?));
        let ServerAddress { host, port } = &self.address;
        let resolved = with_deadline("name resolution", async {
            let addresses = tokio::net::lookup_host((host.as_str(), *port)).await;
            Ok::<_, String>(addresses.map(Iterator::collect))
        });
        let resolved = resolved.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let mut candidates = self.known.lock().candidates(resolved)?;
        let mut failures = Vec::new();
        loop {
            let connecting = with_deadline("connecting", connect_first(&candidates, connect));
            let (address, tcp) = match connecting.await {
                Ok(connected) => connected,
                Err(reason) => {
                    failures.push(reason);
                    return Err(failures.join("; "));
                }
            };
            match self.handshake(&tls, tcp).await {
                Ok(connection) => {
                    self.known.lock().record_good(address);
                    return Ok((connection, pem));
                }
                Err(reason) => {
                    self.known.lock().record_failed(address);
                    failures.push(format!("{address}: {reason}"));
                    candidates.retain(|a| *a != address);
                    if candidates.is_empty() {
                        return Err(failures.join("; "));
                    }
                }
            }
        }
    }

    /// Performs the handshakes of TLS and HTTP/2.
    async fn handshake(
        &self,
        tls: &TlsConnector,
        tcp: TcpStream,
    ) -> Result<GrpcConnection, String> {
        let tls = with_deadline("TLS", tls.connect(self.name.clone(), tcp)).await?;
        let origin = self
            .address
            .to_string()
            .parse()
            .map_err(|e: http::uri::InvalidUri| e.to_string())?;
        with_deadline("HTTP/2", GrpcConnection::handshake(tls, origin)).await
    }

    /// Adds the headers and the token of this proxy to a request.
    pub(crate) fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), TokenError> {
        for (name, value) in &self.headers {
            metadata.insert(name.clone(), value.clone());
        }
        if let Some(token) = self.token.read()? {
            let value = AsciiMetadataValue::try_from(format!("Bearer {token}"));
            if let Ok(mut value) = value {
                value.set_sensitive(true);
                metadata.insert("authorization", value);
            }
        }
        Ok(())
    }

    fn client_config(&self, roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
        let mut client = ClientConfig::builder_with_provider(self.tls.provider())
            .with_protocol_versions(self.tls.versions())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(client)
    }
}

/// Runs one step of connecting within [`STEP_DEADLINE`].
async fn with_deadline<T, E: Display>(
    step: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(STEP_DEADLINE, work).await {
        Ok(result) => result.map_err(|e| format!("{step}: {e}")),
        Err(_) => Err(format!(
            "{step}: timed out after {} s",
            STEP_DEADLINE.as_secs()
        )),
    }
}

/// Connects to one address of a server.
async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    let configured = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE));
    if let Err(e) = configured {
        tracing::debug!("cannot enable keepalive for the control plane connection: {e}");
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        for (text, host, port) in [
            (
                "https://istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                15012,
            ),
            (
                "istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                15012,
            ),
            ("https://[fd00::1]:443/", "fd00::1", 443),
            ("10.0.0.1:1", "10.0.0.1", 1),
        ] {
            assert_eq!(
                ServerAddress::parse(text),
                Ok(ServerAddress {
                    host: host.to_owned(),
                    port
                }),
                "{text}"
            );
        }
        assert_eq!(
            ServerAddress::parse("https://[fd00::1]:443")
                .unwrap()
                .to_string(),
            "https://[fd00::1]:443"
        );
        for bad in [
            "",
            "istiod",
            "http://istiod:15012",
            "https://istiod",
            "https://:15012",
            "istiod:0x1",
            "a b:1",
            "istiod:70000",
        ] {
            assert!(ServerAddress::parse(bad).is_err(), "{bad}");
        }
    }
}
