//! Writes the agent's state, from which the next agent continues, on a thread of its own. Writes
//! that follow each other while the disk is slow become one, and one that failed is tried again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pod_life::{Answer, Discarded, Generation, LifeId, OutsideRecord, Record, Records};
use tokio::sync::watch;

use crate::inbox::Inbox;

/// Name of the state file.
pub(crate) const FILE: &str = "pods.json";

/// Delay before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The state on disk.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: StateDir,
    boot_id: String,
    next: Arc<NextWrite>,
    thread: Option<JoinHandle<()>>,
    last: u64,
    completed: watch::Receiver<u64>,
}

/// What is written next. A newer snapshot replaces one that was not written yet.
#[derive(Debug, Default)]
struct NextWrite {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    snapshot: Option<Snapshot>,
    /// Whether the thread is to end once everything is written.
    is_closed: bool,
}

/// All pods at one time, and the lives that wait until they are written.
#[derive(Debug)]
struct Snapshot {
    number: u64,
    records: Records,
    waiting: Vec<(LifeId, Generation)>,
}

impl Disk {
    /// Opens the folder, and starts the thread.
    pub(crate) fn open(path: &Path, inbox: Inbox) -> io::Result<Self> {
        let folder = StateDir::open(path)?;
        let (done, completed) = watch::channel(0);
        let next = Arc::<NextWrite>::default();
        let (writer, of_thread) = (folder.clone(), next.clone());
        let run = move || write_all(&writer, &of_thread, &inbox, &done);
        let thread = std::thread::Builder::new().name("disk".into()).spawn(run)?;
        Ok(Self {
            folder,
            boot_id: boot_id(),
            next,
            thread: Some(thread),
            last: 0,
            completed,
        })
    }

    /// Loads the pods of this boot.
    pub(crate) fn load(&self) -> Records {
        self.folder.load()
    }

    /// Begins to write all pods. The waiting lives are answered when it is done.
    pub(crate) fn write(
        &mut self,
        pods: Vec<Record>,
        outside: Vec<OutsideRecord>,
        waiting: Vec<(LifeId, Generation)>,
    ) {
        self.last += 1;
        let mut snapshot = Snapshot {
            number: self.last,
            records: Records::new(&self.boot_id, pods, outside),
            waiting,
        };
        let mut slot = self.next.lock();
        if let Some(replaced) = slot.snapshot.take() {
            snapshot.waiting.splice(0..0, replaced.waiting);
        }
        slot.snapshot = Some(snapshot);
        self.next.changed.notify_one();
    }

    /// The number of the last write that was begun.
    pub(crate) fn last_write(&self) -> u64 {
        self.last
    }

    /// The number of the last write that has completed.
    pub(crate) fn completed(&self) -> watch::Receiver<u64> {
        self.completed.clone()
    }
}

impl Drop for Disk {
    /// Completes the writes, after which another process or an uninstallation may write the file.
    fn drop(&mut self) {
        self.next.lock().is_closed = true;
        self.next.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic aborts the process
        }
    }
}

impl NextWrite {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a snapshot; returns `failed` if there is none for a while, and `None` at the end.
    fn take(&self, failed: Option<Snapshot>) -> Option<Snapshot> {
        let limit = failed.as_ref().map_or(Duration::MAX, |_| RETRY);
        let is_idle = |slot: &mut Slot| slot.snapshot.is_none() && !slot.is_closed;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, is_idle);
        let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match slot.snapshot.take() {
            None if slot.is_closed => None,
            None => failed,
            newer => newer,
        }
    }
}

fn write_all(folder: &StateDir, next: &NextWrite, inbox: &Inbox, done: &watch::Sender<u64>) {
    let mut failed = None;
    while let Some(mut snapshot) = next.take(failed.take()) {
        let result = folder.save(&snapshot.records).map_err(|e| e.to_string());
        if let Err(e) = &result {
            tracing::error!("{}: {e}", error_code::agent::STATE);
        }
        done.send_replace(snapshot.number);
        for (id, generation) in std::mem::take(&mut snapshot.waiting) {
            inbox.answer(id, generation, Answer::Saved(result.clone()));
        }
        failed = result.is_err().then_some(snapshot);
    }
}

/// The folder that holds the state.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Opens the folder; creates it if it does not exist.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self(path.to_path_buf()))
    }

    /// Loads the pods of this boot. An unreadable file is logged and renamed, never discarded.
    pub(crate) fn load(&self) -> Records {
        let path = self.0.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Records::default(),
            Err(e) => {
                tracing::error!("{}: {}: {e}", error_code::agent::STATE, path.display());
                return Records::default();
            }
        };
        let (name, cause, why) = match Records::parse(&bytes, &boot_id()) {
            Ok(records) => return records,
            Err(Discarded::Reboot) => {
                tracing::info!(
                    event = "state_discarded",
                    cause = "reboot",
                    "the node rebooted: ignoring the pods of the previous boot"
                );
                return Records::default();
            }
            Err(why @ Discarded::OtherVersion(_)) => ("pods.other-version.json", "version", why),
            Err(why @ Discarded::Damaged(_)) => ("pods.damaged.json", "damage", why),
        };
        self.keep_aside(name, cause, &why);
        Records::default()
    }

    fn keep_aside(&self, name: &str, cause: &str, why: &Discarded) {
        let (path, aside) = (self.0.join(FILE), self.0.join(name));
        let (code, path) = (error_code::agent::STATE, path.as_path());
        tracing::error!(
            event = "state_discarded",
            cause,
            "{code}: {} {why}; renamed to {}",
            path.display(),
            aside.display()
        );
        let _ = fs::rename(path, aside); // if this fails, the next save overwrites the file
    }

    /// Saves all pods, by writing and syncing a new file and renaming it over the old one.
    pub(crate) fn save(&self, records: &Records) -> io::Result<()> {
        let staged = self.0.join("pods.json.new");
        // One that an older agent left may be readable by others.
        match fs::remove_file(&staged) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file: File = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(&records.to_json()?)?;
        file.sync_data()?;
        fs::rename(staged, self.0.join(FILE))
    }

    /// Saves that there are no pods.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.save(&Records::new(&boot_id(), Vec::new(), Vec::new()))
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;
    use crate::inbox::Message;

    #[test]
    fn a_damaged_file_is_renamed_and_pods_can_be_saved_again() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let state = StateDir::open(folder).unwrap();
        assert!(state.load() == Records::default(), "there is no file yet");
        state.clear().unwrap();
        assert!(state.load() != Records::default());
        fs::write(folder.join(FILE), "{").unwrap();
        assert!(state.load() == Records::default());
        let kept = fs::read_to_string(folder.join("pods.damaged.json")).unwrap();
        assert_eq!(kept, "{");
        assert!(!folder.join(FILE).exists());
        state.clear().unwrap();
        assert!(folder.join(FILE).exists());
    }

    #[test]
    fn only_the_owner_reads_the_file_even_if_an_older_agent_left_a_staged_one() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::open(temporary.path()).unwrap();
        fs::write(temporary.path().join("pods.json.new"), "{").unwrap();
        state.clear().unwrap();
        let file = temporary.path().join(FILE);
        assert_eq!(
            fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn every_waiting_life_is_answered_by_the_write_that_contains_it() {
        let temporary = tempfile::tempdir().unwrap();
        let (inbox, mut messages) = Inbox::new();
        let mut disk = Disk::open(temporary.path(), inbox).unwrap();
        let sandbox = serde_json::json!({
            "attachment": { "containerId": "c", "ifname": "eth0" },
            "pod": { "namespace": "n", "name": "p" },
            "netnsInode": 7,
        });
        let sandbox = serde_json::from_value(sandbox).unwrap();
        let life = pod_life::Life::found(sandbox, "");
        let id = pod_life::Pods::default().insert(life);
        for number in 0..50 {
            disk.write(Vec::new(), Vec::new(), vec![(id, Generation(number))]);
        }
        let mut written = disk.completed();
        let started = Instant::now();
        while *written.borrow_and_update() < disk.last_write() {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        for expected in 0..50 {
            let message = messages.blocking_recv().unwrap();
            let Message::Done {
                generation, answer, ..
            } = message
            else {
                panic!("{message:?}")
            };
            assert_eq!(
                (generation, answer),
                (Generation(expected), Answer::Saved(Ok(())))
            );
        }
    }
}
