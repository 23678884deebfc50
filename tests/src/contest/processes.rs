//! What processes use.

#![allow(clippy::disallowed_types)] // runs strace

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure::{cpu as process_cpu, resident};
use crate::sandbox::until;

/// CPU time that processes have used: to the nanosecond, unless threads have exited meanwhile.
pub(super) fn cpu(pids: &[u32]) -> Duration {
    let of_thread = |path: &Path| {
        let stat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let first = stat.split_whitespace().next();
        first.map_or(0, |nanoseconds| nanoseconds.parse().unwrap())
    };
    let of_process = |pid: &u32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let current: u64 = threads.flatten().map(|t| of_thread(&t.path())).sum();
        Duration::from_nanos(current).max(process_cpu(*pid))
    };
    pids.iter().map(of_process).sum()
}

/// CPU time that processes have used since they had used `before`.
pub(super) fn cpu_since(pids: &[u32], before: Duration) -> Duration {
    cpu(pids).saturating_sub(before)
}

/// Resident memory of processes together, in MiB.
pub(super) fn memory(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| resident(*pid)).sum()
}

/// Counts the system calls of processes meanwhile; `None` without strace.
pub(super) fn system_calls(pids: &[u32], log: &Path, work: impl FnOnce()) -> Option<u64> {
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(log);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut strace = command.stderr(Stdio::null()).spawn().ok()?;
    until("strace is attached", || {
        let is_traced = |pid: &u32| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            threads.into_iter().all(|thread| {
                let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0")
            })
        };
        pids.iter().all(is_traced).then_some(())
    });
    work();
    kill(
        Pid::from_raw(strace.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    strace.wait().unwrap();
    let summary = fs::read_to_string(log).unwrap();
    fs::remove_file(log).unwrap();
    let total = summary.lines().find(|line| line.ends_with(" total"))?;
    // % time, seconds, usecs/call, calls, errors (if there are any), "total"
    total.split_whitespace().nth(3)?.parse().ok()
}
