//! The network namespaces of pods that are older than the agent, by the processes that run in them.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netns::{NetNs, NetNsId};

use super::cgroup::membership;
use crate::sandbox_check;

/// Where a pod runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The namespace of its oldest process, which is that of its sandbox.
    pub(super) netns: PathBuf,
    pub(super) inode: u64,
    /// The container of that process.
    pub(super) container: Option<String>,
    /// When that process began, in ticks since the node did.
    since: u64,
}

/// Looks through all processes for those of these pods, by uid. A namespace counts when it is not the node's and has the
/// pod's addresses.
pub(super) fn places(
    processes: &Path,
    wanted: &HashMap<String, Vec<IpAddr>>,
    node: &[NetNsId],
) -> HashMap<String, Place> {
    let mut found: HashMap<String, Place> = HashMap::new();
    let entries = fs::read_dir(processes).into_iter().flatten().flatten();
    for process in entries.filter(|e| is_process(&e.file_name())).map(|e| e.path()) {
        let Some((uid, place)) = place(&process, wanted, node) else { continue };
        match found.get(&uid) {
            Some(known) if known.since <= place.since => {}
            _ => {
                found.insert(uid, place);
            }
        }
    }
    found
}

/// A process that is about to end or to be replaced under its number is none.
fn place(process: &Path, wanted: &HashMap<String, Vec<IpAddr>>, node: &[NetNsId]) -> Option<(String, Place)> {
    let group = || membership(&fs::read_to_string(process.join("cgroup")).ok()?);
    let member = group()?;
    let addresses = wanted.get(&member.uid)?;
    let path = process.join("ns/net");
    let netns = NetNs::open(&path).ok()?;
    sandbox_check::check(&netns, node, addresses).ok()?;
    let since = began(&fs::read_to_string(process.join("stat")).ok()?)?;
    (group()? == member).then_some(())?;
    let place = Place { netns: path, inode: netns.id().ino, container: member.container, since };
    Some((member.uid, place))
}

fn is_process(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

/// The twenty-second field of `stat` (proc(5)). The second one is a name in parentheses, which may have any in it.
fn began(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_be_anything() {
        let after: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(began(&format!("7 (a) 1 2 (b c)) {}", after.join(" "))), Some(22));
        assert_eq!(began("7 (a) S 1"), None);
        assert_eq!(began(""), None);
    }
}
