//! What a container runtime needs to itself besides a network namespace, so that a test can run a real one: processes,
//! mounts, `/run` and `/var/lib`. Nothing of it outlives the test, however that ends.

#![allow(clippy::disallowed_types)] // runtimes are programs

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use netns::NetNs;

use crate::binaries::runtimes;
use crate::sandbox::{happens, until};

/// The first process. `/run` and `/var/lib` are empty for everything here: runtimes and CNI have paths in them that
/// nothing can change (`/run/containerd/s`, `/var/lib/cni/results`). The program is started again whenever it ends, so
/// that a test can kill it; whoever loses its parent, as containerd's shims do, becomes a child of this process.
const INIT: &str = "
ready=$1; shift; unset PWD
mount -t tmpfs -o mode=755 tmpfs /run &&
mount -t tmpfs -o mode=755 tmpfs /var/lib &&
mkdir -p /run/netns /var/lib/cni && : >$ready || exit 1
while :; do \"$@\"; sleep 0.05; done
";

/// Namespaces for processes and mounts, in the network namespace of a node.
#[derive(Debug)]
pub struct Machine {
    /// `unshare`: when it ends, the first process is killed, and with that one the kernel kills all others.
    holder: Child,
    init: u32,
}

impl Machine {
    /// Starts a program in namespaces of its own; it is started again whenever it ends. `folder` is the test's.
    pub fn start(netns: &NetNs, folder: &Path, program: &[&OsStr]) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("machine.log")).unwrap();
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
        // Plugins inherit the environment of the runtime.
        command.env_clear().env("PATH", path()).env("HOME", "/root");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        netns::process::in_netns(&mut command, netns).unwrap();
        let holder = netns::process::die_with_parent(&mut command).spawn().unwrap();
        until("the machine is ready", || ready.exists().then_some(()));
        let init = children(holder.id())[0];
        Self { holder, init }
    }

    /// A program that is to run inside. It dies with the process that is spawned by this, which waits for it outside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program).env("PATH", path());
        command
    }

    /// The arguments by which `nsenter` starts a program inside.
    pub fn enter(&self) -> Vec<String> {
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

    /// Where a path of the machine is found from outside.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new(&format!("/proc/{}/root", self.init)).join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The process that the machine runs; `None` while it is being started again.
    pub fn program(&self, name: &str) -> Option<u32> {
        let named = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim_end() == name);
        children(self.init).into_iter().find(named)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if happens(|| ended(self.init).then_some(())).is_none() {
            eprintln!("process {} does not end", self.init);
        }
    }
}

/// Where programs are found: the runtimes' own first.
pub fn path() -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", runtimes().join("bin").display())
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|c| c.parse().ok()).collect()
}

/// Whether a process has ended, with all of its threads, even if nobody has asked for its end. Its files stay open
/// until the last thread has gone.
pub fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_empty() || stat.contains(") Z ") && threads <= 1
}
