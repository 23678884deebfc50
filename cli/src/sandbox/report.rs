//! What the sandbox tells about itself: the file that the keeper writes, and what `status` prints.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Layout;

/// The running sandbox. Paths are usable with nsenter, cnitool and curl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) nodes: Vec<NodeReport>,
    pub(crate) pods: Vec<PodReport>,
    pub(crate) mesh_file: PathBuf,
    /// The namespace in which the nodes' links meet.
    pub(crate) fabric: PathBuf,
    pub(crate) keeper_pid: i32,
    /// When the keeper started, in clock ticks since boot: tells it from a later process of the same number.
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
    /// To be asked from within the node's namespace.
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
    pub(crate) state: PodState,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PodState {
    Enrolled,
    Leaving,
    Skipped,
    Failed,
}

impl PodState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Leaving => "leaving",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

impl Report {
    /// The sandbox in this folder, if its keeper is alive.
    pub(crate) fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.report();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let report: Self = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let alive = started(report.keeper_pid) == Some(report.keeper_started);
        Ok(alive.then_some(report))
    }

    /// Replaces the file.
    pub(crate) fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        let staged = layout.root().join("sandbox.json.new");
        fs::write(&staged, serde_json::to_vec_pretty(self)?)?;
        fs::rename(staged, layout.report())?;
        Ok(())
    }

    /// A pod by NAME or NAMESPACE/NAME.
    pub(crate) fn pod(&self, name: &str) -> anyhow::Result<&PodReport> {
        let is = |p: &&PodReport| p.name == name || format!("{}/{}", p.namespace, p.name) == name;
        let found: Vec<&PodReport> = self.pods.iter().filter(is).collect();
        match found[..] {
            [pod] => Ok(pod),
            [] => Err(crate::failure::failure(&error_code::sandbox::NO_SUCH_POD, format!("no pod {name}"))),
            _ => Err(crate::failure::failure(
                &error_code::sandbox::NO_SUCH_POD,
                format!("{name} is there more than once"),
            )),
        }
    }
}

/// When a process started, in clock ticks since boot; `None` when there is none, or a zombie.
pub(crate) fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything; the state follows, and 19 fields later the time.
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
    if after_name.next()? == "Z" {
        return None;
    }
    after_name.nth(18)?.parse().ok()
}
