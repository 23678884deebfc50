//! A certificate authority in a folder, for a mesh on one machine. The files are those of Istio's plug-in CA, so a CA of
//! one's own works too: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh::Identity;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::issued::Issued;

/// How long a workload's certificate is valid; it is renewed at half of that.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Certificates begin a little in the past, for clocks that differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("{code}: {path}: {source}", code = error_code::proxy::CA_FOLDER)]
    Io { path: PathBuf, source: io::Error },
    #[error("{code}: {path}: {why}", code = error_code::proxy::CA_FOLDER)]
    Content { path: PathBuf, why: String },
    #[error("{code}: {0}", code = error_code::proxy::CA_FOLDER)]
    Sign(#[from] rcgen::Error),
}

/// A CA whose key is in a folder.
pub(crate) struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    /// From the CA's own certificate up, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl LocalCa {
    /// Opens the folder; an empty one gets a new CA. Proxies that do this at the same moment agree on one.
    pub(crate) fn open(folder: &Path) -> Result<Self, CaError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CaError::Io { path, source }
        };
        fs::create_dir_all(folder).map_err(io(folder))?;
        let lock_path = folder.join(".lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| io(&lock_path)(e.into()))?;
        if !folder.join("ca-key.pem").exists() {
            create(folder)?;
        }
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(io(&path))
        };
        let content = |name: &str, why: String| CaError::Content { path: folder.join(name), why };
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, CaError> {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(read(name)?.as_bytes()).collect();
            let parsed = parsed.map_err(|e| content(name, e.to_string()))?;
            if parsed.is_empty() { Err(content(name, "no certificate in it".to_owned())) } else { Ok(parsed) }
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?).map_err(|e| content("ca-key.pem", e.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key).map_err(|e| content("ca-cert.pem", e.to_string()))?;
        let roots = certificates("root-cert.pem")?;
        let mut intermediates = certificates("ca-cert.pem")?;
        for certificate in certificates("cert-chain.pem")? {
            if !intermediates.contains(&certificate) {
                intermediates.push(certificate);
            }
        }
        intermediates.retain(|c| !roots.contains(c));
        Ok(Self { issuer, intermediates, roots })
    }

    /// A fresh key and a certificate for it.
    pub(crate) fn issue(&self, identity: &Identity) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?; // P-256, as Istio's
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + VALIDITY).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = std::iter::once(leaf.der().clone()).chain(self.intermediates.iter().cloned()).collect();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Issued { chain, key, roots: self.roots.clone() })
    }
}

/// Makes a self-signed CA. The key is written last: its presence says that the rest is there.
fn create(folder: &Path) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Underpass");
    params.distinguished_name.push(DnType::CommonName, "Underpass local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + CA_VALIDITY).into();
    let certificate = params.self_signed(&key)?.pem();
    for name in ["root-cert.pem", "ca-cert.pem", "cert-chain.pem"] {
        write(&folder.join(name), certificate.as_bytes(), 0o644)?;
    }
    write(&folder.join("ca-key.pem"), key.serialize_pem().as_bytes(), 0o600)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let staged = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&staged, path)
    })();
    written.map_err(|source| CaError::Io { path: path.to_path_buf(), source })
}
