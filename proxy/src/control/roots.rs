//! Whom to trust as a control plane. Read anew for every connection, for the file changes when the root is rotated.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Where Linux distributions have the roots of the system.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where the roots are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootSource {
    /// In this file.
    File(PathBuf),
    /// They are those of the system.
    System,
    /// They are this.
    Literal(String),
}

impl RootSource {
    /// From the value of XDS_ROOT_CA or CA_ROOT_CA: a path, `SYSTEM`, or the certificates themselves.
    pub(crate) fn from_setting(value: &str) -> Self {
        match value {
            "SYSTEM" => Self::System,
            pem if pem.trim_start().starts_with("-----BEGIN") => Self::Literal(pem.to_owned()),
            path => Self::File(path.into()),
        }
    }

    /// What is there now, in PEM.
    pub(crate) fn read(&self) -> Result<String, String> {
        let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("roots in {}: {e}", path.display()));
        match self {
            Self::Literal(pem) => Ok(pem.clone()),
            Self::File(path) => read(path),
            Self::System => {
                let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
                let known = SYSTEM.iter().map(PathBuf::from).filter(|p| p.exists());
                let path = own.into_iter().chain(known).next();
                read(&path.ok_or("no roots of the system are found; SSL_CERT_FILE may name them")?)
            }
        }
    }
}

/// The certificates of a PEM text, as something to verify servers with.
pub(crate) fn store(pem: &str) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| format!("roots: {e}"))?;
    // A bundle of the system may hold what this library does not take; one that is taken is enough.
    let (taken, refused) = roots.add_parsable_certificates(certificates);
    match taken {
        0 => Err(format!("there is no root that can be used, and {refused} that cannot")),
        _ => Ok(Arc::new(roots)),
    }
}
