//! Runs the plugin as a container runtime does, and provides a fake agent whose replies the test
//! chooses.

#![allow(clippy::disallowed_types)] // starts plugins, like a container runtime

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use handoff::{FromAgent, FromPlugin};
use netns::NetNs;
use netns::seqpacket::{Packet, SeqPacket, SeqPacketListener};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::binaries::{self, binary};
use crate::sandbox::PATIENCE;

/// Far longer than a call takes on an overloaded machine.
const DEADLINE_MS: u32 = 60_000;

/// One call of the plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// The environment.
    pub env: Vec<(&'static str, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

impl Call {
    /// A call for pod `default/client`, with containerd's variables.
    pub fn new(command: &str, netns: &str, config: &Value) -> Self {
        let args =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID=uid-1";
        let env = vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c0ffee".repeat(10) + "c0fe"),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/nowhere".to_owned()),
            ("CNI_ARGS", args.to_owned()),
        ];
        Self {
            env,
            stdin: config.to_string().into_bytes(),
        }
    }

    /// The same call with one variable changed, or removed.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.env.retain(|(n, _)| *n != name);
        self.env.extend(value.map(|v| (name, v.to_owned())));
        self
    }

    /// The same call with another deadline, for a test in which it passes.
    #[must_use]
    pub fn with_deadline(mut self, milliseconds: u64) -> Self {
        let mut config: Value = serde_json::from_slice(&self.stdin).unwrap();
        config["deadlineMs"] = json!(milliseconds);
        self.stdin = config.to_string().into_bytes();
        self
    }

    /// Starts the plugin and writes its input.
    pub fn start(&self) -> Child {
        let mut child = self.start_without_input();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child
    }

    /// Starts the plugin without input, for which it waits first.
    pub fn start_without_input(&self) -> Child {
        self.command().spawn().unwrap()
    }

    /// Runs the plugin inside the node's namespace.
    pub fn run_in(&self, node: &NetNs) -> Output {
        let mut command = self.command();
        let mut child = netns::process::in_netns(&mut command, node)
            .unwrap()
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs the plugin as another user, from a copy that this user can execute.
    pub fn run_as(&self, uid: u32, copy: &Path) -> Output {
        binaries::copy(&binary("underpass-cni"), copy);
        let mut child = self
            .command_of(Command::new(copy))
            .uid(uid)
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs the plugin under strace, which logs every execve to `log`.
    pub fn run_traced(&self, log: &Path) -> Output {
        let mut child = self
            .command_of(crate::node::traced(log, "underpass-cni"))
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    fn command(&self) -> Command {
        self.command_of(Command::new(binary("underpass-cni")))
    }

    fn command_of(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .envs(self.env.iter().map(|(n, v)| (*n, v)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::process::die_with_parent(&mut command);
        command
    }

    /// Runs the plugin until it exits.
    pub fn run(&self) -> Output {
        self.start().wait_with_output().unwrap()
    }
}

/// A path through which other processes can open a namespace that this process holds.
pub fn path_of(netns: &NetNs) -> String {
    use std::os::fd::AsFd;
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}

/// A plugin configuration whose previous result has these addresses, and whose deadline only
/// detects a hang.
pub fn config(socket: &Path, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|a| json!({ "address": a })).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "test",
        "type": "underpass-cni",
        "agentSocket": socket,
        "deadlineMs": DEADLINE_MS,
        "prevResult": { "cniVersion": "1.0.0", "ips": ips, "unknown": [1, 2] },
    })
}

/// A fake agent, with its socket in a folder that is removed on drop.
#[derive(Debug)]
pub struct FakeAgent {
    listener: SeqPacketListener,
    /// Path of the socket.
    pub socket: PathBuf,
    folder: PathBuf,
}

impl FakeAgent {
    /// Listens on a new socket.
    pub fn new(name: &str) -> Self {
        let folder = crate::folder::folder(name);
        let socket = folder.join("agent.sock");
        Self {
            listener: SeqPacketListener::bind(&socket).unwrap(),
            socket,
            folder,
        }
    }

    /// Accepts the plugin's connection; panics after [`PATIENCE`] without one.
    pub fn accept(&self) -> Plugin {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok(connection) => {
                    connection.set_timeout(PATIENCE).unwrap();
                    return Plugin(connection);
                }
                Err(_) => assert!(Instant::now() < deadline, "the plugin does not connect"),
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A connected plugin, as seen by the agent.
#[derive(Debug)]
pub struct Plugin(SeqPacket);

impl Plugin {
    /// The plugin's process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.peer().unwrap().pid)
    }

    /// Receives the next packet; `None` when the plugin has closed the connection.
    pub fn packet(&self) -> Option<Packet> {
        self.0.recv().unwrap()
    }

    /// Receives the next message, and the namespace that came with it; `None` when the plugin has
    /// closed the connection.
    pub fn receive(&self) -> Option<(FromPlugin, Option<NetNs>)> {
        let mut packet = self.packet()?;
        let netns = packet.fds.pop().map(|fd| NetNs::from_fd(fd).unwrap());
        Some((serde_json::from_slice(&packet.data).unwrap(), netns))
    }

    /// Sends a reply.
    pub fn send(&self, message: &FromAgent) {
        self.send_bytes(&serde_json::to_vec(message).unwrap());
    }

    /// Sends raw bytes.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.0.send(bytes, None).unwrap();
    }

    /// Sends bytes that are not a message.
    pub fn send_garbage(&self) {
        self.send_bytes(b"\xff{");
    }
}
