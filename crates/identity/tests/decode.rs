//! Decoding of valid input, and of arbitrary and mutated bytes, which must not panic.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test

use proptest::prelude::*;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, SanType, SerialNumber,
};

use identity::decode::{Validity, identity_of, parse_certificates, parse_crls};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/client";

/// A valid certificate and a valid CRL.
fn valid_input() -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![
        rcgen::KeyUsagePurpose::CrlSign,
        rcgen::KeyUsagePurpose::KeyCertSign,
    ];
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(IDENTITY.try_into().unwrap())];
    let certificate = leaf.self_signed(&key).unwrap().der().to_vec();
    let now = rcgen::date_time_ymd(2026, 1, 1);
    let crl = CertificateRevocationListParams {
        this_update: now,
        next_update: rcgen::date_time_ymd(2030, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let crl = crl
        .signed_by(&rcgen::Issuer::new(root, &key))
        .unwrap()
        .der()
        .to_vec();
    (certificate, crl)
}

fn decode(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let _ = EndEntityCert::try_from(&certificate).map(|c| identity_of(&c));
    if let Ok(validity) = Validity::of(&certificate) {
        let _ = validity.renew_at();
    }
    let _ = parse_crls(bytes);
}

#[test]
fn valid_input_is_decoded() {
    let (certificate, crl) = valid_input();
    let certificate = CertificateDer::from(certificate);
    let identity = identity_of(&EndEntityCert::try_from(&certificate).unwrap()).unwrap();
    assert_eq!(identity.to_string(), IDENTITY);
    assert!(Validity::of(&certificate).is_ok_and(|v| v.renew_at() > v.not_before));
    assert_eq!(parse_crls(&crl).0.len(), 1);
}

#[test]
fn an_invalid_section_of_pem_does_not_affect_the_others() {
    let (certificate, crl) = valid_input();
    let text = |kind: &str, der: &[u8]| pem::encode(&pem::Pem::new(kind, der));
    let broken = |kind: &str| format!("-----BEGIN {kind}-----\n*\n-----END {kind}-----\n");
    let certificate = text("CERTIFICATE", &certificate);
    let mixed = format!("{certificate}{}{certificate}", broken("CERTIFICATE"));
    let (certificates, errors) = parse_certificates(mixed.as_bytes());
    assert_eq!((certificates.len(), errors.len()), (2, 1));
    let crl = text("X509 CRL", &crl);
    let mixed = format!("{}{crl}{certificate}{crl}", broken("X509 CRL"));
    let (lists, errors) = parse_crls(mixed.as_bytes());
    assert_eq!((lists.len(), errors.len()), (2, 2), "{errors:?}");
}

#[test]
fn arbitrary_and_mutated_bytes_cause_no_panic() {
    let (certificate, crl) = valid_input();
    let changed = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    proptest!(|(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        changed in changed,
        cut in any::<prop::sample::Index>(),
    )| {
        decode(&bytes);
        for valid in [&certificate, &crl] {
            let mut bytes = valid.clone();
            for (index, byte) in &changed {
                bytes[index.index(valid.len())] = *byte;
            }
            decode(&bytes);
            decode(&bytes[..cut.index(bytes.len())]);
        }
    });
}
