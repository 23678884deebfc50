//! Certificates as ztunnel's `/config_dump` has them, which `istioctl ztunnel-config certificates` reads.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh::Identity;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::handle::Held;

/// What is held for one identity.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dump {
    identity: String,
    /// Available, Initializing, or `Unavailable: WHY`.
    state: String,
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    /// The PEM text in base64, as ztunnel has it.
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl Dump {
    pub(crate) fn new(identity: &Identity, held: &Held) -> Self {
        let state = match (held.valid(SystemTime::now()), &held.trouble) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(why)) => format!("Unavailable: {why}"),
            (None, None) => "Initializing".to_owned(),
        };
        let all = |certificates: &[CertificateDer<'_>]| certificates.iter().filter_map(certificate).collect();
        let (cert_chain, root_certs) = match &held.credentials {
            Some(credentials) => (all(credentials.chain()), all(credentials.roots())),
            None => Default::default(),
        };
        Self { identity: identity.to_string(), state, cert_chain, root_certs }
    }
}

fn certificate(der: &CertificateDer<'_>) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let body = STANDARD.encode(der);
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    Some(Certificate {
        pem: STANDARD.encode(pem),
        serial_number: parsed.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(parsed.validity().not_before),
        expiration_time: rfc3339(parsed.validity().not_after),
    })
}

fn rfc3339(time: ASN1Time) -> String {
    let t = time.to_datetime();
    let (date, month) = (t.date(), u8::from(t.month()));
    let (hour, minute, second) = t.to_hms();
    format!("{:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", date.year(), date.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_as_istioctl_reads_it() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 11, 5);
        params.serial_number = Some(0x1234_5678u64.into());
        let signed = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let told = certificate(signed.der()).unwrap();
        assert_eq!((told.serial_number.as_str(), told.valid_from.as_str()), ("305419896", "2026-11-05T00:00:00Z"));
        let pem = String::from_utf8(STANDARD.decode(told.pem).unwrap()).unwrap();
        assert_eq!(pem.replace("\r\n", "\n"), signed.pem().replace("\r\n", "\n"));
    }
}
