//! Finds the network namespaces of pods by their processes.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netns::{NetNs, NetNsId};

use super::cgroup::owner;
use crate::sandbox_check;

/// Clock ticks in a second, in what the kernel reports: USER_HZ of every architecture that Rust
/// supports (proc_pid_stat(5)).
const TICKS_PER_SECOND: u64 = 100;

/// The network namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodLocation {
    /// Path of the namespace of the pod's oldest process, which is the sandbox's.
    pub(super) netns: PathBuf,
    pub(super) inode: u64,
    /// The container of that process.
    pub(super) container: Option<String>,
    /// Start time of that process, in clock ticks since boot.
    pub(super) start_time: u64,
}

/// Searches all processes for those of the given pods, a map from uid to addresses. A namespace is
/// accepted if it is not the node's and has the pod's addresses.
pub(super) fn find_pods(
    processes: &Path,
    wanted: &HashMap<String, Vec<IpAddr>>,
    node: &[NetNsId],
) -> HashMap<String, PodLocation> {
    let mut found: HashMap<String, PodLocation> = HashMap::new();
    let entries = fs::read_dir(processes).into_iter().flatten().flatten();
    for process in entries
        .filter(|e| is_process(&e.file_name()))
        .map(|e| e.path())
    {
        let Some((uid, location)) = locate(&process, wanted, node) else {
            continue;
        };
        match found.get(&uid) {
            Some(known) if known.start_time <= location.start_time => {}
            _ => {
                found.insert(uid, location);
            }
        }
    }
    found
}

/// Returns the pod and namespace of a process; `None` if it exits or its pid is reused during the
/// check.
fn locate(
    process: &Path,
    wanted: &HashMap<String, Vec<IpAddr>>,
    node: &[NetNsId],
) -> Option<(String, PodLocation)> {
    let read_owner = || owner(&fs::read_to_string(process.join("cgroup")).ok()?);
    let owner = read_owner()?;
    let addresses = wanted.get(&owner.uid)?;
    let path = process.join("ns/net");
    let netns = NetNs::open(&path).ok()?;
    sandbox_check::check(&netns, node, addresses).ok()?;
    let start_time = start_time(&fs::read_to_string(process.join("stat")).ok()?)?;
    if read_owner()? != owner {
        return None;
    }
    let (inode, container) = (netns.id().ino, owner.container);
    Some((
        owner.uid,
        PodLocation {
            netns: path,
            inode,
            container,
            start_time,
        },
    ))
}

fn is_process(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

/// The start time of a process, field 22 of `stat` (proc_pid_stat(5)). Field 2 is its name in
/// parentheses, which may contain any character.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Converts a start time in clock ticks since boot; `processes` is the folder `/proc`.
pub(super) fn instant(processes: &Path, start_time: u64) -> Option<Instant> {
    let text = fs::read_to_string(processes.join("uptime")).ok()?;
    let age = uptime(&text)?.saturating_sub(ticks(start_time));
    Instant::now().checked_sub(age)
}

fn ticks(number: u64) -> Duration {
    Duration::from_millis(number.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// The time since boot, the first number of `uptime` (proc_uptime(5)), in seconds.
fn uptime(text: &str) -> Option<Duration> {
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_names_may_contain_parentheses_and_spaces() {
        let after: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(
            start_time(&format!("7 (a) 1 2 (b c)) {}", after.join(" "))),
            Some(22)
        );
        assert_eq!(start_time("7 (a) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn the_start_of_a_process_is_known_to_a_hundredth_of_a_second() {
        let of_text = [
            ("350735.47 234388.90\n", Some(350_735_470)),
            ("x", None),
            ("", None),
        ];
        for (text, ms) in of_text {
            assert_eq!(uptime(text), ms.map(Duration::from_millis), "{text:?}");
        }
        assert_eq!(ticks(123), Duration::from_millis(1230));
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let started = instant(Path::new("/proc"), start_time(&stat).unwrap()).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3600), "{started:?}");
    }
}
