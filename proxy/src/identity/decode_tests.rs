//! Any bytes, and good ones with some of them changed, harm nobody.

use proptest::prelude::*;
use rcgen::{CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, SanType, SerialNumber};

use super::*;

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/client";

/// A certificate and a list that were made as an authority makes them.
fn good() -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign, rcgen::KeyUsagePurpose::KeyCertSign];
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(IDENTITY.try_into().unwrap())];
    let certificate = leaf.self_signed(&key).unwrap().der().to_vec();
    let now = rcgen::date_time_ymd(2026, 1, 1);
    let list = CertificateRevocationListParams {
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
    let list = list.signed_by(&rcgen::Issuer::new(root, &key)).unwrap().der().to_vec();
    (certificate, list)
}

fn decode(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let _ = EndEntityCert::try_from(&certificate).map(|c| identity_of(&c));
    if let Ok(validity) = Validity::of(&certificate) {
        let _ = validity.renew_at();
    }
    let _ = lists(bytes);
}

#[test]
fn good_ones_are_read() {
    let (certificate, list) = good();
    let certificate = CertificateDer::from(certificate);
    let identity = identity_of(&EndEntityCert::try_from(&certificate).unwrap()).unwrap();
    assert_eq!(identity.to_string(), IDENTITY);
    assert!(Validity::of(&certificate).is_ok_and(|v| v.renew_at() > v.not_before));
    assert_eq!(lists(&list).unwrap().len(), 1);
}

#[test]
fn any_bytes_as_certificates_and_lists_harm_nobody() {
    let (certificate, list) = good();
    let changed = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300), changed in changed, cut in any::<prop::sample::Index>())| {
        decode(&bytes);
        for good in [&certificate, &list] {
            let mut bytes = good.clone();
            for (index, byte) in &changed {
                bytes[index.index(good.len())] = *byte;
            }
            decode(&bytes);
            decode(&bytes[..cut.index(bytes.len())]);
        }
    });
}
