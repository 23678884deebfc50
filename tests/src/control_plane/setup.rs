//! One node under a fake control plane: an agent, a proxy, and two pods connected by a wire.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::resources::{endpoint, pod, service, service_resource, workload_resource};
use super::{ControlPlane, NAME};
use crate::cni::{Call, config, path_of};
use crate::node::TestNode;
use crate::sandbox::{connect, read_line, serve_echo, until};
use crate::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// The agent's mesh file: both pods are in the mesh.
const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: server, namespace: default, serviceAccount: server, node: node,
      workloadIps: [10.78.0.2, "fd78::2"] }
"#;

/// The address of the control plane in the node's network namespace.
const ADDRESS: &str = "127.0.0.1:15012";
/// The addresses of the service whose endpoint is the server.
pub const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd96::10]:80"];

/// A node under a control plane.
#[derive(Debug)]
pub struct ControlPlaneSetup {
    /// The control plane.
    pub plane: ControlPlane,
    /// The agent and the proxy.
    pub node: TestNode,
    /// The pods: `pod` is the client, `peer` the server.
    pub wire: Wire,
    /// The proxy's process id.
    pub proxy: u32,
}

impl ControlPlaneSetup {
    /// Starts everything: both pods are published and enrolled, and the server echoes.
    pub fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// Starts everything, with additional environment variables of the proxy.
    pub fn with(name: &str, environment: &[(&str, &str)]) -> Self {
        let mut setup = Self::without_pods(name);
        setup.publish_pods();
        setup.start_proxy(environment);
        setup.await_ready();
        setup.enrol("client");
        setup.enrol("server");
        setup
    }

    /// Starts only the agent and a control plane without resources.
    pub fn without_pods(name: &str) -> Self {
        Self::without_pods_at(name, ADDRESS.parse().unwrap())
    }

    /// Like [`Self::without_pods`], with another address of the control plane.
    pub fn without_pods_at(name: &str, address: SocketAddr) -> Self {
        let (mut node, wire) = (TestNode::new(name, MESH), Wire::new());
        let plane = ControlPlane::start(&node.netns, address, &node.file(""));
        std::fs::write(node.file("token"), "the-first-token").unwrap();
        node.start_agent();
        serve_echo(&wire.peer, 8080);
        Self {
            plane,
            node,
            wire,
            proxy: 0,
        }
    }

    /// Publishes both pods and the service.
    pub fn publish_pods(&self) {
        let server = endpoint(pod("server", &[PEER4, PEER6]));
        let vips: Vec<IpAddr> = VIPS
            .iter()
            .map(|v| v.parse::<SocketAddr>().unwrap().ip())
            .collect();
        let resources = [
            workload_resource(pod("client", &[POD4, POD6])),
            workload_resource(server),
            service_resource(service("server", &vips)),
        ];
        self.plane.discovery.set(api::ADDRESS, resources);
    }

    /// Starts the proxy without waiting for it.
    pub fn start_proxy(&mut self, environment: &[(&str, &str)]) {
        self.start_proxy_by(environment, TestNode::start_controlled_proxy);
    }

    /// Starts the proxy without waiting for it, with other contents of its `/etc/hosts`.
    pub fn start_proxy_with_hosts(&mut self, environment: &[(&str, &str)], hosts: &str) {
        self.start_proxy_by(environment, |node, environment| {
            node.start_controlled_proxy_with_hosts(environment, hosts)
        });
    }

    fn start_proxy_by(
        &mut self,
        environment: &[(&str, &str)],
        start: impl FnOnce(&mut TestNode, &[(&str, &str)]) -> u32,
    ) {
        let root = self.plane.root_file().to_str().unwrap().to_owned();
        let (token, address) = (self.node.file("token"), format!("https://{ADDRESS}"));
        let mut all = vec![
            ("XDS_ADDRESS", address.as_str()),
            ("CA_ADDRESS", address.as_str()),
            ("XDS_ROOT_CA", root.as_str()),
            ("CA_ROOT_CA", root.as_str()),
            ("ALT_XDS_HOSTNAME", NAME),
            ("ALT_CA_HOSTNAME", NAME),
            ("AUTH_TOKEN", token.to_str().unwrap()),
            ("POD_NAME", "ztunnel-abcde"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.200.0.11"),
            ("ISTIO_META_DNS_CAPTURE", "false"),
        ];
        all.extend(environment);
        self.proxy = start(&mut self.node, &all);
    }

    /// Waits until the proxy is ready.
    pub fn await_ready(&self) {
        until("the proxy is ready", || {
            self.readiness().ok().filter(|(status, _)| *status == 200)
        });
    }

    /// The proxy's readiness: status and body.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub fn readiness(&self) -> io::Result<(u16, String)> {
        self.node.get("127.0.0.1:15021", "/healthz/ready")
    }

    /// Enrols a pod by a CNI ADD.
    pub fn enrol(&self, name: &str) {
        let output = self.try_enrol(name);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    /// Runs a CNI ADD that may fail.
    pub fn try_enrol(&self, name: &str) -> std::process::Output {
        self.call("ADD", name).run()
    }

    /// Removes a pod by a CNI DEL.
    pub fn remove(&self, name: &str) {
        assert!(self.call("DEL", name).run().status.success());
    }

    fn call(&self, verb: &str, name: &str) -> Call {
        let (netns, addresses) = match name {
            "client" => (&self.wire.pod, ["10.78.0.1/24", "fd78::1/64"]),
            _ => (&self.wire.peer, ["10.78.0.2/24", "fd78::2/64"]),
        };
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"
        );
        let id: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        Call::new(
            verb,
            &path_of(netns),
            &config(&self.node.agent_socket(), &addresses),
        )
        .with("CNI_ARGS", Some(&args))
        .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")))
    }

    /// The proxy's `/status`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.node.get("127.0.0.1:15000", "/status").unwrap().1).unwrap()
    }

    /// `controlPlane` in the proxy's `/status`.
    pub fn plane_status(&self) -> Value {
        self.status()["controlPlane"].clone()
    }

    /// Waits until `controlPlane` satisfies a condition.
    #[track_caller]
    pub fn await_plane(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = crate::sandbox::eventually(|| {
            last = self.plane_status();
            holds(&last).then_some(())
        });
        assert!(
            found.is_some(),
            "not within the deadline: {what}; the status is {last}"
        );
        last
    }

    /// Waits until the proxy is connected, and has received everything on this connection.
    #[track_caller]
    pub fn await_sync(&self) -> Value {
        self.await_plane("the proxy is in sync", is_in_sync)
    }

    /// Waits until the proxy is in sync and has this many addresses.
    #[track_caller]
    pub fn await_addresses(&self, addresses: usize) -> Value {
        self.await_plane("the proxy has the addresses", |p| {
            is_in_sync(p) && p["addresses"] == addresses
        })
    }

    /// Waits until the proxy is not connected and keeps the state that it has received.
    #[track_caller]
    pub fn await_disconnected(&self, addresses: usize) -> Value {
        self.await_plane("the proxy is disconnected", |p| {
            p["connected"] == false && p["stateAgeS"].is_u64() && p["addresses"] == addresses
        })
    }

    /// Waits until the proxy is connected, and has not received these types on this connection.
    #[track_caller]
    pub fn await_awaited(&self, types: &[&str]) -> Value {
        self.await_plane("the proxy awaits some types", |p| {
            p["connected"] == true && p["awaited"] == json!(types)
        })
    }

    /// Waits for a line of the proxy's log that contains all of these parts.
    #[track_caller]
    pub fn log_with(&self, words: &[&str]) -> String {
        until(&format!("a line with {words:?} in the proxy's log"), || {
            let log = self.node.log("proxy");
            log.lines()
                .find(|l| words.iter().all(|w| l.contains(w)))
                .map(str::to_owned)
        })
    }

    /// The addresses of the server: its own and the service's, in both families.
    pub fn destinations() -> Vec<SocketAddr> {
        let pods = [PEER4, PEER6].map(|ip| SocketAddr::new(ip, 8080));
        pods.into_iter()
            .chain(VIPS.map(|v| v.parse().unwrap()))
            .collect()
    }

    /// Connects from the client to the server and exchanges a line.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn try_exchange(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = connect(&self.wire.pod, to)?;
        let seen = read_line(&mut stream)?;
        let own = if to.is_ipv6() { POD6 } else { POD4 };
        assert_eq!(seen, own.to_string(), "the client address that {to} sees");
        echo(&mut stream)?;
        Ok(stream)
    }

    /// Exchanges a line with each of the server's addresses, on new connections.
    #[track_caller]
    pub fn exchange_with_all(&self) {
        for to in Self::destinations() {
            self.try_exchange(to)
                .unwrap_or_else(|e| panic!("{to}: {e}"));
        }
    }

    /// Waits until a new connection is refused.
    #[track_caller]
    pub fn await_refused(&self, to: SocketAddr) {
        until("a connection is refused", || {
            self.try_exchange(to).is_err().then_some(())
        });
    }

    /// Resident memory of the proxy, in MiB.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy)).unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim()
            .trim_end_matches(" kB")
            .parse::<usize>()
            .unwrap()
            / 1024
    }

    /// Exchanges lines on new connections until `done`; returns the longest exchange.
    pub fn exchange_until(&self, mut done: impl FnMut() -> bool) -> Duration {
        let mut slowest = Duration::ZERO;
        let mut open = self.try_exchange(Self::destinations()[0]).unwrap();
        while !done() {
            let began = Instant::now();
            echo(&mut open).unwrap();
            self.try_exchange(Self::destinations()[2]).unwrap();
            slowest = slowest.max(began.elapsed());
        }
        slowest
    }
}

/// Whether a proxy is connected and has received every type on this connection, by `controlPlane`
/// in its status.
pub fn is_in_sync(plane: &Value) -> bool {
    plane["connected"] == true && plane["awaited"] == json!([])
}

/// Sends a line and reads it back.
///
/// # Errors
/// Those of the connection.
pub fn echo(stream: &mut TcpStream) -> io::Result<()> {
    writeln!(stream, "hello")?;
    let back = read_line(stream)?;
    assert_eq!(back, "hello");
    Ok(())
}
