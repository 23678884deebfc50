//! The sandbox commands. They read the keeper's files, or signal the keeper.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use agent_status::{NodeStatus, PodState};
use anyhow::Context;
use error_code::sandbox as codes;
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::acquire_privileges;
use super::layout::Layout;
use super::protocol::{COMMIT, DONE, FAILED};
use super::report::{SandboxPodState, SandboxReport, is_exiting, started};
use crate::admin_client::node_status;
use crate::failure::failure;
use crate::node::{Summary, joined};
use crate::output::{exit_code, print};

/// Timeout for the keeper to act on a signal.
const KEEPER_DEADLINE: Duration = Duration::from_secs(10);

/// Starts a sandbox and waits until all pods are created.
pub(crate) fn up(file: Option<&Path>, foreground: bool) -> anyhow::Result<()> {
    let layout = acquire_privileges()?;
    if SandboxReport::read(&layout)?.is_some() {
        return Err(failure(&codes::RUNNING, layout.root().display()));
    }
    let mut started = start(&layout, file, &|line| print(line))?;
    if let Some(pod) = started.report.failed() {
        let detail = format!("{}/{}: {}", pod.namespace, pod.name, pod.reason);
        started.detach()?;
        return Err(failure(&codes::POD, detail));
    }
    let mesh_file = started.report.mesh_file.display();
    print(format_args!(
        "\nThe mesh is up, with mesh file {mesh_file}. Try:"
    ));
    print("  underpass sandbox exec client -- curl -s http://10.96.0.10/");
    print("  underpass sandbox status");
    if foreground {
        print("Press Ctrl-C to stop it.");
        started.keeper.wait()?;
        return Ok(());
    }
    print("  underpass sandbox down");
    Ok(started.detach()?)
}

/// A running sandbox, which stops when this value is dropped unless it is detached.
pub(crate) struct RunningSandbox {
    pub(crate) report: SandboxReport,
    keeper: Child,
    /// The keeper exits if this closes before it has read [`COMMIT`].
    stdin: ChildStdin,
}

impl RunningSandbox {
    /// Lets the sandbox run after this process exits.
    fn detach(&mut self) -> io::Result<()> {
        self.stdin.write_all(&[COMMIT])
    }
}

/// Starts a keeper and waits until the sandbox is running. If this process is killed before that,
/// the keeper removes everything.
pub(crate) fn start(
    layout: &Layout,
    file: Option<&Path>,
    progress: &dyn Fn(&str),
) -> anyhow::Result<RunningSandbox> {
    fs::create_dir_all(layout.root())
        .with_context(|| format!("cannot create {}", layout.root().display()))?;
    let mut log = OpenOptions::new();
    let log = log.create(true).append(true).open(layout.keeper_log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["sandbox", "keep"]);
    command.env("UNDERPASS_SANDBOX_DIR", layout.root());
    if let Some(file) = file {
        command.arg("--file").arg(file);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut keeper = command.stderr(log).spawn()?;
    let (stdin, stdout) = (keeper.stdin.take(), keeper.stdout.take());
    for line in BufReader::new(stdout.context("the keeper has no stdout")?).lines() {
        let line = line?.replace('\u{1f}', "\n");
        if line == DONE {
            let report = SandboxReport::read(layout)?.context("the keeper exited immediately")?;
            let stdin = stdin.context("the keeper has no stdin")?;
            return Ok(RunningSandbox {
                report,
                keeper,
                stdin,
            });
        }
        if let Some(reason) = line.strip_prefix(FAILED) {
            let _ = keeper.wait(); // it exits on its own
            anyhow::bail!("{reason}");
        }
        progress(&line);
    }
    Err(failure(&codes::START, "the keeper exited unexpectedly"))
}

/// Finds the running sandbox.
fn running() -> anyhow::Result<(Layout, SandboxReport)> {
    let layout = acquire_privileges()?;
    match SandboxReport::read(&layout)? {
        Some(report) => Ok((layout, report)),
        None => Err(failure(&codes::NOT_RUNNING, layout.root().display())),
    }
}

/// Replaces this process with a command in a pod's network namespace.
pub(crate) fn exec(pod: &str, command: &[String]) -> anyhow::Result<()> {
    let (_, report) = running()?;
    let netns = NetNs::open(&report.pod(pod)?.netns)?;
    let (program, args) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args);
    let error = netns::process::in_netns(&mut command, &netns)?.exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// Prints the nodes and pods.
pub(crate) fn status(json: bool) -> anyhow::Result<ExitCode> {
    let (_, mut report) = running()?;
    refresh(&mut report);
    let failed = report.failed().is_some();
    if json {
        print(serde_json::to_string(&report)?);
        return Ok(exit_code(!failed));
    }
    let alive = |pid: u32| {
        if is_alive(pid) {
            format!("pid {pid}")
        } else {
            "not running".to_owned()
        }
    };
    for node in &report.nodes {
        let (agent, proxy) = (alive(node.agent_pid), alive(node.proxy_pid));
        print(format_args!(
            "{:<10} agent {agent}, proxy {proxy}",
            node.name
        ));
    }
    let row = |pod: &str, node: &str, state: &str, addresses: &str, reason: &str| {
        format!("{pod:<24} {node:<10} {state:<9} {addresses:<28} {reason}")
    };
    print(format_args!(
        "\n{}",
        row("POD", "NODE", "STATE", "ADDRESSES", "REASON")
    ));
    for pod in &report.pods {
        let (name, ips) = (format!("{}/{}", pod.namespace, pod.name), joined(&pod.ips));
        print(row(&name, &pod.node, pod.state.as_str(), &ips, &pod.reason));
    }
    print(format_args!("\n{}", summarize(&report)));
    let log = report
        .nodes
        .first()
        .map(|n| n.proxy_log.display().to_string());
    let (mesh_file, log) = (report.mesh_file.display(), log.unwrap_or_default());
    print(format_args!("mesh file {mesh_file}; logs {log}"));
    Ok(exit_code(!failed))
}

/// Summarizes the verification results of the agents.
fn summarize(report: &SandboxReport) -> Summary {
    let mut summary = Summary::default();
    for node in &report.nodes {
        let status = NetNs::open(&node.netns).map(|netns| agent_status(&netns));
        summary.extend(status.iter().flatten().flat_map(|s| &s.pods));
    }
    summary
}

/// Updates the state of the pods from the agents that respond.
fn refresh(report: &mut SandboxReport) {
    for pod in &mut report.pods {
        let node = report.nodes.iter().find(|n| n.name == pod.node);
        let netns = node.and_then(|n| NetNs::open(&n.netns).ok());
        match netns.map(|n| query_pod(&n, &pod.namespace, &pod.name)) {
            Some(Ok(Some((state, reason)))) => {
                pod.state = state;
                pod.reason = reason;
            }
            Some(Ok(None)) if pod.state != SandboxPodState::Failed => {
                pod.state = SandboxPodState::Failed;
                pod.reason = "unknown to the agent: the pod was deleted".to_owned();
            }
            Some(Ok(None)) => {}
            Some(Err(_)) | None => {
                let (code, last) = (error_code::cli::NO_ANSWER, &pod.reason);
                pod.reason = format!("{code}: the agent does not respond; last known: {last}");
            }
        }
    }
}

fn agent_status(node: &NetNs) -> anyhow::Result<NodeStatus> {
    node.run(|| node_status(agent_status::DEFAULT_ADMIN))?
}

/// Queries the agent of a node for a pod's state and reason; `None` if the agent does not know it.
pub(crate) fn query_pod(
    node: &NetNs,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Option<(SandboxPodState, String)>> {
    let mut pods = agent_status(node)?.pods.into_iter();
    let pod = pods.find(|p| p.namespace == namespace && p.name == name);
    Ok(pod.map(|pod| {
        let state = match pod.state {
            PodState::Enrolled => SandboxPodState::Enrolled,
            PodState::Leaving => SandboxPodState::Leaving,
            PodState::Skipped => SandboxPodState::Skipped,
        };
        (state, pod.reason)
    }))
}

/// Restarts agents and proxies that have exited.
pub(crate) fn repair() -> anyhow::Result<()> {
    let (layout, report) = running()?;
    repair_and_wait(&layout, &report).map(drop)
}

/// Signals the keeper to restart agents and proxies that have exited, and waits until they run.
pub(crate) fn repair_and_wait(
    layout: &Layout,
    report: &SandboxReport,
) -> anyhow::Result<SandboxReport> {
    let deadline = Instant::now() + KEEPER_DEADLINE;
    loop {
        // Repeated, because the keeper restarts a process only when it has exited.
        kill(Pid::from_raw(report.keeper_pid), Signal::SIGUSR1)?;
        sleep(Duration::from_millis(50));
        let current = SandboxReport::read(layout)?.context("the keeper exited")?;
        let mut processes = current
            .nodes
            .iter()
            .flat_map(|n| [n.agent_pid, n.proxy_pid]);
        if processes.all(is_alive) {
            return Ok(current);
        }
        if Instant::now() > deadline {
            let detail = format!("see {}", layout.keeper_log().display());
            return Err(failure(&codes::START, detail));
        }
    }
}

/// Stops the sandbox.
pub(crate) fn down() -> anyhow::Result<()> {
    stop(&acquire_privileges()?)
}

/// Stops the sandbox in this folder, if there is one, and waits until it is removed.
pub(crate) fn stop(layout: &Layout) -> anyhow::Result<()> {
    let Some(report) = SandboxReport::read(layout)? else {
        // A killed keeper leaves only files behind.
        return match fs::remove_dir_all(layout.root()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        };
    };
    kill(Pid::from_raw(report.keeper_pid), Signal::SIGTERM)?;
    let deadline = Instant::now() + KEEPER_DEADLINE;
    while started(report.keeper_pid) == Some(report.keeper_started) {
        if Instant::now() > deadline {
            kill(Pid::from_raw(report.keeper_pid), Signal::SIGKILL)?;
            let _ = fs::remove_dir_all(layout.root());
            break;
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| started(pid).is_some() && !is_exiting(pid))
}
