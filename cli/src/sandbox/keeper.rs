//! The keeper, the process that owns a sandbox. It holds the namespaces as open files, and agents
//! and proxies are its children, so that nothing outlives it.

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
use super::plan::{self, SandboxPod};
use super::protocol::{COMMIT, DONE, FAILED};
use super::report::{PodReport, SandboxPodState, SandboxReport, started};
use super::{app, network};
use crate::failure::failure;
use crate::output::print_error;

struct Sandbox {
    layout: Layout,
    nodes: Vec<RunningNode>,
    report: SandboxReport,
    /// Keeps the namespaces alive.
    _namespaces: Vec<netns::NetNs>,
    _lock: Flock<File>,
}

/// Creates the sandbox and keeps it until SIGTERM or SIGINT.
pub(crate) fn keep(file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]
        .into_iter()
        .collect();
    signals.thread_block()?; // before any thread starts; `wait` below receives them
    let _ = setsid(); // fails only for a process group leader, which is fine
    let layout = Layout::of_user(0);
    watch_parent()?;
    let mut sandbox = match create(&layout, file) {
        Ok(sandbox) => sandbox,
        Err(e) => {
            print_line(&format!("{FAILED}{e:#}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    print_line(DONE);
    while let Signal::SIGUSR1 = signals.wait()? {
        sandbox.repair();
    }
    sandbox.nodes.iter_mut().for_each(RunningNode::stop);
    remove(&layout);
    Ok(ExitCode::SUCCESS)
}

/// Terminates this process if `up` exits without writing [`COMMIT`].
fn watch_parent() -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("parent".into())
        .spawn(|| {
            let mut byte = [0];
            if !matches!(std::io::stdin().read(&mut byte), Ok(1) if byte == [COMMIT]) {
                let _ = kill(getpid(), Signal::SIGTERM); // always allowed
            }
        })?;
    Ok(())
}

fn create(layout: &Layout, file: Option<&Path>) -> anyhow::Result<Sandbox> {
    fs::create_dir_all(layout.root())?;
    let running = || failure(&codes::RUNNING, layout.root().display());
    let lock = Flock::lock(
        File::create(layout.lock())?,
        FlockArg::LockExclusiveNonblock,
    )
    .map_err(|_| running())?;
    let created = create_locked(layout, file, lock);
    if created.is_err() {
        remove(layout);
    }
    created
}

fn create_locked(
    layout: &Layout,
    file: Option<&Path>,
    lock: Flock<File>,
) -> anyhow::Result<Sandbox> {
    remove_leftovers(layout)?;
    let mesh_file: PathBuf = match file {
        Some(file) => fs::canonicalize(file).map_err(|e| {
            failure(
                &error_code::mesh::UNREADABLE,
                format!("{}: {e}", file.display()),
            )
        })?,
        None => {
            fs::write(layout.mesh_file(), plan::DEFAULT_MESH)?;
            layout.mesh_file()
        }
    };
    let mesh = mesh_file::load(&mesh_file)?;
    let (nodes, pods) = plan::plan(&mesh)?;
    let failed = |step: &str| {
        let step = step.to_owned();
        move |e: anyhow::Error| failure(&codes::START, format!("{step}: {e:#}"))
    };

    fs::create_dir_all(layout.root().join("netns"))?;
    install_plugins(layout)?;
    let fabric = network::create_fabric().map_err(failed("network between the nodes"))?;
    link_namespace(layout, "fabric", &fabric)?;
    let mut running: Vec<RunningNode> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let netns = network::create_node(&fabric, index, node)
            .map_err(failed(&format!("network of {}", node.name)))?;
        for other in nodes.iter().filter(|n| *n != node) {
            let remote_pods: Vec<&SandboxPod> =
                pods.iter().filter(|p| p.node == other.name).collect();
            network::route_to(&netns, &remote_pods, other)
                .map_err(failed(&format!("routes of {}", node.name)))?;
        }
        link_namespace(layout, &node.name, &netns)?;
        let started = RunningNode::start(layout, &node.name, netns, &mesh_file);
        running.push(started.map_err(failed(&format!("agent and proxy of {}", node.name)))?);
        print_line(&format!("node {}: agent and proxy are running", node.name));
    }

    let mut namespaces = vec![fabric];
    let mut reports = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let Some(node) = running.iter().find(|n| n.name == pod.node) else {
            continue;
        };
        let netns = network::create_pod(&node.netns, index, pod)
            .map_err(failed(&format!("network of {}", pod.name)))?;
        let path = link_namespace(layout, &format!("{}.{}", pod.namespace, pod.name), &netns)?;
        let report = enrol(node, pod, &path);
        print_line(&format!(
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
    let report = SandboxReport {
        nodes: running.iter().map(RunningNode::report).collect(),
        pods: reports,
        mesh_file,
        fabric: layout.netns("fabric"),
        keeper_pid: pid,
        keeper_started: started(pid).unwrap_or_default(),
    };
    report.write(layout)?;
    Ok(Sandbox {
        layout: layout.clone(),
        nodes: running,
        report,
        _namespaces: namespaces,
        _lock: lock,
    })
}

/// Runs the CNI ADD and queries the resulting state from the agent.
fn enrol(node: &RunningNode, pod: &SandboxPod, netns: &Path) -> PodReport {
    let (state, reason) = match node.runtime.add(&node.netns, pod, netns) {
        Ok(_) => match super::client::query_pod(&node.netns, &pod.namespace, &pod.name) {
            Ok(Some(state_and_reason)) => state_and_reason,
            Ok(None) => (SandboxPodState::Failed, "unknown to the agent".to_owned()),
            Err(e) => (
                SandboxPodState::Failed,
                format!("the agent does not respond: {e:#}"),
            ),
        },
        Err(e) => (SandboxPodState::Failed, format!("{}: {e:#}", codes::POD)),
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

/// Creates a path for a namespace: a link to this process's open file.
fn link_namespace(layout: &Layout, name: &str, netns: &netns::NetNs) -> anyhow::Result<PathBuf> {
    let path = layout.netns(name);
    symlink(
        format!("/proc/{}/fd/{}", getpid(), netns.as_fd().as_raw_fd()),
        &path,
    )?;
    Ok(path)
}

impl Sandbox {
    /// Restarts agents and proxies that have exited.
    fn repair(&mut self) {
        for node in &mut self.nodes {
            if let Err(e) = node.repair() {
                print_error(format_args!("{}: {e:#}", node.name));
            }
        }
        self.report.nodes = self.nodes.iter().map(RunningNode::report).collect();
        if let Err(e) = self.report.write(&self.layout) {
            print_error(format_args!("{e:#}"));
        }
    }
}

/// Removes the files of an earlier keeper that was killed.
fn remove_leftovers(layout: &Layout) -> anyhow::Result<()> {
    for entry in fs::read_dir(layout.root())?
        .flatten()
        .filter(|e| e.path() != layout.lock() && e.path() != layout.keeper_log())
    {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(path)?
        } else {
            fs::remove_file(path)?
        }
    }
    Ok(())
}

fn remove(layout: &Layout) {
    if let Err(e) = fs::remove_dir_all(layout.root()) {
        print_error(format_args!(
            "cannot remove {}: {e}",
            layout.root().display()
        ));
    }
    // Also remove the default parent folder, if it is empty.
    if let Some(parent) = layout
        .root()
        .parent()
        .filter(|p| p.ends_with("run/underpass"))
    {
        let _ = fs::remove_dir(parent);
    }
}

/// Prints a line for `up`, which may have exited.
fn print_line(line: &str) {
    let mut out = std::io::stdout();
    let line = line.replace('\n', "\u{1f}");
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
