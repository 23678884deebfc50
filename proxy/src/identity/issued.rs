//! A certificate as an authority hands it out, and whether it is what was asked for.

use std::time::SystemTime;

use mesh::Identity;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage};

use super::decode::{Validity, identity_of};

/// A certificate with its key, its chain and the roots that came with it.
#[derive(Debug)]
pub(crate) struct Issued {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Issued {
    /// Whether it can be used as this identity: it says so, it is for this key, it is valid now, and it leads to the roots.
    pub(crate) fn check(
        &self,
        identity: &Identity,
        now: SystemTime,
        provider: &CryptoProvider,
    ) -> Result<(CertifiedKey, Validity), String> {
        let leaf = self.chain.first().ok_or("there is no certificate")?;
        let parsed = EndEntityCert::try_from(leaf).map_err(|e| format!("it cannot be decoded: {e}"))?;
        match identity_of(&parsed) {
            Some(found) if found == *identity => {}
            Some(found) => return Err(format!("it is for {found}")),
            None => return Err("it has no identity of the form spiffe://…/ns/…/sa/…".to_owned()),
        }
        let key = provider.key_provider.load_private_key(self.key.clone_key()).map_err(|e| e.to_string())?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        certified.keys_match().map_err(|_| "it is for another key".to_owned())?;
        let anchors: Vec<TrustAnchor<'_>> =
            self.roots.iter().filter_map(|r| webpki::anchor_from_trusted_cert(r).ok()).collect();
        if anchors.is_empty() {
            return Err("no root came with it".to_owned());
        }
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
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
                    webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
                    webpki::Error::CertNotValidYet { .. } => "it is not valid yet".to_owned(),
                    webpki::Error::UnknownIssuer => "it does not lead to the roots that came with it".to_owned(),
                    other => other.to_string(),
                })?;
        }
        Ok((certified, Validity::of(leaf)?))
    }
}
