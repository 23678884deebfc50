//! The process that holds a sandbox: its namespaces are open files of this process, and agents and proxies are its
//! children, so that nothing outlives it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use error_code::sandbox as codes;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{getpid, setsid};

use super::layout::Layout;
use super::node::{RunningNode, install_plugins};
use super::plan::{self, Pod};
use super::report::{PodReport, PodState, Report, started};
use super::{app, network};
use crate::failure::failure;

/// What `up` writes when it has seen that everything runs; when it is gone before, everything is removed.
pub(crate) const COMMIT: u8 = b'c';
/// The last line that the keeper prints for `up`.
pub(crate) const DONE: &str = "=";
/// How the keeper marks the line that tells why it gives up.
pub(crate) const FAILED: &str = "!";

struct Sandbox {
    layout: Layout,
    nodes: Vec<RunningNode>,
    report: Report,
    /// Everything that must stay open.
    _namespaces: Vec<netns::NetNs>,
    _lock: Flock<File>,
}

/// Makes the sandbox and holds it until it is told to end.
pub(crate) fn keep(file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1].into_iter().collect();
    signals.thread_block()?; // before any thread: they are taken one by one, at the end
    let _ = setsid(); // fails only for a group leader, which is as good
    let layout = Layout::of_user(0);
    watch_parent()?;
    let mut sandbox = match make(&layout, file) {
        Ok(sandbox) => sandbox,
        Err(e) => {
            say(&format!("{FAILED}{e:#}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    say(DONE);
    while let Signal::SIGUSR1 = signals.wait()? {
        sandbox.repair();
    }
    sandbox.nodes.iter_mut().for_each(RunningNode::stop);
    remove(&layout);
    Ok(ExitCode::SUCCESS)
}

/// When `up` is gone before it has seen everything run, this process is told to end.
fn watch_parent() -> anyhow::Result<()> {
    std::thread::Builder::new().name("parent".into()).spawn(|| {
        let mut byte = [0];
        if !matches!(std::io::stdin().read(&mut byte), Ok(1) if byte == [COMMIT]) {
            let _ = kill(getpid(), Signal::SIGTERM); // always allowed
        }
    })?;
    Ok(())
}

fn make(layout: &Layout, file: Option<&Path>) -> anyhow::Result<Sandbox> {
    fs::create_dir_all(layout.root())?;
    let running = || failure(&codes::RUNNING, layout.root().display());
    let lock = Flock::lock(File::create(layout.lock())?, FlockArg::LockExclusiveNonblock).map_err(|_| running())?;
    let made = make_locked(layout, file, lock);
    if made.is_err() {
        remove(layout);
    }
    made
}

fn make_locked(layout: &Layout, file: Option<&Path>, lock: Flock<File>) -> anyhow::Result<Sandbox> {
    clear(layout)?;
    let mesh_file: PathBuf = match file {
        Some(file) => fs::canonicalize(file)
            .map_err(|e| failure(&error_code::mesh::UNREADABLE, format!("{}: {e}", file.display())))?,
        None => {
            fs::write(layout.mesh_file(), plan::DEFAULT_MESH)?;
            layout.mesh_file()
        }
    };
    let mesh = mesh_file::load(&mesh_file)?;
    let (nodes, pods) = plan::plan(&mesh)?;
    let step = |what: &str| {
        let what = what.to_owned();
        move |e: anyhow::Error| failure(&codes::START, format!("{what}: {e:#}"))
    };

    fs::create_dir_all(layout.root().join("netns"))?;
    install_plugins(layout)?;
    let fabric = network::make_fabric().map_err(step("network between the nodes"))?;
    name(layout, "fabric", &fabric)?;
    let mut running: Vec<RunningNode> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let netns = network::make_node(&fabric, index, node).map_err(step(&format!("network of {}", node.name)))?;
        for other in nodes.iter().filter(|n| *n != node) {
            let theirs: Vec<&Pod> = pods.iter().filter(|p| p.node == other.name).collect();
            network::route_to(&netns, &theirs, other).map_err(step(&format!("routes of {}", node.name)))?;
        }
        name(layout, &node.name, &netns)?;
        let started = RunningNode::start(layout, &node.name, netns, &mesh_file);
        running.push(started.map_err(step(&format!("agent and proxy of {}", node.name)))?);
        say(&format!("node {}: agent and proxy run", node.name));
    }

    let mut namespaces = vec![fabric];
    let mut reports = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let Some(node) = running.iter().find(|n| n.name == pod.node) else { continue };
        let netns = network::make_pod(&node.netns, index, pod).map_err(step(&format!("network of {}", pod.name)))?;
        let path = name(layout, &format!("{}.{}", pod.namespace, pod.name), &netns)?;
        let report = enrol(node, pod, &path);
        say(&format!(
            "pod {}/{} on {}: {} ({})",
            pod.namespace,
            pod.name,
            pod.node,
            report.state.as_str(),
            report.reason
        ));
        if file.is_none() {
            app::serve(&netns, &pod.name)?;
        }
        reports.push(report);
        namespaces.push(netns);
    }
    let pid = getpid().as_raw();
    let report = Report {
        nodes: running.iter().map(RunningNode::report).collect(),
        pods: reports,
        mesh_file,
        fabric: layout.netns("fabric"),
        keeper_pid: pid,
        keeper_started: started(pid).unwrap_or_default(),
    };
    report.write(layout)?;
    Ok(Sandbox { layout: layout.clone(), nodes: running, report, _namespaces: namespaces, _lock: lock })
}

/// Runs the CNI ADD, and asks the agent what it made of it.
fn enrol(node: &RunningNode, pod: &Pod, netns: &Path) -> PodReport {
    let (state, reason) = match node.runtime.add(&node.netns, pod, netns) {
        Ok(_) => match super::client::agent_says(&node.netns, &pod.namespace, &pod.name) {
            Ok(Some(said)) => said,
            Ok(None) => (PodState::Failed, "the agent does not know the pod".to_owned()),
            Err(e) => (PodState::Failed, format!("the agent does not answer: {e:#}")),
        },
        Err(e) => (PodState::Failed, format!("{}: {e:#}", codes::POD)),
    };
    PodReport {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        node: pod.node.clone(),
        netns: netns.to_path_buf(),
        ips: pod.ips.clone(),
        state,
        reason,
    }
}

/// Gives a namespace a path: a link to our open file, which ends with us.
fn name(layout: &Layout, name: &str, netns: &netns::NetNs) -> anyhow::Result<PathBuf> {
    let path = layout.netns(name);
    symlink(format!("/proc/{}/fd/{}", getpid(), netns.as_fd().as_raw_fd()), &path)?;
    Ok(path)
}

impl Sandbox {
    /// Starts agents and proxies that have ended.
    fn repair(&mut self) {
        for node in &mut self.nodes {
            if let Err(e) = node.repair() {
                eprintln!("{}: {e:#}", node.name);
            }
        }
        self.report.nodes = self.nodes.iter().map(RunningNode::report).collect();
        if let Err(e) = self.report.write(&self.layout) {
            eprintln!("{e:#}");
        }
    }
}

/// Removes what an earlier keeper left that was killed.
fn clear(layout: &Layout) -> anyhow::Result<()> {
    for entry in
        fs::read_dir(layout.root())?.flatten().filter(|e| e.path() != layout.lock() && e.path() != layout.keeper_log())
    {
        let path = entry.path();
        if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

fn remove(layout: &Layout) {
    if let Err(e) = fs::remove_dir_all(layout.root()) {
        eprintln!("cannot remove {}: {e}", layout.root().display());
    }
    // The default folder's parent is ours as well; it stays when something else is in it.
    if let Some(parent) = layout.root().parent().filter(|p| p.ends_with("run/underpass")) {
        let _ = fs::remove_dir(parent);
    }
}

/// Tells `up`; nobody listens when it has gone.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let line = line.replace('\n', "\u{1f}");
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
