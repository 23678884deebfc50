//! The next proxy of a sandbox's node.

#![allow(clippy::disallowed_types)] // starts the program under test

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};

use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binaries::binary;
use crate::sandbox::{Sandbox, is_own_engine, until};

/// A proxy of a node of a sandbox, beside the sandbox's own. Like that of a proxy's pod, its
/// network namespace is not the node's, so that its addresses are free.
#[derive(Debug)]
pub struct NextProxy {
    process: Child,
    netns: NetNs,
}

impl NextProxy {
    /// Starts a proxy with the same tunnel engine as the sandbox's.
    pub fn start(sandbox: &Sandbox, node: &str) -> Self {
        let engine = if is_own_engine() { "own" } else { "h2" };
        Self::start_with(sandbox, node, engine)
    }

    /// Starts a proxy with a tunnel engine and waits until it is ready.
    pub fn start_with(sandbox: &Sandbox, node: &str, engine: &str) -> Self {
        let (folder, netns) = (sandbox.folder(), NetNs::create().unwrap());
        crate::wire::configure(&netns, async |handle| {
            let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
            handle.link().set(up).execute().await.unwrap();
        });
        let mut command = Command::new(binary("underpass-proxy"));
        let log = File::create(folder.join("next.log")).unwrap();
        command
            .args(["--node", node])
            .arg("--mesh-file")
            .arg(folder.join("mesh.yaml"))
            .arg("--zds-socket")
            .arg(folder.join(format!("box/nodes/{node}/zds.sock")))
            .arg("--ca-dir")
            .arg(folder.join("box/ca"))
            .env("CONNECTION_TERMINATION_DEADLINE", "120s")
            .env("UNDERPASS_TUNNEL_ENGINE", engine)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        netns::process::in_netns(&mut command, &netns).unwrap();
        let process = netns::process::die_with_parent(&mut command).spawn();
        let process = process.unwrap();
        let next = Self { process, netns };
        until("the next proxy is ready", || next.is_ready().then_some(()));
        next
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn is_ready(&self) -> bool {
        let connect = || TcpStream::connect("127.0.0.1:15021");
        let Ok(mut stream) = self.netns.run(connect).unwrap() else {
            return false;
        };
        let request = b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        // While it starts, it may reset the connection.
        stream.write_all(request).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200 ")
    }
}

impl Drop for NextProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process id of a node's first proxy.
pub fn first_proxy(sandbox: &Sandbox, node: &str) -> u32 {
    let pid = sandbox.node(node)["proxy_pid"].as_u64();
    u32::try_from(pid.unwrap()).unwrap()
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}
