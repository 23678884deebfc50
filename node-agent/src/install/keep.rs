//! Keeps the plugin installed while the agent runs, whatever else writes to the runtime's folders.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use error_code::agent as codes;
use folder_watch::FolderWatch;
use inotify::WatchMask;

use super::files::InstallOutcome;
use super::pace::Pace;
use super::{Folders, PluginEntry, install};

/// When an installation that failed is tried again, if no folder changes before.
const RETRY: Duration = Duration::from_secs(5);

/// State of the installation, shared with the thread that maintains it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Installation {
    missing: Arc<Mutex<Option<String>>>,
    chained: Arc<Mutex<Option<Instant>>>,
    /// Locked during an installation.
    stopped: Arc<Mutex<bool>>,
}

impl Installation {
    /// Why the plugin is not installed; `None` if it is, or if the agent does not install it.
    pub(crate) fn missing(&self) -> Option<String> {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When the agent last had to chain the plugin; `None` if it found it chained, or does not
    /// install it. Before that, the runtime may have started pods without it.
    pub(crate) fn chained_at(&self) -> Option<Instant> {
        *self.chained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prevents any further installation.
    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn record(&self, outcome: &anyhow::Result<InstallOutcome>) {
        if !matches!(outcome, Ok(InstallOutcome::Unchanged)) {
            let now = Some(Instant::now());
            *self.chained.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
        self.set_missing(match outcome {
            Ok(InstallOutcome::Written(_) | InstallOutcome::Unchanged) => None,
            Ok(InstallOutcome::NoConfiguration) => {
                let code = codes::NO_CONFLIST;
                Some(format!("{code}: {}", code.what))
            }
            Err(e) => Some(format!("{e:#}")),
        });
    }

    fn set_missing(&self, missing: Option<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }
}

/// Installs the plugin, and starts a thread that reinstalls it whenever the runtime's folders
/// change. An installation that fails is logged, makes the agent unready and is tried again.
pub(crate) fn keep_installed(
    folders: Folders,
    entry: PluginEntry,
    state: Installation,
) -> anyhow::Result<()> {
    let paths = [&folders.conf_dir, &folders.bin_dir];
    for folder in paths {
        if let Err(e) = fs::create_dir_all(folder) {
            tracing::error!("{}: {}: {e}", codes::INSTALL, folder.display());
        }
    }
    let events =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    let watch = FolderWatch::new(paths.map(Clone::clone), events);
    let mut keeper = Keeper {
        folders,
        entry,
        state,
        pace: Pace::default(),
        seen: None,
        last_error: None,
    };
    keeper.install();
    std::thread::Builder::new()
        .name("install".into())
        .spawn(move || keeper.run(watch))?;
    Ok(())
}

struct Keeper {
    folders: Folders,
    entry: PluginEntry,
    state: Installation,
    pace: Pace,
    /// The folders as they were before the last installation; `None` if they may change unnoticed.
    seen: Option<Vec<Entry>>,
    last_error: Option<String>,
}

impl Keeper {
    fn run(mut self, mut watch: FolderWatch) {
        loop {
            watch.wait(match self.last_error {
                Some(_) => RETRY,
                None => Duration::MAX,
            });
            // Not every event is a change, and without inotify there are no events.
            if self.last_error.is_none() && self.seen.is_some() && self.seen == self.look() {
                continue;
            }
            let delay = self.pace.delay(Instant::now());
            if !delay.is_zero() {
                let code = codes::CONTESTED;
                self.state
                    .set_missing(Some(format!("{code}: {}", code.what)));
                std::thread::sleep(delay);
            }
            if !self.install() {
                return;
            }
        }
    }

    /// Installs the plugin; returns `false` once the installation is stopped for good.
    fn install(&mut self) -> bool {
        let stopped = self.state.stopped.clone();
        let stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return false;
        }
        self.seen = self.look();
        let outcome = install(&self.folders, &self.entry);
        drop(stopped);
        self.state.record(&outcome);
        if let Ok(InstallOutcome::Written(path)) = &outcome
            && self.pace.rewritten(Instant::now())
        {
            let (code, path) = (codes::CONTESTED, path.display());
            tracing::warn!(
                "{code}: {path} is rewritten again and again; the agent chains its plugin at \
                 increasing intervals. Next step: {}",
                code.next_step
            );
        }
        let error = outcome.err().map(|e| format!("{e:#}"));
        if let Some(error) = error
            .as_ref()
            .filter(|e| self.last_error.as_ref() != Some(e))
        {
            tracing::error!("{error}");
        }
        self.last_error = error;
        true
    }

    /// The files in both folders; `None` if one has just changed, because a second change within
    /// the resolution of the file system's clock would look the same.
    fn look(&self) -> Option<Vec<Entry>> {
        let mut files = Vec::new();
        for folder in [&self.folders.conf_dir, &self.folders.bin_dir] {
            files.extend(fs::read_dir(folder).into_iter().flatten().flatten());
        }
        let mut entries: Vec<Entry> = files.iter().map(|f| Entry::read(&f.path())).collect();
        entries.sort();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok())?;
        entries
            .iter()
            .all(|e| e.changed.0 + 1 < now)
            .then_some(entries)
    }
}

/// What identifies the content of a file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    path: PathBuf,
    inode: u64,
    /// Seconds and nanoseconds of the last change.
    changed: (i64, i64),
}

impl Entry {
    fn read(path: &Path) -> Self {
        let found = fs::metadata(path).map(|m| (m.ino(), (m.ctime(), m.ctime_nsec())));
        let (inode, changed) = found.unwrap_or_default();
        Self {
            path: path.to_owned(),
            inode,
            changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_missing_until_it_is_in_a_chain() {
        let installation = Installation::default();
        for (outcome, missing) in [
            (
                Ok(InstallOutcome::NoConfiguration),
                Some(codes::NO_CONFLIST.code),
            ),
            (Ok(InstallOutcome::Written("/x".into())), None),
            (Err(anyhow::anyhow!("disk full")), Some("disk full")),
            (Ok(InstallOutcome::Unchanged), None),
        ] {
            installation.record(&outcome);
            let found = installation.missing();
            match missing {
                Some(text) => assert!(found.is_some_and(|why| why.contains(text)), "{outcome:?}"),
                None => assert_eq!(found, None, "{outcome:?}"),
            }
        }
    }
}
