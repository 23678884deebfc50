//! A folder for each test, and what killed test runs have left is cleared away.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

const PREFIX: &str = "underpass-test-";
const CGROUPS: &str = "/sys/fs/cgroup";

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
    cgroups(of_the_dead).iter().for_each(|group| remove_cgroup(group));
}

/// The control groups right below a root that have such a name; every version 1 hierarchy is one more root.
pub fn cgroups(named: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let below = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let roots = below(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]);
    let groups = roots.flat_map(|root| below(&root));
    groups.filter(|g| g.is_dir() && g.file_name().and_then(|n| n.to_str()).is_some_and(&named)).collect()
}

/// Removes a control group and those in it, as far as no process is there any more.
pub fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(group); // the caller sees whether it is gone
}
