//! Certificates in the format of ztunnel's `/config_dump`, for `istioctl ztunnel-config
//! certificates`.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh::Identity;
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::handle::CertificateState;

/// The certificate of one identity.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    identity: String,
    /// `Available`, `Initializing`, or `Unavailable: REASON`.
    state: String,
    cert_chain: Vec<CertificateEntry>,
    root_certs: Vec<CertificateEntry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateEntry {
    /// PEM text encoded in base64, like ztunnel's.
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl CertificateDump {
    /// Describes the certificate of an identity as of now.
    pub fn new(identity: &Identity, certificate: &CertificateState) -> Self {
        let state = match (
            certificate.valid(SystemTime::now()),
            &certificate.last_error,
        ) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(error)) => format!("Unavailable: {error}"),
            (None, None) => "Initializing".to_owned(),
        };
        let all = |certificates: &[CertificateDer<'_>]| {
            certificates.iter().filter_map(dump_certificate).collect()
        };
        let (cert_chain, root_certs) = match &certificate.credentials {
            Some(credentials) => (all(credentials.chain()), all(credentials.roots())),
            None => Default::default(),
        };
        Self {
            identity: identity.to_string(),
            state,
            cert_chain,
            root_certs,
        }
    }
}

fn dump_certificate(der: &CertificateDer<'_>) -> Option<CertificateEntry> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let lf = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let pem = pem::encode_config(&Pem::new("CERTIFICATE", der.as_ref()), lf);
    Some(CertificateEntry {
        pem: STANDARD.encode(pem),
        serial_number: parsed.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(parsed.validity().not_before),
        expiration_time: rfc3339(parsed.validity().not_after),
    })
}

fn rfc3339(time: ASN1Time) -> String {
    time.to_datetime().format(&Rfc3339).unwrap_or_default() // fails after the year 9999
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_dumped_in_the_format_of_istioctl() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 11, 5);
        params.serial_number = Some(0x1234_5678u64.into());
        let signed = params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let dumped = dump_certificate(signed.der()).unwrap();
        assert_eq!(
            (dumped.serial_number.as_str(), dumped.valid_from.as_str()),
            ("305419896", "2026-11-05T00:00:00Z")
        );
        let pem = String::from_utf8(STANDARD.decode(dumped.pem).unwrap()).unwrap();
        assert_eq!(
            pem.replace("\r\n", "\n"),
            signed.pem().replace("\r\n", "\n")
        );
    }
}
