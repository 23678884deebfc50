//! Running the plugin as a container runtime does, and an agent that says what the test wants.

#![allow(clippy::disallowed_types)] // a container runtime starts plugins

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use handoff::{FromAgent, FromPlugin};
use netns::NetNs;
use netns::seqpacket::{Packet, SeqPacket, SeqPacketListener};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::binaries::{self, binary};

/// One call of the plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// The environment.
    pub env: Vec<(&'static str, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

impl Call {
    /// A call as containerd makes it for pod `default/client`.
    pub fn new(command: &str, netns: &str, config: &Value) -> Self {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID=uid-1";
        let env = vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c0ffee".repeat(10) + "c0fe"),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/nowhere".to_owned()),
            ("CNI_ARGS", args.to_owned()),
        ];
        Self { env, stdin: config.to_string().into_bytes() }
    }

    /// The same call with one variable changed, or taken away.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.env.retain(|(n, _)| *n != name);
        self.env.extend(value.map(|v| (name, v.to_owned())));
        self
    }

    /// Starts the plugin and gives it its input.
    pub fn start(&self) -> Child {
        let mut child = self.start_without_input();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child
    }

    /// Starts the plugin, which reads its input before it does anything else.
    pub fn start_without_input(&self) -> Child {
        self.prepare().spawn().unwrap()
    }

    /// Starts the plugin in a namespace that is the node's own.
    pub fn run_in(&self, node: &NetNs) -> Output {
        let mut command = self.prepare();
        let mut child = netns::process::in_netns(&mut command, node).unwrap().spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs the plugin as another user, from a copy that this user can reach.
    pub fn run_as(&self, uid: u32, copy: &Path) -> Output {
        binaries::copy(&binary("underpass-cni"), copy);
        let mut child = self.prepared(Command::new(copy)).uid(uid).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs the plugin under strace, which writes every start of a program to `log`.
    pub fn run_traced(&self, log: &Path) -> Output {
        let mut child = self.prepared(crate::node::traced(log, "underpass-cni")).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    fn prepare(&self) -> Command {
        self.prepared(Command::new(binary("underpass-cni")))
    }

    fn prepared(&self, mut command: Command) -> Command {
        command.env_clear().envs(self.env.iter().map(|(n, v)| (*n, v)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        netns::process::die_with_parent(&mut command);
        command
    }

    /// Runs the plugin to its end.
    pub fn run(&self) -> Output {
        self.start().wait_with_output().unwrap()
    }
}

/// The path by which another process reaches a namespace that this one holds.
pub fn path_of(netns: &NetNs) -> String {
    use std::os::fd::AsFd;
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

/// The plugin's configuration, with a previous result that has these addresses.
pub fn config(socket: &Path, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|a| json!({ "address": a })).collect();
    json!({
        "cniVersion": "1.0.0", "name": "test", "type": "underpass-cni", "agentSocket": socket, "deadlineMs": 1500,
        "prevResult": { "cniVersion": "1.0.0", "ips": ips, "unknown": [1, 2] },
    })
}

/// An agent's socket in a folder of its own, which goes away with it.
#[derive(Debug)]
pub struct FakeAgent {
    listener: SeqPacketListener,
    /// The socket.
    pub socket: PathBuf,
    folder: PathBuf,
}

impl FakeAgent {
    /// Listens.
    pub fn new(name: &str) -> Self {
        let folder = crate::folder::folder(name);
        let socket = folder.join("agent.sock");
        Self { listener: SeqPacketListener::bind(&socket).unwrap(), socket, folder }
    }

    /// The plugin's connection; panics when none comes within five seconds.
    pub fn accept(&self) -> Plugin {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.listener.accept() {
                Ok(connection) => {
                    connection.set_timeout(Duration::from_secs(5)).unwrap();
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

/// A plugin, as its agent sees it.
#[derive(Debug)]
pub struct Plugin(SeqPacket);

impl Plugin {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.peer().unwrap().pid)
    }

    /// The next message as it is; `None` when the plugin has gone.
    pub fn packet(&self) -> Option<Packet> {
        self.0.recv().unwrap()
    }

    /// The next message, and the namespace that came with it; `None` when the plugin has gone.
    pub fn receive(&self) -> Option<(FromPlugin, Option<NetNs>)> {
        let mut packet = self.packet()?;
        let netns = packet.fds.pop().map(|fd| NetNs::from_fd(fd).unwrap());
        Some((serde_json::from_slice(&packet.data).unwrap(), netns))
    }

    /// Answers.
    pub fn send(&self, message: &FromAgent) {
        self.send_bytes(&serde_json::to_vec(message).unwrap());
    }

    /// Answers with bytes.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.0.send(bytes, None).unwrap();
    }

    /// Sends bytes that are no message.
    pub fn send_garbage(&self) {
        self.send_bytes(b"\xff{");
    }
}
