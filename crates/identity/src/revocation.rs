//! Certificate revocation lists (CRLs) from a file or a directory, reloaded when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use folder_watch::FolderWatch;
use inotify::WatchMask;
use parking_lot::Mutex;
use tokio::sync::watch;
use webpki::CertRevocationList;

use crate::decode::{self, DecodeError};

/// A CRL and where it comes from.
#[derive(Debug)]
pub(super) struct RevocationList {
    pub(super) crl: CertRevocationList<'static>,
    path: PathBuf,
    /// Why it does not apply to the certificates of its issuer.
    unusable: OnceLock<String>,
}

impl RevocationList {
    /// Records that the list cannot be verified, e.g. because another key signed it.
    pub(super) fn set_unusable(&self, error: &webpki::Error) {
        let (code, path) = (error_code::control::CRL, self.path.display());
        let text = format!("{code}: {path}: ignoring a list: {error}");
        if self.unusable.set(text.clone()).is_ok() {
            tracing::warn!("{text}");
        }
    }
}

/// The active CRLs.
#[derive(Debug)]
pub struct Revocations {
    pub(super) lists: ArcSwap<Vec<Arc<RevocationList>>>,
    /// Number of reloads.
    pub(super) changed: watch::Sender<u64>,
    /// Errors of the last load, each with its code.
    errors: Mutex<Vec<String>>,
    is_effective: AtomicBool,
}

impl Revocations {
    /// An empty set that never changes.
    pub fn empty() -> Arc<Self> {
        let revocations = Self::unread();
        revocations.is_effective.store(true, Ordering::Release);
        Arc::new(revocations)
    }

    fn unread() -> Self {
        Self {
            lists: Default::default(),
            changed: watch::Sender::new(0),
            errors: Mutex::default(),
            is_effective: AtomicBool::new(false),
        }
    }

    /// Replaces the lists by these.
    #[cfg(test)]
    pub(crate) fn set(&self, crls: Vec<CertRevocationList<'static>>) {
        let lists = crls.into_iter().map(|crl| {
            Arc::new(RevocationList {
                crl,
                path: PathBuf::new(),
                unusable: OnceLock::new(),
            })
        });
        self.lists.store(Arc::new(lists.collect()));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Loads the CRLs in a file, or in all files of a directory, and watches it on a thread of its
    /// own. The path need not exist yet.
    pub fn watch(path: &Path) -> io::Result<Arc<Self>> {
        let revocations = Arc::new(Self::unread());
        let events =
            WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        // A mounted ConfigMap changes by replacing a symlink in its directory.
        let folders = [parent.to_path_buf(), path.to_path_buf()];
        let mut changes = FolderWatch::new(folders, events);
        let mut last = read(path);
        revocations.apply(&last);
        let (watched, path) = (revocations.clone(), path.to_path_buf());
        std::thread::Builder::new()
            .name("crl".into())
            .spawn(move || {
                loop {
                    changes.wait(Duration::MAX);
                    let contents = read(&path);
                    if contents != last {
                        watched.apply(&contents);
                        last = contents;
                    }
                }
            })?;
        Ok(revocations)
    }

    /// Replaces all lists. Of what cannot be used, the previous lists stay.
    fn apply(&self, contents: &[(PathBuf, Result<Vec<u8>, String>)]) {
        let previous = self.lists.load_full();
        let (mut lists, mut errors) = (Vec::new(), Vec::new());
        for (path, content) in contents {
            let (crls, reasons) = match content {
                Ok(bytes) => decode::parse_crls(bytes),
                Err(e) => (vec![], vec![DecodeError::Unreadable(e.clone())]),
            };
            // The path is a directory if that cannot be read.
            let of_path = previous.iter().filter(|list| list.path.starts_with(path));
            let kept: Vec<_> = of_path.cloned().collect();
            let (code, effect) = if kept.is_empty() {
                (error_code::control::NO_CRL, "no version of it is in effect")
            } else {
                (
                    error_code::control::CRL,
                    "the previous lists stay in effect",
                )
            };
            let path_text = path.display();
            errors.extend(
                reasons
                    .iter()
                    .map(|reason| format!("{code}: {path_text}: {reason}; {effect}")),
            );
            if !reasons.is_empty() {
                lists.extend(kept);
            }
            lists.extend(crls.into_iter().map(|crl| {
                Arc::new(RevocationList {
                    crl,
                    path: path.clone(),
                    unusable: OnceLock::new(),
                })
            }));
        }
        tracing::info!(lists = lists.len(), "loaded CRLs");
        for error in &errors {
            tracing::error!("{error}");
        }
        if errors.is_empty() || !lists.is_empty() {
            self.is_effective.store(true, Ordering::Release);
        }
        self.lists.store(Arc::new(lists));
        *self.errors.lock() = errors;
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether revocation was ever in effect: at least one list could be read, or there was none to
    /// read. Before that, peers with a revoked certificate would be accepted.
    pub(crate) fn is_effective(&self) -> bool {
        self.is_effective.load(Ordering::Acquire)
    }

    /// Waits until [`is_effective`](Self::is_effective).
    pub(crate) async fn until_effective(&self) {
        let mut changes = self.changed.subscribe();
        while !self.is_effective() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the sender lives as long as `self`
            }
        }
    }

    /// What cannot be loaded and what is ignored, if anything, with error codes.
    pub(crate) fn last_error(&self) -> Option<String> {
        let mut all = self.errors.lock().clone();
        let lists = self.lists.load();
        all.extend(lists.iter().filter_map(|list| list.unusable.get().cloned()));
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Reads the file, or all files of the directory. What cannot be read has the reason.
fn read(path: &Path) -> Vec<(PathBuf, Result<Vec<u8>, String>)> {
    let read_file = |file: PathBuf| {
        let content = fs::read(&file).map_err(|e| e.to_string());
        (file, content)
    };
    if !path.is_dir() {
        return vec![read_file(path.to_owned())];
    }
    let files = fs::read_dir(path).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.path()))
            .filter(|file| !file.as_ref().is_ok_and(|file| file.is_dir()))
            .collect::<io::Result<Vec<PathBuf>>>()
    });
    match files {
        Ok(mut files) => {
            files.sort();
            files.into_iter().map(read_file).collect()
        }
        Err(e) => vec![(path.to_owned(), Err(e.to_string()))],
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
    };
    use time::OffsetDateTime;

    use super::*;

    /// A list, signed by an authority of its own, in PEM.
    fn list() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let now = OffsetDateTime::now_utc();
        let crl = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = crl.signed_by(&Issuer::new(params, key)).unwrap();
        signed.pem().unwrap().into_bytes()
    }

    /// Reports the codes of the errors, and how many lists are active.
    fn outcome(revocations: &Revocations) -> (usize, bool, Vec<String>) {
        let errors = revocations.errors.lock().clone();
        let code = |error: &String| error.split(':').next().unwrap_or_default().to_owned();
        let lists = revocations.lists.load().len();
        (
            lists,
            revocations.is_effective(),
            errors.iter().map(code).collect(),
        )
    }

    fn codes(codes: &[&str]) -> Vec<String> {
        codes.iter().map(|code| (*code).to_owned()).collect()
    }

    #[test]
    fn revocation_is_effective_once_something_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lists");
        let revocations = Revocations::unread();
        let outcome_of = |path: &Path| {
            revocations.apply(&read(path));
            outcome(&revocations)
        };
        let missing = codes(&["UP-CONTROL-014"]);
        assert_eq!(
            outcome_of(&path),
            (0, false, missing.clone()),
            "nothing is there"
        );
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a"), "no list").unwrap();
        assert_eq!(
            outcome_of(&path),
            (0, false, missing.clone()),
            "one bad file"
        );
        std::os::unix::fs::symlink("nowhere", path.join("c")).unwrap();
        fs::write(path.join("b"), list()).unwrap();
        let both = codes(&["UP-CONTROL-014", "UP-CONTROL-014"]);
        assert_eq!(
            outcome_of(&path),
            (1, true, both),
            "a good one between two bad ones"
        );
        fs::remove_file(path.join("c")).unwrap();
        fs::write(path.join("a"), list()).unwrap();
        assert_eq!(outcome_of(&path), (2, true, vec![]), "two good ones");
        fs::write(path.join("a"), "no list").unwrap();
        let kept = codes(&["UP-CONTROL-010"]);
        assert_eq!(
            outcome_of(&path),
            (2, true, kept.clone()),
            "an earlier version"
        );
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        assert_eq!(outcome_of(&path), (2, true, kept), "the folder is gone");
        fs::create_dir(&path).unwrap();
        assert_eq!(outcome_of(&path), (0, true, vec![]), "the folder is empty");
        assert!(Revocations::empty().is_effective());
    }

    #[test]
    fn an_empty_folder_means_that_nothing_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let revocations = Revocations::unread();
        revocations.apply(&read(folder.path()));
        assert_eq!(outcome(&revocations), (0, true, vec![]));
    }
}
