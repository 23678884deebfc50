//! Credentials of an identity: its certificate, with TLS configurations that are built once.

use std::collections::HashMap;
use std::sync::Arc;

use mesh::{Identity, Text};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use webpki::KeyUsage;

use crate::decode::Validity;
use crate::trust::Trust;
use crate::verify::{ClientVerifier, Roots, ServerVerifier};

/// Maximum number of cached client configurations; the cache is cleared when it is full.
const MAX_CLIENT_CONFIGS: usize = 1024;

/// The certificate of one identity, ready for use at both ends of a tunnel.
#[derive(Debug)]
pub struct Credentials {
    /// The identity that the certificate proves.
    pub(crate) identity: Identity,
    /// Configuration for incoming tunnels.
    pub server: Arc<ServerConfig>,
    /// Validity period and serial number of the certificate.
    pub validity: Validity,
    key: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    /// Why root certificates beside them cannot be used.
    ignored_roots: Vec<String>,
    trust: Arc<Trust>,
    /// Client configurations by accepted SPIFFE ids.
    client_configs: Mutex<HashMap<Vec<Text>, Arc<ClientConfig>>>,
}

impl Credentials {
    /// Creates credentials from a checked certificate, and the roots to verify peers with.
    /// `ignored_roots` are the reasons why others cannot be used.
    pub(crate) fn new(
        identity: Identity,
        key: Arc<CertifiedKey>,
        validity: Validity,
        roots: &[CertificateDer<'static>],
        mut ignored_roots: Vec<String>,
        trust: Arc<Trust>,
    ) -> Result<Self, rustls::Error> {
        let roots = Arc::new(Roots::new(roots, trust.clone())?);
        ignored_roots.extend(roots.ignored.iter().cloned());
        let verifier = ClientVerifier {
            roots: roots.clone(),
            trust_domain: identity.trust_domain.clone(),
        };
        let mut server = ServerConfig::builder_with_provider(trust.tls.provider())
            .with_protocol_versions(trust.tls.versions())?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        // No session resumption: tunnels live long, and a resumed session would skip verification.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self {
            identity,
            server: Arc::new(server),
            validity,
            key,
            roots,
            ignored_roots,
            trust,
            client_configs: Mutex::default(),
        })
    }

    /// Returns credentials with the same certificate and other roots.
    pub(crate) fn with_roots(
        &self,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, rustls::Error> {
        Self::new(
            self.identity.clone(),
            self.key.clone(),
            self.validity.clone(),
            roots,
            self.ignored_roots.clone(),
            self.trust.clone(),
        )
    }

    /// Returns the configuration for a tunnel to a peer that must prove one of these SPIFFE ids.
    pub fn client_config(&self, expected: &[Text]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut configs = self.client_configs.lock();
        if let Some(client) = configs.get(expected) {
            return Ok(client.clone());
        }
        let server = ServerVerifier {
            roots: self.roots.clone(),
            expected: expected.to_vec(),
        };
        let mut client = ClientConfig::builder_with_provider(self.trust.tls.provider())
            .with_protocol_versions(self.trust.tls.versions())?
            .dangerous() // required for a custom verifier
            .with_custom_certificate_verifier(Arc::new(server))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        let client = Arc::new(client);
        if configs.len() >= MAX_CLIENT_CONFIGS {
            configs.clear();
        }
        configs.insert(expected.to_vec(), client.clone());
        Ok(client)
    }

    /// Certificate chain sent to peers, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Roots that peers are verified with.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots.certificates
    }

    /// Why root certificates beside [`roots`](Self::roots) cannot be used.
    pub(crate) fn ignored_roots(&self) -> &[String] {
        &self.ignored_roots
    }

    /// Completes when the certificate of a verified peer is revoked, and returns the peer's
    /// identity.
    pub async fn until_revoked(
        &self,
        peer: Vec<CertificateDer<'static>>,
        usage: KeyUsage,
    ) -> Option<Identity> {
        let mut changes = self.trust.revocations.changed.subscribe();
        loop {
            if self.roots.is_revoked(&peer, &usage) {
                return super::verify::peer_identity(Some(&peer));
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
