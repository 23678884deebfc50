//! What a pod needs to prove who it is: TLS configurations made once per certificate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh::{Identity, Text};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use webpki::KeyUsage;

use super::decode::Validity;
use super::revocation::Revocations;
use super::tls::TlsPolicy;
use super::trust_domains::TrustDomains;
use super::verify::{ClientOf, Roots, ServerIs};

/// Configurations for so many different peers are kept; then all are made anew.
const CACHED_PEERS: usize = 1024;

/// What all certificates of this proxy have in common.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) tls: TlsPolicy,
    pub(crate) domains: TrustDomains,
    pub(crate) revocations: Arc<Revocations>,
}

/// The certificate of one identity, ready for use at both ends of a tunnel.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// Whose they are.
    pub(crate) identity: Identity,
    /// For tunnels that others open to us.
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) validity: Validity,
    key: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    trust: Arc<Trust>,
    /// By whom is expected.
    clients: Mutex<HashMap<Vec<Text>, Arc<ClientConfig>>>,
}

impl Credentials {
    /// From a certificate that has been checked, and the roots that lead to peers.
    pub(crate) fn new(
        identity: Identity,
        key: Arc<CertifiedKey>,
        validity: Validity,
        roots: &[CertificateDer<'static>],
        trust: Arc<Trust>,
    ) -> Result<Self, rustls::Error> {
        let roots = Arc::new(Roots::new(roots, trust.clone())?);
        let clients = ClientOf { roots: roots.clone(), trust_domain: identity.trust_domain.clone() };
        let mut server = ServerConfig::builder_with_provider(trust.tls.provider())
            .with_protocol_versions(trust.tls.versions())?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        // Nobody resumes: tunnels live long, and a session that is resumed is not verified again.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { identity, server: Arc::new(server), validity, key, roots, trust, clients: Mutex::default() })
    }

    /// The same certificate, with other roots.
    pub(crate) fn with_roots(&self, roots: &[CertificateDer<'static>]) -> Result<Self, rustls::Error> {
        Self::new(self.identity.clone(), self.key.clone(), self.validity.clone(), roots, self.trust.clone())
    }

    /// For a tunnel that we open to somebody who must prove one of these SPIFFE ids.
    pub(crate) fn client(&self, expected: &[Text]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(expected) {
            return Ok(client.clone());
        }
        let server = ServerIs { roots: self.roots.clone(), expected: expected.to_vec() };
        let mut client = ClientConfig::builder_with_provider(self.trust.tls.provider())
            .with_protocol_versions(self.trust.tls.versions())?
            .dangerous() // means: by our own verifier
            .with_custom_certificate_verifier(Arc::new(server))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        let client = Arc::new(client);
        if clients.len() >= CACHED_PEERS {
            clients.clear();
        }
        clients.insert(expected.to_vec(), client.clone());
        Ok(client)
    }

    /// The certificates that are sent, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The roots by which peers are verified.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        self.roots.certificates()
    }

    /// Completes when the certificate of a peer that was verified is revoked: says whose.
    pub(crate) async fn until_revoked(&self, peer: Vec<CertificateDer<'static>>, usage: KeyUsage) -> String {
        let mut changes = self.trust.revocations.changes();
        loop {
            if self.roots.is_revoked(&peer, &usage) {
                let who = super::verify::peer_identity(Some(&peer));
                return who.map_or_else(|| "the peer".to_owned(), |i| i.to_string());
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
