//! A peer of the proxy that a test plays: TLS with whatever certificate, version and key exchange it likes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netns::NetNs;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Takes any server: these tests are about what the server makes of us.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How it speaks.
#[derive(Debug, Clone)]
pub struct Speech {
    /// Versions of TLS.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// Key exchanges, the preferred one first.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    /// Protocols above TLS.
    pub alpn: Vec<&'static [u8]>,
}

impl Default for Speech {
    fn default() -> Self {
        Self {
            versions: vec![&rustls::version::TLS13],
            groups: aws_lc_rs::default_provider().kx_groups,
            alpn: vec![b"h2"],
        }
    }
}

/// A chain and its key.
pub type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A connection to a pod's port 15008, from within another pod, marked as a proxy's.
///
/// # Errors
/// Those of the handshake. In TLS 1.3 a client learns only later that its certificate is refused.
pub async fn dial(
    from: &NetNs,
    ip: IpAddr,
    certificate: Option<Certificate>,
    speech: Speech,
) -> io::Result<TlsStream<TcpStream>> {
    let provider = CryptoProvider { kx_groups: speech.groups, ..aws_lc_rs::default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&speech.versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = speech.alpn.iter().map(|a| a.to_vec()).collect();
    let name = ServerName::try_from("0.0.0.0").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, marked(from, ip).await).await
}

async fn marked(from: &NetNs, ip: IpAddr) -> TcpStream {
    let to = SocketAddr::new(ip, 15008);
    let socket = from.run(|| Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None).unwrap()).unwrap();
    socket.set_mark(redirect::PROXY_MARK.value).unwrap();
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await.unwrap()
}
