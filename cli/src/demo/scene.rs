//! The sandbox that the demo plays on, and the ways to look at it and to disturb it.

use std::fs;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::mesh_file;
use crate::sandbox::{Layout, NodeReport, Report, Started, repair_and_wait, start, stop};

/// How long something that should happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A running sandbox, which ends with this value.
pub(crate) struct Scene {
    layout: Layout,
    report: Report,
    /// The sandbox ends with it, also when the demo is killed.
    _started: Started,
}

/// A pod as the demo uses it.
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) ips: Vec<IpAddr>,
}

impl Scene {
    /// Starts a sandbox.
    pub(crate) fn set(layout: Layout) -> anyhow::Result<Self> {
        let started = start(&layout, None, &|_| {})?;
        Ok(Self { layout, report: started.report.clone(), _started: started })
    }

    /// A pod by name.
    pub(crate) fn actor(&self, name: &str) -> anyhow::Result<Actor> {
        let pod = self.report.pod(name)?;
        Ok(Actor { name: pod.name.clone(), netns: NetNs::open(&pod.netns)?, ips: pod.ips.clone() })
    }

    /// The namespace in which the wires between the nodes meet.
    pub(crate) fn fabric(&self) -> anyhow::Result<NetNs> {
        Ok(NetNs::open(&self.report.fabric)?)
    }

    /// Puts policies into the mesh file.
    pub(crate) fn set_policies(&self, policies: &str) -> anyhow::Result<()> {
        mesh_file::replace_policies(&self.report.mesh_file, policies)
    }

    /// The sandbox as it was when it was last asked.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// Kills a node's proxy and waits until it is gone.
    pub(crate) fn kill_proxy(&self, node: &str) -> anyhow::Result<()> {
        self.kill(self.node(node)?.proxy_pid)
    }

    /// Kills a node's agent and waits until it is gone.
    pub(crate) fn kill_agent(&self, node: &str) -> anyhow::Result<()> {
        self.kill(self.node(node)?.agent_pid)
    }

    fn kill(&self, pid: u32) -> anyhow::Result<()> {
        let pid = i32::try_from(pid)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        until("the process ends", || Ok((!listening_process(pid)).then_some(())))
    }

    fn node(&self, node: &str) -> anyhow::Result<&NodeReport> {
        self.report.nodes.iter().find(|n| n.name == node).context("no such node")
    }

    /// Has the sandbox start what has ended.
    pub(crate) fn repair(&mut self) -> anyhow::Result<()> {
        self.report = repair_and_wait(&self.layout, &self.report)?;
        Ok(())
    }

    /// The log of a node's proxy, with the access log.
    pub(crate) fn proxy_log(&self, node: &str) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.node(node)?.proxy_log)?)
    }

    /// The log of a node's agent.
    pub(crate) fn agent_log(&self, node: &str) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.node(node)?.agent_log)?)
    }

    /// The first line of a node's access log, from a place on, that holds all of these.
    pub(crate) fn log_line(&self, node: &str, from: usize, words: &[&str]) -> anyhow::Result<String> {
        until(&format!("a line with {words:?} in the log of the proxy of {node}"), || {
            Ok(line_with(&self.proxy_log(node)?, from, words))
        })
    }

    /// The same in the log of a node's agent.
    pub(crate) fn agent_line(&self, node: &str, from: usize, words: &[&str]) -> anyhow::Result<String> {
        until(&format!("a line with {words:?} in the log of the agent of {node}"), || {
            Ok(line_with(&self.agent_log(node)?, from, words))
        })
    }
}

fn line_with(log: &str, from: usize, words: &[&str]) -> Option<String> {
    let mut lines = log.get(from..).unwrap_or_default().lines();
    lines.find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned)
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Err(e) = stop(&self.layout) {
            eprintln!("the demo's sandbox could not be stopped: {e:#}");
        }
    }
}

/// Waits until something has happened.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("did not happen within {} s: {what}", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(5));
    }
}

/// Whether a process still has its files open; a zombie has not.
fn listening_process(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| fds.next().is_some())
}
