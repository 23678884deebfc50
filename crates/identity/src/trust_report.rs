//! What peers are verified with, for `/status`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::handle::CertificateState;

/// The root certificates of a node's identities.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustReport {
    roots: Vec<RootReport>,
    /// Root certificates that cannot be used, with the reasons.
    ignored: BTreeSet<String>,
}

/// A root certificate that peers are verified with.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RootReport {
    subject: String,
    /// Serial number in hexadecimal digits.
    serial: String,
    /// 0 once it has expired.
    expires_in_s: u64,
    /// The number of identities that trust it.
    identities: usize,
}

impl TrustReport {
    /// Reports the roots of these identities.
    pub(crate) fn new(all: &[(Identity, CertificateState)], now: SystemTime) -> Self {
        let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut ignored = BTreeSet::new();
        for credentials in all.iter().filter_map(|(_, s)| s.credentials.as_ref()) {
            for root in credentials.roots() {
                *counts.entry(root.as_ref()).or_default() += 1;
            }
            ignored.extend(credentials.ignored_roots().iter().cloned());
        }
        let mut roots: Vec<RootReport> = counts
            .into_iter()
            .filter_map(|(der, identities)| RootReport::new(der, identities, now))
            .collect();
        roots.sort_by(|a, b| (&a.subject, &a.serial).cmp(&(&b.subject, &b.serial)));
        Self { roots, ignored }
    }
}

impl RootReport {
    fn new(der: &[u8], identities: usize, now: SystemTime) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?; // it is usable, so it can be parsed
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        Some(Self {
            subject: parsed.subject().to_string(),
            serial: parsed.tbs_certificate.serial.to_str_radix(16),
            expires_in_s: not_after.duration_since(now).unwrap_or_default().as_secs(),
            identities,
        })
    }
}

/// Names a certificate in messages: its subject, if it can be read.
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => parsed.subject().to_string(),
        Err(_) => format!("{} bytes that are not a certificate", certificate.len()),
    }
}
