//! A folder for each test. Folders left by killed test runs are removed.

#![allow(clippy::disallowed_types)] // runs a shell that outlives the tests

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

const PREFIX: &str = "underpass-test-";

/// Creates the folder of one test. The name must be unique in this process.
pub fn folder(name: &str) -> PathBuf {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let folder = std::env::temp_dir().join(format!("{PREFIX}{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Removes a folder, and the control groups whose names start with its name, at the end of its
/// input.
const REMOVER: &str = "
trap '' INT TERM HUP
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do # their users may still be exiting
    groups=$(find /sys/fs/cgroup -depth -type d -path \"*/${0##*/}*\" 2>/dev/null)
    [ -z \"$groups\" ] || rmdir $groups 2>/dev/null
    [ ! -e \"$0\" ] || rm -rf \"$0\" 2>/dev/null
    [ -e \"$0\" ] || [ -n \"$groups\" ] || break
    sleep 0.3
done";

/// Creates a folder that all tests of this process share; it is removed when the process exits.
pub fn until_exit(name: &str) -> PathBuf {
    let folder = folder(name);
    let mut remover = Command::new("sh");
    remover
        .args(["-c", REMOVER])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::mem::forget(remover.spawn().unwrap().stdin);
    folder
}

/// Removes the folders of processes that were killed; a folder's name contains its process id.
fn sweep() {
    let is_stale = |name: &str| {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|n| n.split_once('-')?.0.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry.file_name().to_str().is_some_and(is_stale) {
            let _ = fs::remove_dir_all(entry.path()); // another test process may do the same
        }
    }
    crate::cgroup::remove_all(is_stale);
}
