//! A folder for each test, and what killed test runs have left is cleared away.

use std::fs;
use std::path::{Path, PathBuf};
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
