//! Control groups of containers. No process owns them, so they are removed by name: by the test, or
//! by the next test run if the test was killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::eventually;

const ROOT: &str = "/sys/fs/cgroup";

/// The control group of one test's containers, in every hierarchy.
#[derive(Debug)]
pub struct Cgroup(String);

impl Cgroup {
    /// The control group named after the test's folder.
    pub fn of(folder: &Path) -> Self {
        Self(
            folder
                .components()
                .next_back()
                .unwrap()
                .as_os_str()
                .to_str()
                .unwrap()
                .to_owned(),
        )
    }

    /// Creates it, for programs that expect their parent group to exist. A version 1 cpuset is
    /// empty until it is filled.
    pub fn create(&self) {
        for root in hierarchies() {
            let group = root.join(&self.0);
            if fs::create_dir_all(&group).is_ok() {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    // Other hierarchies do not have these files.
                    let _ =
                        fs::read(root.join(file)).and_then(|all| fs::write(group.join(file), all));
                }
            }
        }
    }

    /// Removes it, once no process is left in it.
    pub fn remove(&self) {
        if eventually(|| remove_all(|name| name == self.0).then_some(())).is_none() {
            eprintln!("cannot remove the control groups {}", self.0);
        }
    }

    /// The path that runtimes expect.
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes the control groups whose name matches; returns whether none is left.
pub fn remove_all(matches: impl Fn(&str) -> bool) -> bool {
    // On a hybrid host, runtimes also use the version 2 hierarchy beside those of version 1.
    let others = [PathBuf::from(ROOT), Path::new(ROOT).join("unified")];
    let groups = hierarchies()
        .into_iter()
        .chain(others)
        .flat_map(|root| below(&root))
        .filter(|g| g.is_dir());
    let found: Vec<_> = groups
        .filter(|g| g.file_name().and_then(|n| n.to_str()).is_some_and(&matches))
        .collect();
    found.iter().for_each(|group| remove(group));
    found.is_empty()
}

/// The roots of the hierarchies: one for each version 1 controller, or the single version 2 root.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ROOT)];
    }
    below(Path::new(ROOT))
        .into_iter()
        .filter(|r| r.is_dir() && !r.ends_with("unified"))
        .collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect()
}

/// Removes a control group and its children, except those that still have processes.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group); // the next scan shows whether it is gone
}
