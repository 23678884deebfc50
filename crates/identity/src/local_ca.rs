//! A certificate authority in a directory, for a mesh on one machine. The files are those of
//! Istio's plug-in CA, so an existing CA works: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
//! `root-cert.pem`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca_error::CaError;
use crate::issued::IssuedCertificate;
use crate::issuer::{Issuer, Issuing};

/// Validity of workload certificates unless another one is requested.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid from this long before now, to tolerate clock skew.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A CA whose key is in a directory.
pub struct LocalCa {
    signer: rcgen::Issuer<'static, KeyPair>,
    /// The CA's own certificate and those above it, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// Validity of workload certificates, which are renewed at half of it.
    validity: Duration,
}

impl LocalCa {
    /// Opens a directory; an empty one gets a new CA. A lock makes concurrent proxies use the same
    /// CA.
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CaError::Io { path, source }
        };
        fs::create_dir_all(directory).map_err(io(directory))?;
        let lock_path = directory.join(".lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, e)| io(&lock_path)(e.into()))?;
        if !directory.join("ca-key.pem").exists() {
            create(directory)?;
        }
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(io(&path))
        };
        let content = |name: &str, reason: String| CaError::Content {
            path: directory.join(name),
            reason,
        };
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, CaError> {
            let parsed: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(read(name)?.as_bytes()).collect();
            let parsed = parsed.map_err(|e| content(name, e.to_string()))?;
            if parsed.is_empty() {
                Err(content(name, "the file has no certificate".to_owned()))
            } else {
                Ok(parsed)
            }
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?)
            .map_err(|e| content("ca-key.pem", e.to_string()))?;
        let signer = rcgen::Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key)
            .map_err(|e| content("ca-cert.pem", e.to_string()))?;
        let roots = certificates("root-cert.pem")?;
        let mut intermediates = certificates("ca-cert.pem")?;
        for certificate in certificates("cert-chain.pem")? {
            if !intermediates.contains(&certificate) {
                intermediates.push(certificate);
            }
        }
        intermediates.retain(|c| !roots.contains(c));
        Ok(Self {
            signer,
            intermediates,
            roots,
            validity: VALIDITY,
        })
    }

    /// Issues certificates that are valid for this long.
    #[must_use]
    pub fn with_validity(self, validity: Duration) -> Self {
        Self { validity, ..self }
    }

    /// Generates a key and issues a certificate for it.
    fn sign(&self, identity: &Identity) -> Result<IssuedCertificate, CaError> {
        let key = KeyPair::generate()?; // P-256, like Istio
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + self.validity).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(&key, &self.signer)?;
        let chain = std::iter::once(leaf.der().clone())
            .chain(self.intermediates.iter().cloned())
            .collect();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(IssuedCertificate {
            chain,
            key,
            roots: self.roots.clone(),
            ignored_roots: Vec::new(),
        })
    }
}

impl Issuer for LocalCa {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async { Ok(self.sign(identity)?) })
    }

    fn describe(&self) -> String {
        "local certificate authority".to_owned()
    }
}

/// Creates a self-signed CA. The key is written last: its presence implies that of the other files.
fn create(directory: &Path) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Underpass");
    name.push(DnType::CommonName, "Underpass local CA");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + CA_VALIDITY).into();
    let certificate = params.self_signed(&key)?.pem();
    for name in ["root-cert.pem", "ca-cert.pem", "cert-chain.pem"] {
        write(&directory.join(name), certificate.as_bytes(), 0o644)?;
    }
    write(
        &directory.join("ca-key.pem"),
        key.serialize_pem().as_bytes(),
        0o600,
    )
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let staged = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&staged)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&staged, path)
    })();
    written.map_err(|source| CaError::Io {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Validity;

    #[test]
    fn certificates_are_valid_for_the_requested_time() {
        let folder = tempfile::tempdir().unwrap();
        let identity = "spiffe://td/ns/n/sa/a".parse().unwrap();
        let hour = Duration::from_secs(3600);
        for (validity, ca) in [
            (VALIDITY, LocalCa::open(folder.path()).unwrap()),
            (
                hour,
                LocalCa::open(folder.path()).unwrap().with_validity(hour),
            ),
        ] {
            let issued = ca.sign(&identity).unwrap();
            let found = Validity::of(&issued.chain[0]).unwrap();
            let lifetime = found.not_after.duration_since(found.not_before).unwrap();
            assert_eq!(lifetime, validity + CLOCK_SKEW);
        }
    }
}
