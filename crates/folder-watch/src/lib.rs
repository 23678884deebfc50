//! Waits for changes in folders. Where inotify is not available, because a busy node has used up
//! its instances, the folders are checked at intervals.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often folders are checked that cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How often the paths are compared with the watched folders, because no event reports that a
/// parent folder was renamed.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Waits for changes in folders, which may be removed and created again.
#[derive(Debug)]
pub struct FolderWatch {
    folders: Vec<Folder>,
    events: WatchMask,
    inotify: Option<Inotify>,
    open: fn() -> io::Result<Inotify>,
    /// Whether the last attempt to watch failed, which is logged once.
    is_polling: bool,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    watch: Option<WatchDescriptor>,
}

impl FolderWatch {
    /// Starts to watch. Changes from now on end the next [`wait`](Self::wait), so the caller reads
    /// the folders after this call. `events` are the inotify events of interest.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>, events: WatchMask) -> Self {
        Self::with(folders, events, Inotify::init)
    }

    fn with(
        folders: impl IntoIterator<Item = PathBuf>,
        events: WatchMask,
        open: fn() -> io::Result<Inotify>,
    ) -> Self {
        let folder = |path| Folder { path, watch: None };
        let mut watch = Self {
            folders: folders.into_iter().map(folder).collect(),
            events: events | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF,
            inotify: None,
            open,
            is_polling: false,
        };
        watch.renew();
        watch
    }

    /// Waits until a folder may have changed, at most for `limit`. A caller must expect that
    /// nothing has changed.
    pub fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now().checked_add(limit);
        loop {
            // The folder exists again, or another folder has its path.
            if self.renew() {
                return;
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(Duration::MAX);
            let is_complete = self.folders.iter().all(|f| f.watch.is_some());
            let (interval, ends) = if is_complete {
                (RECHECK_INTERVAL, false)
            } else {
                (POLL_INTERVAL, true)
            };
            if self.await_event(left.min(interval)) || ends || left <= interval {
                return;
            }
        }
    }

    /// Watches whatever is at the paths now. Returns whether a watch is new.
    fn renew(&mut self) -> bool {
        let mut failed = None;
        if self.inotify.is_none() {
            match (self.open)() {
                Ok(inotify) => self.inotify = Some(inotify),
                Err(e) => failed = Some(e),
            }
        }
        let mut is_new = false;
        if let Some(inotify) = &mut self.inotify {
            for folder in &mut self.folders {
                let watch = match inotify.watches().add(&folder.path, self.events) {
                    Ok(watch) => Some(watch),
                    // The caller notices it as well.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                    Err(e) => {
                        failed = Some(e);
                        None
                    }
                };
                if folder.watch == watch {
                    continue;
                }
                is_new |= watch.is_some();
                if let Some(old) = std::mem::replace(&mut folder.watch, watch) {
                    // Fails if the folder was removed, and its watch with it.
                    let _ = inotify.watches().remove(old);
                }
            }
        }
        self.report(failed);
        is_new
    }

    fn report(&mut self, failed: Option<io::Error>) {
        let was_polling = std::mem::replace(&mut self.is_polling, failed.is_some());
        let paths: Vec<String> = self
            .folders
            .iter()
            .map(|f| f.path.display().to_string())
            .collect();
        let paths = paths.join(" and ");
        match failed {
            Some(e) if !was_polling => tracing::warn!(
                "cannot watch {paths}: {e}; checking for changes every {} s instead. If this node \
                 has no inotify instances or watches left, raise fs.inotify.max_user_instances or \
                 fs.inotify.max_user_watches",
                POLL_INTERVAL.as_secs()
            ),
            None if was_polling => tracing::info!("watching {paths} again"),
            _ => {}
        }
    }

    /// Waits for an event and discards it; returns whether there was one.
    fn await_event(&mut self, limit: Duration) -> bool {
        let Some(inotify) = &mut self.inotify else {
            std::thread::sleep(limit);
            return false;
        };
        // Whole milliseconds, rounded up.
        let timeout = PollTimeout::try_from(limit + Duration::from_millis(1));
        let timeout = timeout.unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            return false;
        }
        let mut buffer = [0; 4096];
        loop {
            match inotify.read_events(&mut buffer) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) => {
                    tracing::debug!("inotify failed, opening it again: {e}");
                    self.inotify = None;
                    self.folders.iter_mut().for_each(|f| f.watch = None);
                    return true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const EVENTS: WatchMask = WatchMask::CLOSE_WRITE;
    const LONG: Duration = Duration::from_secs(60);

    /// Waits, and asserts that a change ended the wait.
    #[track_caller]
    fn assert_notices(watch: &mut FolderWatch) {
        let start = Instant::now();
        watch.wait(LONG);
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn a_change_ends_the_wait_and_silence_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new([folder.path().to_owned()], EVENTS);
        let (start, limit) = (Instant::now(), Duration::from_millis(50));
        watch.wait(limit);
        assert!(start.elapsed() >= limit);
        fs::write(folder.path().join("a"), "1").unwrap();
        assert_notices(&mut watch);
    }

    #[test]
    fn a_folder_that_is_removed_and_created_again_stays_watched() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("net.d");
        fs::create_dir(&path).unwrap();
        let mut watch = FolderWatch::new([path.clone()], EVENTS);
        for remove in [true, false] {
            if remove {
                fs::remove_dir_all(&path).unwrap();
            } else {
                fs::rename(&path, parent.path().join("old")).unwrap();
            }
            assert_notices(&mut watch);
            fs::create_dir(&path).unwrap();
            assert_notices(&mut watch);
            assert!(watch.folders[0].watch.is_some());
            // The events of the folder's removal may follow.
            watch.wait(Duration::ZERO);
            fs::write(path.join("a"), "1").unwrap();
            assert_notices(&mut watch);
        }
    }

    #[test]
    fn without_inotify_the_folder_is_checked_at_intervals() {
        let folder = tempfile::tempdir().unwrap();
        let exhausted = || Err(io::Error::from_raw_os_error(24));
        let mut watch = FolderWatch::with([folder.path().to_owned()], EVENTS, exhausted);
        assert!(watch.is_polling);
        assert_notices(&mut watch);
        // An instance is free again.
        watch.open = Inotify::init;
        assert_notices(&mut watch);
        assert!(!watch.is_polling && watch.folders[0].watch.is_some());
    }
}
