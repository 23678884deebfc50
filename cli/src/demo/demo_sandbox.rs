//! The sandbox of the demo, with functions to inspect and disturb it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::http_client::HttpConnection;
use super::mesh_file;
use crate::admin_client::node_status;
use crate::output::print_error;
use crate::sandbox::{
    Layout, NodeReport, RunningSandbox, SandboxReport, repair_and_wait, start, stop,
};

/// Timeout for an expected condition.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// A running sandbox, which stops when this value is dropped.
pub(crate) struct DemoSandbox {
    layout: Layout,
    report: SandboxReport,
    /// Stops the sandbox if the demo is killed.
    _running: RunningSandbox,
}

/// A pod of the sandbox.
pub(crate) struct DemoPod {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) ips: Vec<IpAddr>,
}

/// The port of the web servers, and of their service.
const APP_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
/// The addresses of the service.
pub(crate) const VIPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10)),
];

impl DemoPod {
    /// Connects to the web server of a pod or service.
    pub(crate) fn connect(&self, to: IpAddr) -> io::Result<HttpConnection> {
        let port = if VIPS.contains(&to) {
            SERVICE_PORT
        } else {
            APP_PORT
        };
        HttpConnection::open(&self.netns, to, port)
    }

    /// Sends a request with a text in its path on a new connection.
    pub(crate) fn get(&self, to: IpAddr, text: &str) -> io::Result<String> {
        self.connect(to)?.get(text)
    }

    /// Waits until a request is answered.
    pub(crate) fn await_answer(
        &self,
        what: &str,
        to: IpAddr,
        text: &str,
    ) -> anyhow::Result<String> {
        wait_until(what, || Ok(self.get(to, text).ok()))
    }

    /// Waits until a request fails.
    pub(crate) fn await_failure(&self, what: &str, to: IpAddr) -> anyhow::Result<io::Error> {
        wait_until(what, || Ok(self.get(to, "x").err()))
    }
}

impl DemoSandbox {
    /// Starts a sandbox.
    pub(crate) fn start(layout: Layout) -> anyhow::Result<Self> {
        let running = start(&layout, None, &|_| {})?;
        Ok(Self {
            layout,
            report: running.report.clone(),
            _running: running,
        })
    }

    /// Finds a pod by name.
    pub(crate) fn pod(&self, name: &str) -> anyhow::Result<DemoPod> {
        let pod = self.report.pod(name)?;
        Ok(DemoPod {
            name: pod.name.clone(),
            netns: NetNs::open(&pod.netns)?,
            ips: pod.ips.clone(),
        })
    }

    /// Opens the namespace with the bridge between the nodes.
    pub(crate) fn fabric(&self) -> anyhow::Result<NetNs> {
        Ok(NetNs::open(&self.report.fabric)?)
    }

    /// Replaces the policies in the mesh file.
    pub(crate) fn set_policies(&self, policies: &str) -> anyhow::Result<()> {
        mesh_file::replace_policies(&self.report.mesh_file, policies)
    }

    /// The report as of the start or the last repair.
    pub(crate) fn report(&self) -> &SandboxReport {
        &self.report
    }

    /// Kills a node's proxy and waits until it has exited.
    pub(crate) fn kill_proxy(&self, node: &str) -> anyhow::Result<()> {
        self.kill(self.node(node)?.proxy_pid)
    }

    /// Kills a node's agent and waits until it has exited.
    pub(crate) fn kill_agent(&self, node: &str) -> anyhow::Result<()> {
        self.kill(self.node(node)?.agent_pid)
    }

    fn kill(&self, pid: u32) -> anyhow::Result<()> {
        let pid = i32::try_from(pid)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let has_exited = || Ok((!has_open_files(pid)).then_some(()));
        wait_until("the process exits", has_exited)
    }

    fn node(&self, node: &str) -> anyhow::Result<&NodeReport> {
        let mut nodes = self.report.nodes.iter();
        nodes.find(|n| n.name == node).context("unknown node")
    }

    /// Restarts agents and proxies that have exited.
    pub(crate) fn repair(&mut self) -> anyhow::Result<()> {
        self.report = repair_and_wait(&self.layout, &self.report)?;
        Ok(())
    }

    /// The log of a node's proxy, which includes the access log, from its current end on.
    pub(crate) fn proxy_log(&self, node: &str) -> anyhow::Result<LogTail> {
        LogTail::of(
            format!("the proxy log of {node}"),
            &self.node(node)?.proxy_log,
        )
    }

    /// The log of a node's agent, from its current end on.
    pub(crate) fn agent_log(&self, node: &str) -> anyhow::Result<LogTail> {
        LogTail::of(
            format!("the agent log of {node}"),
            &self.node(node)?.agent_log,
        )
    }

    /// What the agent of a node repaired last in a pod.
    pub(crate) fn last_repair(&self, node: &str, pod: &str) -> anyhow::Result<String> {
        let netns = NetNs::open(&self.node(node)?.netns)?;
        let status = netns.run(|| node_status(agent_status::DEFAULT_ADMIN))??;
        let pod = status.pods.into_iter().find(|p| p.name == pod);
        let verification = pod.context("unknown pod")?.verification;
        let repair = verification.and_then(|v| v.last_repair);
        Ok(repair.context("no repair reported")?.what)
    }
}

/// A log file, from an offset on.
pub(crate) struct LogTail {
    name: String,
    file: PathBuf,
    from: usize,
}

impl LogTail {
    fn of(name: String, file: &Path) -> anyhow::Result<Self> {
        let (from, file) = (fs::read(file)?.len(), file.to_path_buf());
        Ok(Self { name, file, from })
    }

    /// Waits for a line with all words.
    pub(crate) fn line(&self, words: &[&str]) -> anyhow::Result<String> {
        let what = format!("line with {words:?} in {}", self.name);
        wait_until(&what, || {
            let log = fs::read_to_string(&self.file)?;
            let mut lines = log.get(self.from..).unwrap_or_default().lines();
            let line = lines.find(|l| words.iter().all(|w| l.contains(w)));
            Ok(line.map(str::to_owned))
        })
    }
}

impl Drop for DemoSandbox {
    fn drop(&mut self) {
        if let Err(e) = stop(&self.layout) {
            print_error(format_args!("cannot stop the sandbox of the demo: {e:#}"));
        }
    }
}

/// Waits until a condition returns a value.
pub(crate) fn wait_until<T>(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("timed out after {} s: {what}", TIMEOUT.as_secs());
        }
        sleep(Duration::from_millis(5));
    }
}

/// Whether a process has open files; a zombie has none.
fn has_open_files(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| fds.next().is_some())
}
