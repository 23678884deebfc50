//! A folder for each test, and what killed test runs have left is cleared away.

#![allow(clippy::disallowed_types)] // a program outlives the tests

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

const PREFIX: &str = "underpass-test-";

/// Makes the folder of one test, whose name must be its own in this process.
pub fn folder(name: &str) -> PathBuf {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let folder = std::env::temp_dir().join(format!("{PREFIX}{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What removes a folder, and control groups that begin with its name, when its input ends.
const REMOVER: &str = "
trap '' INT TERM HUP
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do # who wrote into them is being killed then
    groups=$(find /sys/fs/cgroup -depth -type d -path \"*/${0##*/}*\" 2>/dev/null)
    [ -z \"$groups\" ] || rmdir $groups 2>/dev/null
    [ ! -e \"$0\" ] || rm -rf \"$0\" 2>/dev/null
    [ -e \"$0\" ] || [ -n \"$groups\" ] || break
    sleep 0.3
done";

/// Makes a folder that all tests of this process share, and that nobody is left to remove: it goes when the process ends.
pub fn until_exit(name: &str) -> PathBuf {
    let folder = folder(name);
    let mut remover = Command::new("sh");
    remover.args(["-c", REMOVER]).arg(&folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    std::mem::forget(remover.spawn().unwrap().stdin);
    folder
}

/// A test that is killed cannot remove its folder, so the next one does: the name tells whose it was.
fn sweep() {
    let of_the_dead = |name: &str| {
        let pid = name.strip_prefix(PREFIX).and_then(|n| n.split_once('-')?.0.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry.file_name().to_str().is_some_and(of_the_dead) {
            let _ = fs::remove_dir_all(entry.path()); // another test process may be doing the same
        }
    }
    crate::cgroup::remove_all(of_the_dead);
}
