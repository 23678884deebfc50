//! A certificate authority, and certificates that are valid or not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A root with its key.
#[derive(Debug)]
pub struct Authority {
    root: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// When a certificate is valid, from now.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// The age of its beginning.
    pub since: Duration,
    /// `Ok`: the time until its end; `Err`: the time since its end.
    pub until: Result<Duration, Duration>,
}

impl Validity {
    /// From two minutes ago until `long` from now.
    pub fn of(long: Duration) -> Self {
        Self {
            since: Duration::from_secs(120),
            until: Ok(long),
        }
    }

    fn apply(self, params: &mut CertificateParams) {
        let now = SystemTime::now();
        params.not_before = (now - self.since).into();
        params.not_after = match self.until {
            Ok(after) => now + after,
            Err(before) => now - before,
        }
        .into();
    }
}

impl Authority {
    /// A new self-signed root.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root certificate, DER.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Signs a request, for this identity; returns PEM.
    pub fn sign(&self, csr: &str, identity: &str, validity: Validity) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.distinguished_name = DistinguishedName::new();
        leaf(&mut request.params, identity, validity);
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// A certificate with a new key, for a peer that the test plays.
    pub fn issue(&self, identity: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        leaf(
            &mut params,
            identity,
            Validity::of(Duration::from_secs(3600)),
        );
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        (
            vec![signed.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
    }

    /// A revocation list of these serial numbers, which are hexadecimal.
    pub fn revoke(&self, serials: &[&str]) -> String {
        let now = SystemTime::now();
        let revoked = |serial: &&str| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes(serial)),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A TLS acceptor for a host name.
    pub(super) fn server(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn leaf(params: &mut CertificateParams, identity: &str, validity: Validity) {
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    validity.apply(params);
}

fn bytes(hex: &str) -> Vec<u8> {
    let padded = if hex.len().is_multiple_of(2) {
        hex.to_owned()
    } else {
        format!("0{hex}")
    };
    (0..padded.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&padded[at..at + 2], 16).unwrap())
        .collect()
}
