//! SPIFFE verification: the certificate chains to a trusted root and has one SPIFFE id. Host names
//! are ignored.

use std::sync::Arc;

use mesh::{Identity, Text};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, SignatureScheme,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::decode::identity_of;
use crate::revocation::RevocationList;
use crate::trust::Trust;
use crate::trust_report::name_of;

/// Trusted roots and the signature algorithms to verify with.
#[derive(Debug)]
pub(crate) struct Roots {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Why other certificates cannot be used.
    pub(super) ignored: Vec<String>,
    anchors: Vec<TrustAnchor<'static>>,
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The identity of a peer is not the expected one.
#[derive(Debug, thiserror::Error)]
enum Mismatch {
    /// The certificate has no SPIFFE id, or more than one.
    #[error("the certificate has no identity spiffe://…/ns/…/sa/…")]
    NoIdentity,
    /// The server has another identity. Likely cause: stale mesh state, or an impostor.
    #[error("the peer is {found}, expected one of {expected}")]
    Unexpected { found: String, expected: String },
    /// The client is from another trust domain. Likely cause: a missing alias.
    #[error("the peer's trust domain is {found}, ours is {ours}")]
    TrustDomain { found: Text, ours: Text },
}

impl Mismatch {
    fn into_tls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

impl Roots {
    /// Parses root certificates. Those that cannot be used are ignored, unless all are.
    pub(crate) fn new(
        certificates: &[CertificateDer<'static>],
        trust: Arc<Trust>,
    ) -> Result<Self, Error> {
        let (mut usable, mut anchors, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        for certificate in certificates {
            match webpki::anchor_from_trusted_cert(certificate) {
                Ok(anchor) => {
                    anchors.push(anchor.to_owned());
                    usable.push(certificate.clone());
                }
                Err(e) => ignored.push(format!("{}: {e}", name_of(certificate))),
            }
        }
        if anchors.is_empty()
            && let Some(reason) = ignored.last()
        {
            let reason = format!("no usable root certificate: {reason}");
            return Err(Error::General(reason));
        }
        let algorithms = trust.tls.provider().signature_verification_algorithms;
        Ok(Self {
            certificates: usable,
            ignored,
            anchors,
            trust,
            algorithms,
        })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(invalid_certificate)?;
        let lists = self.relevant_lists(&certificate, intermediates);
        self.verify_chain(&certificate, intermediates, usage, now, &lists)
            .map_err(invalid_certificate)?;
        identity_of(&certificate).ok_or_else(|| Mismatch::NoIdentity.into_tls())
    }

    /// Verifies that a certificate chains to a root and that no part of the chain is revoked. A
    /// certificate that no CRL covers counts as not revoked. Expired CRLs still apply: rejecting
    /// all peers because a file was not updated would be worse.
    ///
    /// Each list is consulted by itself: webpki takes only the first one with the issuer's name,
    /// and fails if that was signed with another key, such as an earlier one of the authority.
    fn verify_chain(
        &self,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
        lists: &[Arc<RevocationList>],
    ) -> Result<(), webpki::Error> {
        let verify = |revocation: Option<RevocationOptions<'_>>| {
            let (all, anchors) = (self.algorithms.all, &self.anchors);
            certificate
                .verify_for_usage(all, anchors, intermediates, now, usage, revocation, None)
                .map(drop)
        };
        let (mut is_verified, mut failed) = (false, Vec::new());
        for list in lists {
            let only = [&list.crl];
            // The builder fails without CRLs.
            let Ok(options) = RevocationOptionsBuilder::new(&only) else {
                continue;
            };
            let options = options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build();
            match verify(Some(options)) {
                Ok(()) => is_verified = true,
                Err(webpki::Error::CertRevoked) => return Err(webpki::Error::CertRevoked),
                Err(e) => failed.push((list, e)),
            }
        }
        if !is_verified {
            verify(None)?;
        }
        // The chain is valid, so the list is at fault.
        for (list, error) in failed {
            list.set_unusable(&error);
        }
        Ok(())
    }

    /// The loaded CRLs of the issuers in a chain.
    fn relevant_lists(
        &self,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Vec<Arc<RevocationList>> {
        let loaded = self.trust.revocations.lists.load();
        if loaded.is_empty() {
            return Vec::new();
        }
        let parsed: Vec<_> = intermediates
            .iter()
            .filter_map(|c| EndEntityCert::try_from(c).ok())
            .collect();
        let mut issuers: Vec<&[u8]> = parsed.iter().map(|c| c.issuer()).collect();
        issuers.push(certificate.issuer());
        let relevant = loaded
            .iter()
            .filter(|list| issuers.contains(&list.crl.issuer()));
        relevant.cloned().collect()
    }

    /// Whether a previously verified chain has been revoked. Expiry is not considered. Signatures
    /// are verified again only if there is a list that may revoke the chain.
    pub(super) fn is_revoked(&self, chain: &[CertificateDer<'_>], usage: &KeyUsage) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        let Ok(certificate) = EndEntityCert::try_from(leaf) else {
            return false;
        };
        let lists = self.relevant_lists(&certificate, intermediates);
        if lists.is_empty() {
            return false;
        }
        let now = UnixTime::now();
        let verified = self.verify_chain(&certificate, intermediates, *usage, now, &lists);
        matches!(verified, Err(webpki::Error::CertRevoked))
    }
}

/// Translates a webpki error to the rustls error with the matching TLS alert.
fn invalid_certificate(error: webpki::Error) -> Error {
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::BadDer | E::BadDerTime => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// Whether a handshake failed because the peer's certificate is revoked.
pub fn is_revoked(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    matches!(
        tls,
        Some(Error::InvalidCertificate(CertificateError::Revoked))
    )
}

/// Describes a failed handshake, with the verifier's own reason if it has one.
pub fn explain(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Revoked)) => {
            "the peer's certificate is revoked".to_owned()
        }
        Some(Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        })) => format!(
            "the peer's certificate is not valid before {}, and it is {} by this node's clock: \
             check the clocks of both nodes",
            date(*not_before),
            date(*time)
        ),
        Some(Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after })) => {
            format!(
                "the peer's certificate expired at {}, and it is {} by this node's clock: check \
                 the clocks of both nodes, and the peer's certificates",
                date(*not_after),
                date(*time)
            )
        }
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "the peer considers this pod's certificate expired or not valid yet: check the clocks \
             of both nodes"
                .to_owned()
        }
        Some(Error::NoCertificatesPresented) => "the peer presented no certificate".to_owned(),
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            reason.to_string()
        }
        _ => error.to_string(),
    }
}

/// A time as in RFC 3339.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let formatted = date.and_then(|date| date.format(&Rfc3339).ok());
    formatted.unwrap_or_else(|| format!("{seconds} s after 1970")) // after the year 9999
}

/// The identity of a verified peer.
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    identity_of(&EndEntityCert::try_from(chain?.first()?).ok()?)
}

/// Delegates the verification of handshake signatures to rustls.
macro_rules! delegate_signatures {
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

/// Verifies that the server of a tunnel has one of the expected identities.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<Roots>,
    /// Accepted SPIFFE ids.
    pub(super) expected: Vec<Text>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self
            .roots
            .verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        let domains = &self.roots.trust.domains;
        if self.expected.iter().any(|e| domains.matches(&found, e)) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected: Vec<_> = self.expected.iter().map(Text::as_str).collect();
        let mismatch = Mismatch::Unexpected {
            found: found.to_string(),
            expected: expected.join(", "),
        };
        Err(mismatch.into_tls())
    }

    delegate_signatures!();
}

/// Verifies that a client is in the mesh's trust domain or an alias of it; policies authorize it
/// later.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) roots: Arc<Roots>,
    pub(super) trust_domain: Text,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let found = self
            .roots
            .verify(leaf, intermediates, KeyUsage::client_auth(), now)?
            .trust_domain;
        if self.roots.trust.domains.same(&found, &self.trust_domain) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(Mismatch::TrustDomain {
            found,
            ours: self.trust_domain.clone(),
        }
        .into_tls())
    }

    delegate_signatures!();
}

#[cfg(test)]
mod tests;
