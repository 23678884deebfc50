//! A certificate as issued by an authority, and the checks that it matches the request.

use std::time::SystemTime;

use mesh::Identity;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage};

use crate::decode::{DecodeError, Validity, identity_of, parse_certificates};

/// An issued certificate with its key, chain and roots.
#[derive(Debug)]
pub struct IssuedCertificate {
    /// Certificate chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Roots to verify peers with.
    pub roots: Vec<CertificateDer<'static>>,
    /// Why root certificates beside them cannot be used.
    pub ignored_roots: Vec<String>,
}

/// What is wrong with an issued certificate.
#[derive(Debug, thiserror::Error)]
pub enum UnusableCertificate {
    /// The response is empty.
    #[error("the response has no certificates")]
    NoCertificates,
    /// The response has no certificate for the requested key.
    #[error("the response has no certificate besides the root")]
    OnlyRoot,
    /// The response has no root, so that peers could not be verified.
    #[error("the response has no root certificate")]
    NoRoot,
    /// A text of the response is not PEM.
    #[error("invalid PEM certificate: {0}")]
    Pem(#[from] pem::Error),
    /// The chain is empty.
    #[error("the response has no certificate")]
    NoLeaf,
    /// The leaf is not a certificate.
    #[error("cannot decode the certificate: {0}")]
    Encoding(webpki::Error),
    /// The validity or serial number of the leaf cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The leaf is for another identity than the requested one.
    #[error("the certificate is for {0}")]
    OtherIdentity(Identity),
    /// The leaf has no SPIFFE id, or more than one.
    #[error("the certificate has no identity spiffe://…/ns/…/sa/…")]
    NoIdentity,
    /// The private key cannot be used.
    #[error("{0}")]
    Key(rustls::Error),
    /// The leaf is for another key than the requested one.
    #[error("the certificate is for another key")]
    OtherKey,
    /// None of the roots can be used to verify a certificate.
    #[error("the response has no usable root certificate")]
    NoUsableRoot,
    /// A certificate of the chain has expired. Likely cause: a wrong clock.
    #[error("the certificate has expired")]
    Expired,
    /// A certificate of the chain is not valid yet. Likely cause: a wrong clock.
    #[error("the certificate is not valid yet")]
    NotValidYet,
    /// The chain does not lead to one of the roots.
    #[error("the certificate does not chain to the roots in the response")]
    UnknownIssuer,
    /// The chain is invalid for another reason.
    #[error("{0}")]
    Chain(webpki::Error),
    /// TLS cannot use the certificate or the roots.
    #[error("{0}")]
    Tls(rustls::Error),
}

impl IssuedCertificate {
    /// Splits the PEM texts of a response of istiod into chain and roots. The first text is the
    /// leaf, the last one has the roots, the others are intermediates. A single text holds all of
    /// them in that order, with one root.
    ///
    /// # Errors
    /// If a text is not PEM, or there is no root or no certificate besides it.
    pub fn from_pem(
        texts: &[String],
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, UnusableCertificate> {
        let parse = |text: &String| CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let mut ignored_roots = Vec::new();
        let (chain, roots): (Vec<_>, Vec<_>) = match texts {
            [] => return Err(UnusableCertificate::NoCertificates),
            [one] => {
                let mut all: Vec<_> = parse(one)?;
                let root = all.pop();
                (all, root.into_iter().collect())
            }
            [chain @ .., roots] => {
                let chain: Vec<Vec<_>> = chain.iter().map(parse).collect::<Result<_, _>>()?;
                let (roots, unreadable) = parse_certificates(roots.as_bytes());
                ignored_roots.extend(unreadable.iter().map(ToString::to_string));
                (chain.concat(), roots)
            }
        };
        // Peers have the roots, so sending one is useless.
        let chain: Vec<_> = chain.into_iter().filter(|c| !roots.contains(c)).collect();
        match (chain.is_empty(), roots.is_empty()) {
            (true, _) => Err(UnusableCertificate::OnlyRoot),
            (_, true) => Err(UnusableCertificate::NoRoot),
            _ => Ok(Self {
                chain,
                key,
                roots,
                ignored_roots,
            }),
        }
    }

    /// Checks that the certificate is for this identity and this key, is valid at `now`, and chains
    /// to the roots.
    pub(crate) fn check(
        &self,
        identity: &Identity,
        now: SystemTime,
        provider: &CryptoProvider,
    ) -> Result<(CertifiedKey, Validity), UnusableCertificate> {
        let leaf = self.chain.first().ok_or(UnusableCertificate::NoLeaf)?;
        let parsed = EndEntityCert::try_from(leaf).map_err(UnusableCertificate::Encoding)?;
        match identity_of(&parsed) {
            Some(found) if found == *identity => {}
            Some(found) => return Err(UnusableCertificate::OtherIdentity(found)),
            None => return Err(UnusableCertificate::NoIdentity),
        }
        let key = provider
            .key_provider
            .load_private_key(self.key.clone_key())
            .map_err(UnusableCertificate::Key)?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        certified
            .keys_match()
            .map_err(|_| UnusableCertificate::OtherKey)?;
        let anchors: Vec<TrustAnchor<'_>> = self
            .roots
            .iter()
            .filter_map(|r| webpki::anchor_from_trusted_cert(r).ok())
            .collect();
        if anchors.is_empty() {
            return Err(UnusableCertificate::NoUsableRoot);
        }
        let now = UnixTime::since_unix_epoch(
            now.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        );
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            parsed
                .verify_for_usage(
                    provider.signature_verification_algorithms.all,
                    &anchors,
                    &self.chain[1..],
                    now,
                    usage,
                    None,
                    None,
                )
                .map_err(|e| match e {
                    webpki::Error::CertExpired { .. } => UnusableCertificate::Expired,
                    webpki::Error::CertNotValidYet { .. } => UnusableCertificate::NotValidYet,
                    webpki::Error::UnknownIssuer => UnusableCertificate::UnknownIssuer,
                    other => UnusableCertificate::Chain(other),
                })?;
        }
        Ok((certified, Validity::of(leaf)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_a_root_or_a_leaf_is_rejected() {
        let root = rcgen::generate_simple_self_signed(vec![])
            .unwrap()
            .cert
            .pem();
        let leaf = rcgen::generate_simple_self_signed(vec![])
            .unwrap()
            .cert
            .pem();
        let sizes = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|t| (*t).to_owned()).collect();
            let key = PrivateKeyDer::Pkcs8(Vec::new().into());
            let issued = IssuedCertificate::from_pem(&texts, key);
            issued.map(|i| (i.chain.len(), i.roots.len())).ok()
        };
        assert_eq!(sizes(&[&leaf, &root]), Some((1, 1)));
        assert_eq!(
            sizes(&[&leaf, &root, &root]),
            Some((1, 1)),
            "the root is not sent"
        );
        assert_eq!(sizes(&[&format!("{leaf}{root}")]), Some((1, 1)));
        for bad in [
            vec![],
            vec![""],
            vec![leaf.as_str()],
            vec!["x", "y"],
            vec![leaf.as_str(), ""],
            vec!["", root.as_str()],
        ] {
            assert_eq!(sizes(&bad), None, "{bad:?}");
        }
    }
}
