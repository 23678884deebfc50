//! A certificate of the mesh, which proves both ends.
#![allow(dead_code, reason = "each test uses a part")]

use std::rc::Rc;
use std::sync::Arc;

use identity::{Certificates, Credentials, LocalCa, Revocations, TlsPolicy, Trust};
use mesh::{Identity, TrustDomains};

const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/default";

pub async fn credentials() -> Arc<Credentials> {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust {
        tls: TlsPolicy::new(false, false),
        domains: Arc::new(TrustDomains::default()),
        revocations: Revocations::empty(),
    };
    let ca = LocalCa::open(folder.path()).unwrap();
    let certificates = Rc::new(Certificates::new(Box::new(ca), Arc::new(trust)));
    let identity: Identity = IDENTITY.parse().unwrap();
    let (_claim, handle) = certificates.claim(&identity);
    let running = tokio::task::spawn_local(certificates.run());
    let credentials = handle.get().await.unwrap();
    running.abort();
    credentials
}

/// The configuration of a client that accepts the certificate.
pub fn client_config(credentials: &Credentials) -> Arc<rustls::ClientConfig> {
    client_config_for(credentials, IDENTITY)
}

/// The configuration of a client that accepts certificates of an identity.
pub fn client_config_for(credentials: &Credentials, expected: &str) -> Arc<rustls::ClientConfig> {
    credentials.client_config(&[expected.into()]).unwrap()
}
