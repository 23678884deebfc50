//! Control groups of containers. No process owns them, so they are removed by name: by the test, or by the next one
//! when it is killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::happens;

const ROOT: &str = "/sys/fs/cgroup";

/// The control group, in every hierarchy, for the containers of one test.
#[derive(Debug)]
pub struct Cgroup(String);

impl Cgroup {
    /// It has the name of the test's folder.
    pub fn of(folder: &Path) -> Self {
        Self(folder.components().next_back().unwrap().as_os_str().to_str().unwrap().to_owned())
    }

    /// Makes it, for programs that want their parent to be there. A version 1 cpuset is empty until somebody fills it.
    pub fn create(&self) {
        for root in hierarchies() {
            let group = root.join(&self.0);
            if fs::create_dir_all(&group).is_ok() {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    // Other hierarchies have none.
                    let _ = fs::read(root.join(file)).and_then(|all| fs::write(group.join(file), all));
                }
            }
        }
    }

    /// Removes it, when nothing runs in it any more.
    pub fn remove(&self) {
        if happens(|| remove_all(|name| name == self.0).then_some(())).is_none() {
            eprintln!("the control groups {} stay", self.0);
        }
    }

    /// As runtimes take it.
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes the control groups that have such a name; whether none is left.
pub fn remove_all(named: impl Fn(&str) -> bool) -> bool {
    // A runtime makes them in the hierarchy of version 2, too, that stands beside those of version 1.
    let others = [PathBuf::from(ROOT), Path::new(ROOT).join("unified")];
    let groups = hierarchies().into_iter().chain(others).flat_map(|root| below(&root)).filter(|g| g.is_dir());
    let named: Vec<_> = groups.filter(|g| g.file_name().and_then(|n| n.to_str()).is_some_and(&named)).collect();
    named.iter().for_each(|group| remove(group));
    named.is_empty()
}

/// The roots: every version 1 hierarchy is one of its own; with version 2 alone there is one.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ROOT)];
    }
    below(Path::new(ROOT)).into_iter().filter(|r| r.is_dir() && !r.ends_with("unified")).collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Removes a control group and those in it, as far as no process is there any more.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group); // the next look shows whether it is gone
}
