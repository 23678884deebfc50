//! What peers, authorities and files hand us in DER or PEM, decoded: certificates, and lists of revoked ones.
//!
//! Without I/O and without anything else of the proxy, so that `fuzz/fuzz_targets/certificates.rs` has it, too.

use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::prelude::{FromDer, X509Certificate};

/// When a certificate is valid, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// In hexadecimal digits.
    pub(crate) serial: String,
}

impl Validity {
    /// Halfway through.
    pub(crate) fn renew_at(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2
    }

    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| format!("it cannot be decoded: {e}"))?;
        let time = |t: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or_default())
        };
        let validity = parsed.validity();
        let serial = parsed.tbs_certificate.serial.to_str_radix(16);
        Ok(Self { not_before: time(validity.not_before), not_after: time(validity.not_after), serial })
    }
}

/// Who a certificate is for. SPIFFE: exactly one URI.
pub(crate) fn identity_of(certificate: &EndEntityCert<'_>) -> Option<Identity> {
    let mut uris = certificate.valid_uri_names();
    let first = uris.next()?;
    if uris.next().is_some() { None } else { first.parse().ok() }
}

/// Lists of revoked certificates: PEM, of one list or several, or DER.
pub(crate) fn lists(bytes: &[u8]) -> Result<Vec<CertRevocationList<'static>>, String> {
    let list = |der: &[u8]| OwnedCertRevocationList::from_der(der).map(CertRevocationList::Owned);
    let pem: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    match pem {
        Ok(lists) if !lists.is_empty() => lists
            .iter()
            .map(|l| list(l))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("no list of revoked certificates: {e}")),
        _ => Ok(vec![list(bytes).map_err(|e| format!("no list of revoked certificates in PEM or DER: {e}"))?]),
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
