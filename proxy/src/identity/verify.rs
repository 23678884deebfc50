//! SPIFFE verification: a chain to our roots, and one URI that says who it is. Host names play no part.

use std::sync::Arc;

use mesh::{Identity, Text};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::credentials::Trust;
use super::decode::identity_of;

/// Whom to trust, and by which algorithms.
#[derive(Debug)]
pub(crate) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Why a peer is not who it should be.
#[derive(Debug, thiserror::Error)]
enum Mismatch {
    #[error("the certificate has no identity of the form spiffe://…/ns/…/sa/…")]
    NoIdentity,
    #[error("the peer is {found}, expected one of {expected}")]
    Unexpected { found: String, expected: String },
    #[error("the peer's trust domain is {found}, ours is {ours}")]
    TrustDomain { found: Text, ours: Text },
}

impl Mismatch {
    fn into_tls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

impl Roots {
    /// Roots from certificates.
    pub(crate) fn new(certificates: &[CertificateDer<'static>], trust: Arc<Trust>) -> Result<Self, Error> {
        let anchors: Result<Vec<_>, _> =
            certificates.iter().map(|c| webpki::anchor_from_trusted_cert(c).map(|a| a.to_owned())).collect();
        let anchors = anchors.map_err(|e| Error::General(format!("a root certificate cannot be used: {e}")))?;
        let algorithms = trust.tls.provider().signature_verification_algorithms;
        Ok(Self { certificates: certificates.to_vec(), anchors, trust, algorithms })
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(bad_certificate)?;
        self.verify_chain(&certificate, intermediates, usage, now).map_err(bad_certificate)?;
        identity_of(&certificate).ok_or_else(|| Mismatch::NoIdentity.into_tls())
    }

    /// A chain to our roots, no part of which is on a list. What no list speaks of is not revoked, and a list that should
    /// have been replaced by now still counts: to refuse everybody because a file is late would be worse.
    fn verify_chain(
        &self,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let lists = self.trust.revocations.lists();
        let lists: Vec<_> = lists.iter().collect();
        // Without a list there is nothing to build.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let algorithms = self.algorithms.all;
        certificate.verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, revocation, None).map(drop)
    }

    /// Whether a chain that was verified is revoked now. That it has expired since is another matter.
    pub(super) fn is_revoked(&self, chain: &[CertificateDer<'_>], usage: &KeyUsage) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        let Ok(certificate) = EndEntityCert::try_from(leaf) else { return false };
        let verified = self.verify_chain(&certificate, intermediates, *usage, UnixTime::now());
        matches!(verified, Err(webpki::Error::CertRevoked))
    }
}

/// Translated to what a peer and a log can make sense of.
fn bad_certificate(error: webpki::Error) -> Error {
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::BadDer | E::BadDerTime => CertificateError::BadEncoding,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::CertExpired { .. } => CertificateError::Expired,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// Whether a handshake failed because the peer's certificate is revoked.
pub(crate) fn is_revoked(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    matches!(tls, Some(Error::InvalidCertificate(CertificateError::Revoked)))
}

/// A failed handshake in words for people: our own reason where the verifier is ours.
pub(crate) fn explain(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Revoked)) => "the peer's certificate is revoked".to_owned(),
        Some(Error::NoCertificatesPresented) => "the peer has shown no certificate".to_owned(),
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => reason.to_string(),
        _ => error.to_string(),
    }
}

/// Who a verified peer is.
pub(crate) fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    identity_of(&EndEntityCert::try_from(chain?.first()?).ok()?)
}

/// Proofs of possession are the business of rustls, at both ends alike.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &self.roots.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &self.roots.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.roots.algorithms.supported_schemes()
        }
    };
}

/// Verifies the server at the other end of a tunnel.
#[derive(Debug)]
pub(super) struct ServerIs {
    pub(super) roots: Arc<Roots>,
    /// SPIFFE ids; any of them.
    pub(super) expected: Vec<Text>,
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.roots.verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        if self.expected.iter().any(|e| self.roots.trust.domains.is(&found, e)) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = self.expected.iter().map(Text::as_str).collect::<Vec<_>>().join(", ");
        Err(Mismatch::Unexpected { found: found.to_string(), expected }.into_tls())
    }

    signatures!();
}

/// Verifies clients: anybody of our own trust domain, by any of its names; policy decides the rest.
#[derive(Debug)]
pub(super) struct ClientOf {
    pub(super) roots: Arc<Roots>,
    pub(super) trust_domain: Text,
}

impl ClientCertVerifier for ClientOf {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let found = self.roots.verify(leaf, intermediates, KeyUsage::client_auth(), now)?.trust_domain;
        if self.roots.trust.domains.same(&found, &self.trust_domain) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(Mismatch::TrustDomain { found, ours: self.trust_domain.clone() }.into_tls())
    }

    signatures!();
}
