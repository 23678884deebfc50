//! A TLS client for the proxy's tunnel port, with any certificate, TLS version and key exchange.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netns::NetNs;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::listener::connect_async;

/// Accepts any server certificate: these tests are about how the server treats its clients.
#[derive(Debug)]
struct AcceptAnyServer;

impl ServerCertVerifier for AcceptAnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// TLS parameters of the client.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// TLS versions.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// Key exchanges, the preferred one first.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    /// ALPN protocols.
    pub alpn: Vec<&'static [u8]>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            versions: vec![&rustls::version::TLS13],
            groups: aws_lc_rs::default_provider().kx_groups,
            alpn: vec![b"h2"],
        }
    }
}

/// A certificate chain and its key.
pub type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Connects to port 15008 of a pod from within another pod, with the proxy's mark.
///
/// # Errors
/// Those of the handshake. In TLS 1.3 the client learns only later that its certificate was
/// rejected.
pub async fn dial(
    from: &NetNs,
    ip: IpAddr,
    certificate: Option<Certificate>,
    options: TlsOptions,
) -> io::Result<TlsStream<TcpStream>> {
    let to = SocketAddr::new(ip, istio::port::HBONE);
    let tcp = connect_async(from, to, Some(istio::mark::PROXY)).await;
    handshake(tcp.unwrap(), certificate, options).await
}

/// Performs a handshake on an open connection.
///
/// # Errors
/// See [`dial`].
pub async fn handshake<I: AsyncRead + AsyncWrite + Unpin>(
    tcp: I,
    certificate: Option<Certificate>,
    options: TlsOptions,
) -> io::Result<TlsStream<I>> {
    let provider = CryptoProvider {
        kx_groups: options.groups,
        ..aws_lc_rs::default_provider()
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&options.versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer));
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = options.alpn.iter().map(|a| a.to_vec()).collect();
    let name = ServerName::try_from("0.0.0.0").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}
