//! Certificates that are no longer to be trusted: lists in a file or a folder, read again whenever they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;
use webpki::CertRevocationList;

use super::decode;

/// The lists that are in force.
#[derive(Debug)]
pub(crate) struct Revocations {
    lists: ArcSwap<Vec<CertRevocationList<'static>>>,
    /// Counts how often they have changed.
    changed: watch::Sender<u64>,
    /// Why the file is not taken, if it is not.
    trouble: Mutex<Option<String>>,
}

impl Revocations {
    /// None, for ever.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self { lists: Default::default(), changed: watch::Sender::new(0), trouble: Mutex::default() })
    }

    /// Those of a file, or of all files of a folder, followed by a thread of its own.
    pub(crate) fn follow(path: &Path) -> io::Result<Arc<Self>> {
        let revocations = Self::none();
        let mut inotify = Inotify::init()?;
        let events = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A mounted ConfigMap changes by a link in its folder, so the folder is what is watched.
        inotify.watches().add(if path.is_dir() { path } else { parent }, events)?;
        revocations.read(path);
        let (followed, path) = (revocations.clone(), path.to_path_buf());
        std::thread::Builder::new().name("crl".into()).spawn(move || {
            let mut buffer = [0; 4096];
            while inotify.read_events_blocking(&mut buffer).is_ok() {
                followed.read(&path);
            }
            tracing::error!("the lists of revoked certificates are not watched any more");
        })?;
        Ok(revocations)
    }

    fn read(&self, path: &Path) {
        match load(path) {
            Ok(lists) => {
                tracing::info!(lists = lists.len(), "lists of revoked certificates are in force");
                self.lists.store(Arc::new(lists));
                self.changed.send_modify(|count| *count += 1);
                self.set_trouble(None);
            }
            Err(why) => {
                let text = format!("{}: {why}", error_code::control::CRL);
                tracing::error!("the lists of revoked certificates that were read last stay in force: {text}");
                self.set_trouble(Some(text));
            }
        }
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Why the file is not taken, if it is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lists that are in force now.
    pub(super) fn lists(&self) -> arc_swap::Guard<Arc<Vec<CertRevocationList<'static>>>> {
        self.lists.load()
    }

    /// Tells every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn load(path: &Path) -> Result<Vec<CertRevocationList<'static>>, String> {
    let in_words = |path: &Path| {
        let path = path.display().to_string();
        move |e: io::Error| format!("{path}: {e}")
    };
    if !path.is_dir() {
        return decode::lists(&fs::read(path).map_err(in_words(path))?)
            .map_err(|why| format!("{}: {why}", path.display()));
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir(path).map_err(in_words(path))?.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.sort();
    let mut lists = Vec::new();
    for file in files {
        let bytes = fs::read(&file).map_err(in_words(&file))?;
        lists.extend(decode::lists(&bytes).map_err(|why| format!("{}: {why}", file.display()))?);
    }
    Ok(lists)
}
