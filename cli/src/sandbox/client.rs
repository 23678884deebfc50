//! What a person calls: each talks to the keeper's files, or to the keeper by signal.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use agent_status::NodeStatus;
use anyhow::Context;
use error_code::sandbox as codes;
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::become_able;
use super::keeper::{COMMIT, DONE, FAILED};
use super::layout::Layout;
use super::report::{PodState, Report, started};
use crate::failure::failure;
use crate::node::{Summary, node_status};

/// How long the keeper may take to end.
const DOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Starts a sandbox and returns when every pod is there.
pub(crate) fn up(file: Option<&Path>, foreground: bool) -> anyhow::Result<ExitCode> {
    let layout = become_able()?;
    if Report::read(&layout)?.is_some() {
        return Err(failure(&codes::RUNNING, layout.root().display()));
    }
    let mut started = start(&layout, file, &|line| println!("{line}"))?;
    let report = &started.report;
    let failed: Vec<_> = report.pods.iter().filter(|p| p.state == PodState::Failed).collect();
    let problem = failed.first().map(|pod| {
        let detail = format!("{}/{}: {}", pod.namespace, pod.name, pod.reason);
        failure(&codes::POD, detail)
    });
    if let Some(problem) = problem {
        started.keep_running()?;
        return Err(problem);
    }
    println!("\nThe mesh is up. Its mesh file is {}; try:", report.mesh_file.display());
    println!("  underpass sandbox exec client -- curl -s http://10.96.0.10/");
    println!("  underpass sandbox status");
    if foreground {
        println!("Ctrl-C ends it.");
        started.keeper.wait()?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("  underpass sandbox down");
    started.keep_running()?;
    Ok(ExitCode::SUCCESS)
}

/// A sandbox that ends with this value, unless it is told to keep running.
pub(crate) struct Started {
    pub(crate) report: Report,
    keeper: Child,
    /// The keeper ends when this closes before it has read [`COMMIT`].
    hold: ChildStdin,
}

impl Started {
    fn keep_running(&mut self) -> io::Result<()> {
        self.hold.write_all(&[COMMIT])
    }
}

/// Starts a keeper and follows it until everything runs. When this process is killed meanwhile, nothing is left.
pub(crate) fn start(layout: &Layout, file: Option<&Path>, progress: &dyn Fn(&str)) -> anyhow::Result<Started> {
    fs::create_dir_all(layout.root()).with_context(|| format!("cannot make {}", layout.root().display()))?;
    let log = OpenOptions::new().create(true).append(true).open(layout.keeper_log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["sandbox", "keep"]).env("UNDERPASS_SANDBOX_DIR", layout.root());
    if let Some(file) = file {
        command.arg("--file").arg(file);
    }
    let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
    let (stdin, stdout) = (keeper.stdin.take(), keeper.stdout.take());
    for line in BufReader::new(stdout.context("no pipe")?).lines() {
        let line = line?.replace('\u{1f}', "\n");
        if line == DONE {
            let report = Report::read(layout)?.context("the keeper has ended at once")?;
            return Ok(Started { report, keeper, hold: stdin.context("no pipe")? });
        }
        if let Some(why) = line.strip_prefix(FAILED) {
            let _ = keeper.wait(); // it ends by itself
            anyhow::bail!("{why}");
        }
        progress(&line);
    }
    Err(failure(&codes::START, "the keeper ended unexpectedly"))
}

/// The running sandbox.
fn running() -> anyhow::Result<(Layout, Report)> {
    let layout = become_able()?;
    match Report::read(&layout)? {
        Some(report) => Ok((layout, report)),
        None => Err(failure(&codes::NOT_RUNNING, layout.root().display())),
    }
}

/// Becomes a command in a pod's network namespace.
pub(crate) fn exec(pod: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let (_, report) = running()?;
    let netns = NetNs::open(&report.pod(pod)?.netns)?;
    let (program, args) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args);
    let error = netns::process::in_netns(&mut command, &netns)?.exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// Prints nodes and pods.
pub(crate) fn status(json: bool) -> anyhow::Result<ExitCode> {
    let (_, mut report) = running()?;
    refresh(&mut report);
    let failed = report.pods.iter().any(|p| p.state == PodState::Failed);
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        for node in &report.nodes {
            let alive = |pid: u32| if is_alive(pid) { format!("pid {pid}") } else { "not running".to_owned() };
            println!("{:<10} agent {}, proxy {}", node.name, alive(node.agent_pid), alive(node.proxy_pid));
        }
        println!("\n{:<24} {:<10} {:<9} {:<28} REASON", "POD", "NODE", "STATE", "ADDRESSES");
        for pod in &report.pods {
            let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
            let name = format!("{}/{}", pod.namespace, pod.name);
            println!("{name:<24} {:<10} {:<9} {:<28} {}", pod.node, pod.state.as_str(), ips.join(" "), pod.reason);
        }
        println!("\n{}", verified(&report));
        println!(
            "mesh file {}; logs {}",
            report.mesh_file.display(),
            report.nodes.first().map_or_else(String::new, |n| n.proxy_log.display().to_string())
        );
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How many pods are really in the mesh, as the agents have measured, and a line for each that is not.
fn verified(report: &Report) -> Summary {
    let mut summary = Summary::default();
    for node in &report.nodes {
        let status = NetNs::open(&node.netns).map_err(anyhow::Error::from).and_then(|n| agent_status(&n));
        summary.extend(status.iter().flat_map(|s| &s.pods));
    }
    summary
}

/// What the agents say now, where they answer.
fn refresh(report: &mut Report) {
    for pod in &mut report.pods {
        let node = report.nodes.iter().find(|n| n.name == pod.node).and_then(|n| NetNs::open(&n.netns).ok());
        match node.map(|n| agent_says(&n, &pod.namespace, &pod.name)) {
            Some(Ok(Some(said))) => (pod.state, pod.reason) = said,
            Some(Ok(None)) if pod.state != PodState::Failed => {
                (pod.state, pod.reason) =
                    (PodState::Failed, "the agent does not know the pod: it was deleted".to_owned());
            }
            Some(Ok(None)) => {}
            Some(Err(_)) | None => pod.reason = format!("the agent does not answer; last known: {}", pod.reason),
        }
    }
}

fn agent_status(node: &NetNs) -> anyhow::Result<NodeStatus> {
    node.run(|| node_status(agent_status::DEFAULT_ADMIN))?
}

/// What the agent of a node says about a pod, if it knows the pod.
pub(crate) fn agent_says(node: &NetNs, namespace: &str, name: &str) -> anyhow::Result<Option<(PodState, String)>> {
    let pod = agent_status(node)?.pods.into_iter().find(|p| p.namespace == namespace && p.name == name);
    Ok(pod.map(|pod| {
        let state = match pod.state {
            agent_status::PodState::Enrolled => PodState::Enrolled,
            agent_status::PodState::Leaving => PodState::Leaving,
            agent_status::PodState::Skipped => PodState::Skipped,
        };
        (state, pod.reason)
    }))
}

/// Starts again what has ended.
pub(crate) fn repair() -> anyhow::Result<ExitCode> {
    let (layout, report) = running()?;
    repair_and_wait(&layout, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells the keeper to start what has ended, and waits until it has.
pub(crate) fn repair_and_wait(layout: &Layout, report: &Report) -> anyhow::Result<Report> {
    let deadline = Instant::now() + DOWN_DEADLINE;
    loop {
        // Again and again: a process that was still ending the last time was not started anew.
        kill(Pid::from_raw(report.keeper_pid), Signal::SIGUSR1)?;
        sleep(Duration::from_millis(50));
        let now = Report::read(layout)?.context("the keeper has ended")?;
        if now.nodes.iter().all(|n| is_alive(n.agent_pid) && is_alive(n.proxy_pid)) {
            return Ok(now);
        }
        if Instant::now() > deadline {
            return Err(failure(&codes::START, format!("see {}", layout.keeper_log().display())));
        }
    }
}

/// Ends the sandbox.
pub(crate) fn down() -> anyhow::Result<ExitCode> {
    let layout = become_able()?;
    stop(&layout)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the sandbox in this folder, if there is one, and waits until nothing of it is left.
pub(crate) fn stop(layout: &Layout) -> anyhow::Result<()> {
    let Some(report) = Report::read(layout)? else {
        // What a killed keeper has left: files only.
        return match fs::remove_dir_all(layout.root()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        };
    };
    kill(Pid::from_raw(report.keeper_pid), Signal::SIGTERM)?;
    let deadline = Instant::now() + DOWN_DEADLINE;
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
    i32::try_from(pid).is_ok_and(|pid| started(pid).is_some())
}
