//! Decoding of certificates and CRLs in DER or PEM, which come from peers, authorities and files.
//! No I/O; `fuzz/fuzz_targets/certificates.rs` calls these functions.

use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::error::X509Error;
use x509_parser::nom::Err;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate or a CRL cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not an X.509 certificate.
    #[error("cannot decode the certificate: {0}")]
    Certificate(Err<X509Error>),
    /// A PEM block is not a CRL, or one with unsupported content.
    #[error("invalid CRL: {0}")]
    Crl(webpki::Error),
    /// A section is not valid PEM, or has another kind of content.
    #[error("invalid PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The bytes are neither PEM nor a CRL in DER.
    #[error("not a CRL in PEM or DER: {0}")]
    NotCrl(webpki::Error),
}

/// Validity period and serial number of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    /// Start of the validity period.
    pub not_before: SystemTime,
    /// End of the validity period.
    pub not_after: SystemTime,
    /// Serial number in hexadecimal digits.
    pub serial: String,
}

impl Validity {
    /// Time of renewal: half of the validity period.
    pub fn renew_at(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before);
        self.not_before + lifetime.unwrap_or_default() / 2
    }

    /// Reads the validity of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, DecodeError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(DecodeError::Certificate)?;
        let time = |t: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH
                + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or_default())
        };
        let validity = parsed.validity();
        let serial = parsed.tbs_certificate.serial.to_str_radix(16);
        Ok(Self {
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
            serial,
        })
    }
}

/// The SPIFFE identity of a certificate; `None` unless it has exactly one URI and that is a valid
/// id.
pub fn identity_of(certificate: &EndEntityCert<'_>) -> Option<Identity> {
    let mut uris = certificate.valid_uri_names();
    let first = uris.next()?;
    if uris.next().is_some() {
        None
    } else {
        first.parse().ok()
    }
}

/// Parses CRLs: one or more in PEM, or one in DER. An invalid one does not affect the others.
pub fn parse_crls(bytes: &[u8]) -> (Vec<CertRevocationList<'static>>, Vec<DecodeError>) {
    let crl = |der: &[u8]| OwnedCertRevocationList::from_der(der).map(CertRevocationList::Owned);
    let sections = pem_sections(bytes);
    if sections.is_empty() {
        return match crl(bytes) {
            Ok(crl) => (vec![crl], vec![]),
            Err(e) => (vec![], vec![DecodeError::NotCrl(e)]),
        };
    }
    partition(sections.iter().map(|section| {
        let der = CertificateRevocationListDer::from_pem_slice(section)?;
        crl(&der).map_err(DecodeError::Crl)
    }))
}

/// Parses certificates in PEM. An invalid one does not affect the others.
pub fn parse_certificates(pem: &[u8]) -> (Vec<CertificateDer<'static>>, Vec<DecodeError>) {
    let sections = pem_sections(pem);
    partition(
        sections
            .iter()
            .map(|section| Ok(CertificateDer::from_pem_slice(section)?)),
    )
}

fn partition<T>(
    results: impl Iterator<Item = Result<T, DecodeError>>,
) -> (Vec<T>, Vec<DecodeError>) {
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(e) => errors.push(e),
        }
    }
    (values, errors)
}

/// Splits PEM text into sections, each of which begins with its own header.
fn pem_sections(text: &[u8]) -> Vec<&[u8]> {
    const HEADER: &[u8] = b"-----BEGIN ";
    let mut starts: Vec<usize> = text
        .windows(HEADER.len())
        .enumerate()
        .filter(|(_, window)| *window == HEADER)
        .map(|(at, _)| at)
        .collect();
    starts.push(text.len());
    starts
        .windows(2)
        .map(|pair| &text[pair[0]..pair[1]])
        .collect()
}
