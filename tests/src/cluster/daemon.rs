//! A control plane program that runs in a network namespace until it is stopped or the test process
//! ends.

#![allow(clippy::disallowed_types)] // the control plane is programs

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Mounts a private `/run`, so that no program finds credentials or sockets of the machine there or
/// leaves files behind.
const WITH_PRIVATE_RUN: &str = "mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"";

/// The time limit for a program to become ready.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running program. It is killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program with only this environment; it logs to a file of its name in the folder.
    pub fn start<S: AsRef<str>>(
        program: &Path,
        netns: &NetNs,
        folder: &Path,
        arguments: &[S],
        environment: &[(&str, &str)],
    ) -> Self {
        let name = program.file_name().unwrap().to_str().unwrap();
        let log = folder.join(name).with_extension("log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", WITH_PRIVATE_RUN])
            .arg(program)
            .args(arguments.iter().map(AsRef::as_ref));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", folder);
        command
            .envs(environment.iter().copied())
            .current_dir(folder);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        netns::process::in_netns(&mut command, netns).unwrap();
        Self {
            child: spawn(command),
            log,
        }
    }

    /// Waits until the program is ready, which other tests on the machine may delay.
    pub fn await_ready<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            let ended = self
                .child
                .try_wait()
                .unwrap()
                .map(|status| format!("exited: {status}"));
            let late = || {
                (Instant::now() > deadline)
                    .then(|| format!("is not ready within {} s", PATIENCE.as_secs()))
            };
            if let Some(why) = ended.or_else(late) {
                panic!("{} {why}\n{}", self.log.display(), self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM, like a kubelet, and waits until the program has exited.
    pub fn stop(mut self) {
        kill(
            Pid::from_raw(self.child.id().try_into().unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        self.child.wait().unwrap();
    }

    /// Whether this is the daemon of the named program.
    pub fn is(&self, program: &str) -> bool {
        self.log.file_stem().is_some_and(|name| name == program)
    }

    /// The log of all its runs.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process that dies with this one.
///
/// The kernel ends such a process with the *thread* that started it, and the threads of tests end
/// before the process does, so a permanent thread starts it.
pub fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static STARTER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(netns::process::die_with_parent(&mut command).spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, started) = channel();
    STARTER.lock().unwrap().send((command, answer)).unwrap();
    started.recv().unwrap().unwrap()
}
