//! A sandbox for one test: two nodes with the built agent and proxy, and pods enrolled by the built
//! plugin.

#![allow(clippy::disallowed_types)] // starts the programs under test

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns::NetNs;
use serde_json::Value;

use crate::binaries::binary;

/// How long to wait for an expected condition. It only detects a hang, so it is far longer than any
/// condition takes on an overloaded machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// client, neighbour and outsider (not in the mesh) on node-1, server on node-2; a service with two
/// addresses.
pub const MESH: &str = r#"
namespaces:
  - { name: default, labels: { istio.io/dataplane-mode: ambient } }
  - { name: outside }
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node-1,
      workloadIps: [10.77.1.2, "fd77:1::2"] }
  - { name: neighbour, namespace: default, serviceAccount: neighbour, node: node-1,
      workloadIps: [10.77.1.3, "fd77:1::3"] }
  - { name: outsider, namespace: outside, serviceAccount: outsider, node: node-1,
      workloadIps: [10.77.1.4, "fd77:1::4"] }
  - { name: server, namespace: default, serviceAccount: server, node: node-2,
      workloadIps: [10.77.2.2, "fd77:2::2"],
      services: { default/server.default.svc.cluster.local: { 80: 8080 } } }
services:
  - { name: server, namespace: default, vips: [/10.96.0.10, "/fd96::10"], ports: { 80: 8080 } }
"#;

/// The service's addresses.
pub const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd96::10]:80"];

/// A running sandbox. It ends when this value is dropped, or with the thread that created it.
#[derive(Debug)]
pub struct Sandbox {
    folder: PathBuf,
    up: Child,
    /// The output of `status --json` after start.
    pub report: Value,
}

impl Sandbox {
    /// Starts a sandbox with [`MESH`].
    pub fn up(name: &str) -> Self {
        Self::up_with(name, MESH)
    }

    /// Starts a sandbox with another mesh.
    pub fn up_with(name: &str, mesh: &str) -> Self {
        Self::up_in(name, mesh, &[])
    }

    /// Starts a sandbox with another mesh, and additional environment variables for all its
    /// processes.
    pub fn up_in(name: &str, mesh: &str, environment: &[(&str, &str)]) -> Self {
        let folder = crate::folder::folder(name);
        fs::write(folder.join("mesh.yaml"), mesh).unwrap();
        let log = fs::File::create(folder.join("up.log")).unwrap();
        let mut command = underpass(&folder);
        command
            .args(["up", "--foreground", "--file"])
            .arg(folder.join("mesh.yaml"));
        command.envs(environment.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let up = netns::process::die_with_parent(&mut command).spawn();
        let mut sandbox = Self {
            folder,
            up: up.unwrap(),
            report: Value::Null,
        };
        let ready = || {
            if let Some(status) = sandbox.up.try_wait().unwrap() {
                let log = fs::read_to_string(sandbox.folder.join("up.log")).unwrap();
                panic!("up exited with {status}: {log}");
            }
            let report = fs::read(sandbox.folder.join("box/sandbox.json")).ok()?;
            serde_json::from_slice(&report).ok()
        };
        sandbox.report = until("the sandbox is up", ready);
        sandbox
    }

    /// Runs `underpass sandbox …` on this sandbox.
    pub fn command(&self, args: &[&str]) -> Output {
        underpass(&self.folder).args(args).output().unwrap()
    }

    /// Runs `underpass` in a node's network namespace: exit code, output, errors.
    pub fn underpass(&self, node: &str, args: &str) -> (i32, String, String) {
        let netns = NetNs::open(self.node(node)["netns"].as_str().unwrap()).unwrap();
        let mut command = Command::new(binary("underpass"));
        netns::process::in_netns(&mut command, &netns).unwrap();
        let output = command
            .args(args.split(' '))
            .env_remove("UNDERPASS_PROXY_ADMIN")
            .env_remove("UNDERPASS_AGENT_ADMIN")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// A pod's network namespace.
    pub fn pod(&self, name: &str) -> NetNs {
        let pod = self.report["pods"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == name)
            .unwrap();
        NetNs::open(pod["netns"].as_str().unwrap()).unwrap()
    }

    /// A pod's addresses, IPv4 first.
    pub fn ips(&self, name: &str) -> Vec<IpAddr> {
        let pod = self.report["pods"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == name)
            .unwrap();
        pod["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| ip.as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// The current status of a node.
    pub fn node(&self, name: &str) -> Value {
        let report: Value =
            serde_json::from_slice(&fs::read(self.folder.join("box/sandbox.json")).unwrap())
                .unwrap();
        report["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()
            .clone()
    }

    /// The current state of a pod, as reported by its node's agent.
    pub fn state(&self, pod: &str) -> String {
        let status: Value =
            serde_json::from_slice(&self.command(&["status", "--json"]).stdout).unwrap();
        let found = status["pods"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == pod)
            .unwrap();
        found["state"].as_str().unwrap().to_owned()
    }

    /// Replaces the mesh file with [`MESH`] and these policies.
    pub fn set_policies(&self, policies: &str) {
        self.set_mesh(&format!("{MESH}policies:\n{policies}\n"));
    }

    /// Replaces the mesh file.
    pub fn set_mesh(&self, text: &str) {
        let staged = self.folder.join("mesh.new");
        fs::write(&staged, text).unwrap();
        fs::rename(staged, self.folder.join("mesh.yaml")).unwrap();
    }

    /// The log of the `agent` or `proxy` of a node.
    pub fn log(&self, node: &str, of: &str) -> String {
        fs::read_to_string(self.folder.join(format!("box/nodes/{node}/{of}.log"))).unwrap()
    }

    /// Waits for a line that contains all these strings in the log of a node's proxy.
    pub fn access_line(&self, node: &str, words: &[&str]) -> String {
        until(
            &format!("a line with {words:?} in the proxy's log of {node}"),
            || {
                let log = self.log(node, "proxy");
                log.lines()
                    .find(|l| words.iter().all(|w| l.contains(w)))
                    .map(str::to_owned)
            },
        )
    }

    /// Sends a GET request in a node's namespace; returns the status and the body.
    pub fn get(&self, node: &str, address: &str, path: &str) -> (u16, String) {
        self.request(node, "GET", address, path)
    }

    /// Sends a request without a body in a node's namespace; returns the status and the body.
    pub fn request(&self, node: &str, method: &str, address: &str, path: &str) -> (u16, String) {
        let netns = NetNs::open(self.node(node)["netns"].as_str().unwrap()).unwrap();
        let mut stream = netns.run(|| TcpStream::connect(address)).unwrap().unwrap();
        // One write: the server limits the time for a request, and this process may be stopped.
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// The test's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in ["node-1", "node-2"] {
                for of in ["agent", "proxy"] {
                    let log = self.folder.join(format!("box/nodes/{node}/{of}.log"));
                    eprintln!(
                        "-- {of} of {node}\n{}",
                        fs::read_to_string(log).unwrap_or_default()
                    );
                }
            }
        }
        let _ = self.command(&["down"]);
        let _ = self.up.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn underpass(folder: &Path) -> Command {
    let mut command = Command::new(binary("underpass"));
    command
        .arg("sandbox")
        .env("UNDERPASS_SANDBOX_DIR", folder.join("box"));
    if is_own_engine() {
        command.env("UNDERPASS_TUNNEL_ENGINE", "own");
    }
    command
}

/// Whether proxies use the second tunnel engine: in the test target `own_engine`, which runs the
/// suites about tunnels again.
pub fn is_own_engine() -> bool {
    let target = std::env::current_exe().unwrap();
    let name = target.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("own_engine-"))
}

/// Listens in a pod, like an application.
pub fn listen(netns: &NetNs, port: u16) -> TcpListener {
    crate::listener::plain(netns, (std::net::Ipv6Addr::UNSPECIFIED, port).into())
}

/// Connects from within a pod.
///
/// # Errors
/// Those of connect(2).
pub fn connect(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = netns
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    Ok(stream)
}

/// Serves connections in background threads: sends the client's address on a line, then echoes all
/// data.
pub fn serve_echo(netns: &NetNs, port: u16) {
    let listener = listen(netns, port);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                writeln!(stream, "{}", peer.ip().to_canonical())?;
                io::copy(&mut stream.try_clone()?, &mut stream)?;
                stream.shutdown(std::net::Shutdown::Write)
            });
        }
    });
}

/// Reads one line.
///
/// # Errors
/// Those of read(2), and `UnexpectedEof` when the connection is closed within the line.
pub fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}

/// Waits until a condition yields a value; panics after [`PATIENCE`].
pub fn until<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    eventually(check).unwrap_or_else(|| panic!("not within {} s: {what}", PATIENCE.as_secs()))
}

/// Waits for a condition that takes longer than [`PATIENCE`].
///
/// # Panics
/// When the time has passed.
#[track_caller]
pub fn await_within<T>(seconds: u64, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(
            started.elapsed().as_secs() < seconds,
            "not within {seconds} s: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a condition yields a value; `None` after [`PATIENCE`]. For code that must not panic,
/// such as the cleanup of a failed test.
pub fn eventually<T>(mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

/// Reads a PROXY protocol version 2 header: command, family, and the rest after the length.
pub fn read_proxy_header(stream: &mut TcpStream) -> Vec<u8> {
    let mut start = [0; 16];
    stream.read_exact(&mut start).unwrap();
    let mut rest = vec![0; usize::from(u16::from_be_bytes([start[14], start[15]]))];
    stream.read_exact(&mut rest).unwrap();
    [&start[12..14], &rest].concat()
}
