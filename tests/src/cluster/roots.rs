//! Istio's certificate authority as plugged-in files, so that a test controls when its root
//! changes.

use std::fs;
use std::path::{Path, PathBuf};

use super::pki::RootCa;

/// The folder that istiod watches.
#[derive(Debug)]
pub struct Roots {
    folder: PathBuf,
    signing: RootCa,
}

impl Roots {
    /// Creates the folder with a first root.
    pub fn create(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let roots = Self {
            folder: folder.to_owned(),
            signing: RootCa::new("Istio's first root"),
        };
        roots.write(&roots.signing, &roots.signing.certificate);
        roots
    }

    /// The roots that workloads trust, PEM.
    pub fn trusted(&self) -> String {
        fs::read_to_string(self.folder.join("root-cert.pem")).unwrap()
    }

    /// The files by name.
    pub fn files(&self) -> Vec<(String, String)> {
        let names = [
            "root-cert.pem",
            "cert-chain.pem",
            "ca-cert.pem",
            "ca-key.pem",
        ];
        names
            .map(|name| {
                (
                    name.to_owned(),
                    fs::read_to_string(self.folder.join(name)).unwrap(),
                )
            })
            .to_vec()
    }

    /// Adds a trusted root; the current one continues to sign. Pass the result to
    /// [`Roots::sign_with`].
    pub fn announce(&self) -> RootCa {
        let next = RootCa::new("Istio's next root");
        self.write(
            &self.signing,
            &format!("{}{}", self.signing.certificate, next.certificate),
        );
        next
    }

    /// Signs with this root from now on; both stay trusted.
    pub fn sign_with(&mut self, next: RootCa) {
        self.write(
            &next,
            &format!("{}{}", self.signing.certificate, next.certificate),
        );
        self.signing = next;
    }

    /// Trusts only the signing root.
    pub fn retire_others(&self) {
        self.write(&self.signing, &self.signing.certificate);
    }

    /// Writes the files. istiod reads all of them again whenever one has changed, so that the last
    /// one counts.
    fn write(&self, signing: &RootCa, trusted: &str) {
        for (name, content) in [
            ("root-cert.pem", trusted),
            ("cert-chain.pem", &signing.certificate),
            ("ca-cert.pem", &signing.certificate),
            ("ca-key.pem", &signing.issuer.key().serialize_pem()),
        ] {
            let staged = self.folder.with_extension("staged");
            fs::write(&staged, content).unwrap();
            fs::rename(staged, self.folder.join(name)).unwrap();
        }
    }
}
