//! Certificates issued by a sandbox's authority, for tests that act as a proxy.

use std::path::Path;
use std::sync::Arc;

use rcgen::{Certificate, CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::sandbox::Sandbox;

/// Issues a certificate and key for an identity. `ca` is the folder of the authority.
pub fn certificate(
    ca: &Path,
    identity: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (leaf, key) = issue(ca, identity);
    let root = std::fs::read(ca.join("root-cert.pem")).unwrap();
    let root = CertificateDer::from_pem_slice(&root).unwrap();
    (
        vec![leaf.der().clone(), root],
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    )
}

/// The same in PEM, without the root.
pub fn certificate_pem(ca: &Path, identity: &str) -> (String, String) {
    let (leaf, key) = issue(ca, identity);
    (leaf.pem(), key.serialize_pem())
}

fn issue(ca: &Path, identity: &str) -> (Certificate, KeyPair) {
    let read = |name: &str| std::fs::read_to_string(ca.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(
        &read("ca-cert.pem"),
        KeyPair::from_pem(&read("ca-key.pem")).unwrap(),
    )
    .unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (leaf, key)
}

/// A TLS acceptor with a certificate of the sandbox's authority.
pub fn acceptor(sandbox: &Sandbox, identity: &str) -> tokio_rustls::TlsAcceptor {
    let (chain, key) = certificate(&sandbox.folder().join("box/ca"), identity);
    let mut server =
        rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    tokio_rustls::TlsAcceptor::from(Arc::new(server))
}
