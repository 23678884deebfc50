//! One server of the control plane: where it is, how it is verified, and what it is told with every request.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::Connection;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use super::roots::{RootSource, store};
use super::token::{Token, TokenError};

/// For each of: resolving and connecting, TLS, HTTP/2.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// As the interface defines it.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(300)).with_interval(Duration::from_secs(75)).with_retries(9);

/// `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// One server, and how to speak to it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: Address,
    /// What its certificate must say.
    pub(crate) name: ServerName<'static>,
    pub(crate) roots: RootSource,
    pub(crate) token: Token,
    /// In every request.
    pub(crate) headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    pub(crate) tls: crate::identity::TlsPolicy,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {address}: {why}", code = error_code::control::AWAY)]
pub(crate) struct ConnectError {
    address: String,
    why: String,
}

impl Address {
    /// `https://HOST:PORT` or `HOST:PORT`; an IPv6 address in brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| Err(format!("{text:?} is no address such as https://istiod.istio-system.svc:15012: {why}"));
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest.trim_end_matches('/'),
            Some(_) => return wrong("only https is spoken"),
            None => text,
        };
        let Some((host, port)) = rest.rsplit_once(':') else { return wrong("it has no port") };
        let Ok(port) = port.parse() else { return wrong("its port is no port") };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match ServerName::try_from(host) {
            Ok(_) => Ok(Self { host: host.to_owned(), port }),
            Err(_) => wrong("its host is no name and no IP address"),
        }
    }

    /// As it stands in requests.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl Server {
    /// Connects, and says with which roots the server was verified.
    pub(crate) async fn connect(&self) -> Result<(Connection, String), ConnectError> {
        self.try_connect().await.map_err(|why| ConnectError { address: self.address.to_string(), why })
    }

    async fn try_connect(&self) -> Result<(Connection, String), String> {
        let pem = self.roots.read()?;
        let tls = TlsConnector::from(Arc::new(self.client(store(&pem)?).map_err(|e| e.to_string())?));
        let tcp = within("connecting", connect(&self.address)).await?;
        let tls = within("TLS", tls.connect(self.name.clone(), tcp)).await?;
        let origin = self.address.to_string().parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
        Ok((within("HTTP/2", Connection::begin(tls, origin)).await?, pem))
    }

    /// Adds to a request who we are.
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

    fn client(&self, roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
        let mut client = ClientConfig::builder_with_provider(self.tls.provider())
            .with_protocol_versions(self.tls.versions())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(client)
    }
}

/// One step of connecting, with its deadline.
async fn within<T, E: Display>(step: &str, done: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(STEP_DEADLINE, done).await {
        Ok(result) => result.map_err(|e| format!("{step}: {e}")),
        Err(_) => Err(format!("{step}: not done within {} s", STEP_DEADLINE.as_secs())),
    }
}

/// The first address of the name that answers.
async fn connect(to: &Address) -> Result<TcpStream, String> {
    let resolved = tokio::net::lookup_host((to.host.as_str(), to.port)).await;
    let addresses: Vec<SocketAddr> = resolved.map_err(|e| e.to_string())?.collect();
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let tuned =
                    stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE));
                if let Err(e) = tuned {
                    tracing::debug!("keepalive of the connection to the control plane: {e}");
                }
                return Ok(stream);
            }
            Err(e) => last = format!("{address}: {e}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, host, port) in [
            ("https://istiod.istio-system.svc:15012", "istiod.istio-system.svc", 15012),
            ("istiod.istio-system.svc:15012", "istiod.istio-system.svc", 15012),
            ("https://[fd00::1]:443/", "fd00::1", 443),
            ("10.0.0.1:1", "10.0.0.1", 1),
        ] {
            assert_eq!(Address::parse(text), Ok(Address { host: host.to_owned(), port }), "{text}");
        }
        assert_eq!(Address::parse("https://[fd00::1]:443").unwrap().to_string(), "https://[fd00::1]:443");
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
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
