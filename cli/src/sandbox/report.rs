//! The sandbox report, written by the keeper and printed by `status`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use error_code::sandbox as codes;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::Layout;
use crate::failure::failure;

/// A running sandbox. The paths are usable with nsenter, cnitool and curl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxReport {
    pub(crate) nodes: Vec<NodeReport>,
    pub(crate) pods: Vec<PodReport>,
    pub(crate) mesh_file: PathBuf,
    /// The namespace with the bridge between the nodes.
    pub(crate) fabric: PathBuf,
    pub(crate) keeper_pid: i32,
    /// Start time of the keeper in clock ticks since boot, to detect a reused pid.
    pub(crate) keeper_started: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) name: String,
    pub(crate) netns: PathBuf,
    pub(crate) cni_bin_dir: PathBuf,
    pub(crate) cni_conf_dir: PathBuf,
    pub(crate) agent_pid: u32,
    pub(crate) proxy_pid: u32,
    pub(crate) agent_socket: PathBuf,
    /// Reachable from within the node's namespace.
    pub(crate) proxy_admin: String,
    pub(crate) agent_log: PathBuf,
    pub(crate) proxy_log: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodReport {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) netns: PathBuf,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) state: SandboxPodState,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SandboxPodState {
    Enrolled,
    Leaving,
    Skipped,
    Failed,
}

impl SandboxPodState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Leaving => "leaving",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

impl SandboxReport {
    /// Reads the report of the sandbox in this folder; `None` if its keeper does not run.
    pub(crate) fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.report();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let report: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("invalid sandbox report {}", path.display()))?;
        let alive = started(report.keeper_pid) == Some(report.keeper_started);
        Ok(alive.then_some(report))
    }

    /// Replaces the file atomically.
    pub(crate) fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        let staged = layout.root().join("sandbox.json.new");
        fs::write(&staged, serde_json::to_vec_pretty(self)?)?;
        fs::rename(staged, layout.report())?;
        Ok(())
    }

    /// A pod that could not be started, if there is one.
    pub(crate) fn failed(&self) -> Option<&PodReport> {
        let is_failed = |p: &&PodReport| p.state == SandboxPodState::Failed;
        self.pods.iter().find(is_failed)
    }

    /// Finds a pod by NAME or NAMESPACE/NAME.
    pub(crate) fn pod(&self, name: &str) -> anyhow::Result<&PodReport> {
        let matches =
            |p: &&PodReport| p.name == name || format!("{}/{}", p.namespace, p.name) == name;
        let found: Vec<&PodReport> = self.pods.iter().filter(matches).collect();
        let problem = match found[..] {
            [pod] => return Ok(pod),
            [] => format!("no pod {name}"),
            _ => format!("{name} exists in several namespaces"),
        };
        Err(failure(&codes::NO_SUCH_POD, problem))
    }
}

/// Start time of a process in clock ticks since boot; `None` if it does not exist or is a zombie.
pub(crate) fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the second field is the name in parentheses, with any characters; the third
    // is the state, the 22nd the start time.
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
    if after_name.next()? == "Z" {
        return None;
    }
    after_name.nth(18)?.parse().ok()
}

/// Whether a process is exiting, or is about to because it was killed.
pub(crate) fn is_exiting(pid: i32) -> bool {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    exits(&read("stat"), &read("status"))
}

/// Whether these contents of `/proc/PID/stat` and `/proc/PID/status` are of an exiting process.
fn exits(stat: &str, status: &str) -> bool {
    const EXITING: u64 = 0x4; // PF_EXITING, include/linux/sched.h
    const KILLED: u64 = 1 << (Signal::SIGKILL as u64 - 1);
    let mut pending = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:")
            .or(line.strip_prefix("ShdPnd:"))
    });
    let killed =
        pending.any(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & KILLED != 0));
    // proc_pid_stat(5): the ninth field, seven after the name in parentheses.
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6));
    killed || flags.is_some_and(|f| f.parse::<u64>().is_ok_and(|f| f & EXITING != 0))
}

#[cfg(test)]
mod tests {
    use super::exits;

    fn with(flags: u64, pending: u64) -> bool {
        let stat = format!("42 (a) b) S 1 42 42 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 9 0 12345 0 0");
        let status = format!(
            "Name:\ta) b\nSigPnd:\t{pending:016x}\nShdPnd:\t{:016x}\n",
            0
        );
        exits(&stat, &status)
    }

    #[test]
    fn a_killed_process_is_exiting_before_it_is_gone() {
        assert!(!with(0x40_0140, 0));
        assert!(!with(0x40_0140, 0x4000), "SIGTERM may be handled");
        assert!(with(0x40_0144, 0));
        assert!(with(0x40_0140, 0x100));
    }
}
