//! Root certificates of the control plane. They are read for every connection, because a rotation
//! changes the file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;

/// System bundles of Linux distributions.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Source of the root certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootSource {
    /// A PEM file.
    File(PathBuf),
    /// The system bundle.
    System,
    /// PEM text.
    Literal(String),
}

impl RootSource {
    /// Parses the value of XDS_ROOT_CA or CA_ROOT_CA: a path, `SYSTEM`, or certificates in PEM.
    pub(crate) fn from_setting(value: &str) -> Self {
        match value {
            "SYSTEM" => Self::System,
            pem if pem.trim_start().starts_with("-----BEGIN") => Self::Literal(pem.to_owned()),
            path => Self::File(path.into()),
        }
    }

    /// Reads the current roots, in PEM.
    pub(crate) fn read(&self) -> Result<String, String> {
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map_err(|e| format!("cannot read roots from {}: {e}", path.display()))
        };
        match self {
            Self::Literal(pem) => Ok(pem.clone()),
            Self::File(path) => read(path),
            Self::System => {
                let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
                let known = SYSTEM.iter().map(PathBuf::from).filter(|p| p.exists());
                let path = own.into_iter().chain(known).next();
                read(&path.ok_or("no system roots found: set SSL_CERT_FILE to a PEM bundle")?)
            }
        }
    }
}

/// Parses PEM roots into a store for verifying servers.
pub(crate) fn root_store(pem: &str) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    let (certificates, unreadable) = identity::decode::parse_certificates(pem.as_bytes());
    // System bundles may contain certificates that rustls cannot parse; one usable root is enough.
    let (added, ignored) = roots.add_parsable_certificates(certificates);
    let ignored = ignored + unreadable.len();
    if added == 0 {
        return Err(format!(
            "no usable root certificate ({ignored} cannot be parsed)"
        ));
    }
    Ok(Arc::new(roots))
}
