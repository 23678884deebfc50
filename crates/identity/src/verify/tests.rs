use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh::TrustDomains;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName as Name, DnType, IsCa, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use webpki::CertRevocationList;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

use super::*;
use crate::decode::parse_crls;
use crate::revocation::Revocations;
use crate::tls::TlsPolicy;

/// The algorithm of the test's certificates, which counts verifications.
#[derive(Debug)]
struct Counted;

static VERIFIED: AtomicUsize = AtomicUsize::new(0);

impl SignatureVerificationAlgorithm for Counted {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        VERIFIED.fetch_add(1, Ordering::Relaxed);
        ECDSA_P256_SHA256.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.signature_alg_id()
    }
}

static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[&Counted],
    mapping: &[],
};

const SERIAL: u64 = 7;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = Name::new();
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A list of this authority that revokes the leaf, or another certificate.
fn list(authority: &CertifiedIssuer<'_, KeyPair>, serial: u64) -> CertRevocationList<'static> {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: rcgen::date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let der = list.signed_by(authority).unwrap().der().to_vec();
    parse_crls(&der).0.remove(0)
}

/// A leaf of this authority.
fn leaf(
    authority: &CertifiedIssuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let mut leaf = CertificateParams::default();
    let uri = Ia5String::try_from("spiffe://cluster.local/ns/a/sa/b").unwrap();
    leaf.subject_alt_names = vec![SanType::URI(uri)];
    change(&mut leaf);
    let key = KeyPair::generate().unwrap();
    leaf.signed_by(&key, authority).unwrap().der().clone()
}

fn trust(revocations: Arc<Revocations>) -> Arc<Trust> {
    Arc::new(Trust {
        tls: TlsPolicy::new(false, false),
        domains: Arc::new(TrustDomains::default()),
        revocations,
    })
}

#[test]
fn a_certificate_outside_its_validity_is_explained_with_both_dates() {
    let mine = authority("mine");
    let leaf = leaf(&mine, |leaf| {
        leaf.not_before = rcgen::date_time_ymd(2030, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2030, 1, 2);
    });
    let roots = Roots::new(&[mine.der().clone()], trust(Revocations::empty())).unwrap();
    let explained = |days: u64| {
        let begin = 1_893_456_000; // 2030-01-01T00:00:00Z
        let now = UnixTime::since_unix_epoch(Duration::from_secs(begin + days * 86_400 - 60));
        let verified = roots.verify(&leaf, &[], KeyUsage::client_auth(), now);
        explain(&std::io::Error::other(verified.unwrap_err()))
    };
    for (day, dates) in [
        (0, ["2030-01-01T00:00:00Z", "2029-12-31T23:59:00Z"]),
        (3, ["2030-01-02T00:00:00Z", "2030-01-03T23:59:00Z"]),
    ] {
        let text = explained(day);
        let is_named = |date: &&str| text.contains(*date);
        assert!(dates.iter().all(is_named), "{text}");
        assert!(text.contains("check the clocks of both nodes"), "{text}");
    }
}

/// The peers of tunnels are verified in the handshake. Without a list that could have revoked them,
/// nothing would be learnt from verifying them again.
#[test]
fn a_verified_chain_is_verified_again_only_for_a_list_of_its_issuer() {
    let (mine, other) = (authority("mine"), authority("other"));
    let leaf = leaf(&mine, |leaf| {
        leaf.serial_number = Some(SerialNumber::from(SERIAL))
    });
    let revocations = Revocations::empty();
    let trust = trust(revocations.clone());
    let roots = Roots {
        algorithms: ALGORITHMS,
        ..Roots::new(&[mine.der().clone()], trust).unwrap()
    };
    let (chain, usage) = ([leaf], KeyUsage::client_auth());
    let check = || {
        let before = VERIFIED.load(Ordering::Relaxed);
        let is_revoked = roots.is_revoked(&chain, &usage);
        (is_revoked, VERIFIED.load(Ordering::Relaxed) - before)
    };

    let now = UnixTime::now();
    assert!(roots.verify(&chain[0], &[], usage, now).is_ok());
    assert_eq!(check(), (false, 0), "no list");
    revocations.set(vec![list(&other, SERIAL)]);
    assert_eq!(check(), (false, 0), "a list of another issuer");
    revocations.set(vec![list(&other, SERIAL), list(&mine, SERIAL + 1)]);
    assert_eq!(check(), (false, 2), "the leaf and the list");
    revocations.set(vec![list(&mine, SERIAL)]);
    assert_eq!(check(), (true, 2));
    assert!(roots.verify(&chain[0], &[], usage, now).is_err());
}
