//! What a pod needs to prove who it is: TLS configurations made once per certificate.

use std::sync::Arc;
use std::time::SystemTime;

use mesh::{Identity, Text};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use super::local_ca::{CaError, LocalCa, VALIDITY};
use super::verify::{ClientOf, Roots, ServerIs};

/// Why a pod has no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// The certificate of one identity, ready for use at both ends of a tunnel.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// Whose they are.
    pub(crate) identity: Identity,
    /// For tunnels that others open to us.
    pub(crate) server: Arc<ServerConfig>,
    /// When to replace them.
    pub(crate) renew_at: SystemTime,
    /// When they end.
    pub(crate) not_after: SystemTime,
    key: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    provider: Arc<CryptoProvider>,
}

impl Credentials {
    /// Has a certificate issued.
    pub(crate) fn issue(ca: &LocalCa, identity: Identity) -> Result<Self, CredentialsError> {
        let issued = ca.issue(&identity)?;
        Ok(Self::new(identity, issued.chain, issued.key, issued.not_after, ca.roots())?)
    }

    fn new(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        not_after: SystemTime,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let roots = Arc::new(Roots::new(roots, provider.clone())?);
        let key = Arc::new(CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?));
        let clients = ClientOf { roots: roots.clone(), trust_domain: identity.trust_domain.clone() };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.send_tls13_tickets = 0; // nobody resumes; tunnels live long
        Ok(Self {
            identity,
            server: Arc::new(server),
            renew_at: not_after - VALIDITY / 2,
            not_after,
            key,
            roots,
            provider,
        })
    }

    /// For a tunnel that we open to somebody who must prove one of these SPIFFE ids.
    pub(crate) fn client(&self, expected: &[Text]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let server = ServerIs { roots: self.roots.clone(), expected: expected.to_vec() };
        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // means: by our own verifier
            .with_custom_certificate_verifier(Arc::new(server))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(client))
    }
}

/// AES-GCM only, as Istio's data planes; AES-128 first, which costs a little less than AES-256.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256, aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    provider
}
