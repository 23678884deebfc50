//! An isolated host for a real container runtime: process and mount namespaces, and private `/run`
//! and `/var/lib`. Nothing of it outlives the test, even if the test is killed.

#![allow(clippy::disallowed_types)] // starts container runtimes

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use netns::NetNs;

use crate::binaries::runtimes;
use crate::sandbox::{eventually, until};

/// The init process. `/run` and `/var/lib` are private, because runtimes and CNI have hard-coded
/// paths there (`/run/containerd/s`, `/var/lib/cni/results`). The program is restarted whenever it
/// exits, so that a test can kill it. Orphans, such as containerd's shims, become children of this
/// process.
const INIT: &str = "
ready=$1; shift; unset PWD
mount -t tmpfs -o mode=755 tmpfs /run &&
mount -t tmpfs -o mode=755 tmpfs /var/lib &&
mkdir -p /run/netns /var/lib/cni && : >$ready || exit 1
while :; do \"$@\"; sleep 0.05; done
";

/// Process and mount namespaces, in the network namespace of a node.
#[derive(Debug)]
pub struct Machine {
    /// `unshare`: when it exits, init is killed, and with init the kernel kills all other
    /// processes.
    holder: Child,
    init: u32,
}

impl Machine {
    /// Starts a program in new namespaces, and restarts it whenever it exits. `folder` is the
    /// test's.
    pub fn start(netns: &NetNs, folder: &Path, program: &[&OsStr]) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("machine.log"))
            .unwrap();
        let ready = folder.join("machine.ready");
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
            "/bin/sh",
            "-c",
            INIT,
            "init",
        ]);
        command.arg(&ready).args(program);
        // Plugins inherit the runtime's environment.
        command.env_clear().env("PATH", path()).env("HOME", "/root");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        netns::process::in_netns(&mut command, netns).unwrap();
        let holder = netns::process::die_with_parent(&mut command)
            .spawn()
            .unwrap();
        until("the machine is ready", || ready.exists().then_some(()));
        let init = children(holder.id())[0];
        Self { holder, init }
    }

    /// A command that runs a program inside. The program is killed with the spawned process, which
    /// waits for it outside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(self.nsenter_arguments())
            .arg(program)
            .env("PATH", path());
        command
    }

    /// The `nsenter` arguments that start a program inside.
    pub fn nsenter_arguments(&self) -> Vec<String> {
        let ns = |name: &str| format!("/proc/{}/ns/{name}", self.holder.id());
        let namespaces = ["net", "mnt"].map(ns);
        vec![
            format!("--net={}", namespaces[0]),
            format!("--mount={}", namespaces[1]),
            format!("--pid={}", ns("pid_for_children")),
            "--".to_owned(),
            "setpriv".to_owned(),
            "--pdeathsig=KILL".to_owned(),
        ]
    }

    /// The path outside the machine of a path inside.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new(&format!("/proc/{}/root", self.init))
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The process id of the program; `None` while it is being restarted.
    pub fn program(&self, name: &str) -> Option<u32> {
        let has_name = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim_end() == name)
        };
        children(self.init).into_iter().find(has_name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if eventually(|| has_exited(self.init).then_some(())).is_none() {
            eprintln!("process {} does not exit", self.init);
        }
    }
}

/// The search path of programs: the runtimes' own come first.
pub fn path() -> String {
    format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin",
        runtimes().join("bin").display()
    )
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|c| c.parse().ok())
        .collect()
}

/// Whether a process has exited with all its threads, even if it has not been reaped. Its files
/// stay open until its last thread has exited.
pub fn has_exited(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_empty() || stat.contains(") Z ") && threads <= 1
}
