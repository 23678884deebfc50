//! One node under a control plane: two pods that are joined by a wire, an agent, and a proxy that serves both.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::resources::{endpoint, pod, service, service_resource, workload_resource};
use super::{ControlPlane, NAME};
use crate::cni::{Call, config, path_of};
use crate::node::Node;
use crate::sandbox::{connect, read_line, serve_echo, until};
use crate::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// What the agent knows: who is in the mesh.
const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: server, namespace: default, serviceAccount: server, node: node, workloadIps: [10.78.0.2, "fd78::2"] }
"#;

/// Where the control plane listens, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:15012";
/// The addresses of the service that has the server as its endpoint.
pub const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd96::10]:80"];

/// A node under a control plane.
#[derive(Debug)]
pub struct Scene {
    /// The control plane.
    pub plane: ControlPlane,
    /// Agent and proxy.
    pub node: Node,
    /// `pod` is the client, `peer` the server.
    pub wire: Wire,
    /// The proxy's process id.
    pub proxy: u32,
}

impl Scene {
    /// Both pods are enrolled and known to the mesh, and the server echoes.
    pub fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// The same, with more in the environment of the proxy.
    pub fn with(name: &str, environment: &[(&str, &str)]) -> Self {
        let mut scene = Self::unready(name);
        scene.know_pods();
        scene.start_proxy(environment);
        scene.ready();
        scene.enrol("client");
        scene.enrol("server");
        scene
    }

    /// Only the agent and the control plane run, which knows nothing.
    pub fn unready(name: &str) -> Self {
        let (mut node, wire) = (Node::new(name, MESH), Wire::new());
        let plane = ControlPlane::start(&node.netns, ADDRESS.parse().unwrap(), &node.file(""));
        std::fs::write(node.file("token"), "the-first-token").unwrap();
        node.start_agent();
        serve_echo(&wire.peer, 8080);
        Self { plane, node, wire, proxy: 0 }
    }

    /// Tells the mesh of both pods and the service.
    pub fn know_pods(&self) {
        let server = endpoint(pod("server", &[PEER4, PEER6]));
        let vips: Vec<IpAddr> = VIPS.iter().map(|v| v.parse::<SocketAddr>().unwrap().ip()).collect();
        let resources = [
            workload_resource(pod("client", &[POD4, POD6])),
            workload_resource(server),
            service_resource(service("server", &vips)),
        ];
        self.plane.discovery.set(api::ADDRESS, resources);
    }

    /// Starts the proxy, without waiting for anything.
    pub fn start_proxy(&mut self, environment: &[(&str, &str)]) {
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
        self.proxy = self.node.start_controlled_proxy(&all);
    }

    /// Waits until the proxy is ready.
    pub fn ready(&self) {
        until("the proxy is ready", || self.readiness().ok().filter(|(status, _)| *status == 200));
    }

    /// What the proxy says of its readiness.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readiness(&self) -> io::Result<(u16, String)> {
        self.node.get("127.0.0.1:15021", "/healthz/ready")
    }

    /// Joins a pod to the mesh by a CNI ADD.
    pub fn enrol(&self, name: &str) {
        let output = self.try_enrol(name);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// The same, which may fail.
    pub fn try_enrol(&self, name: &str) -> std::process::Output {
        self.call("ADD", name).run()
    }

    /// The pod leaves.
    pub fn remove(&self, name: &str) {
        assert!(self.call("DEL", name).run().status.success());
    }

    fn call(&self, verb: &str, name: &str) -> Call {
        let (netns, addresses) = match name {
            "client" => (&self.wire.pod, ["10.78.0.1/24", "fd78::1/64"]),
            _ => (&self.wire.peer, ["10.78.0.2/24", "fd78::2/64"]),
        };
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}");
        let id: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        Call::new(verb, &path_of(netns), &config(&self.node.agent_socket(), &addresses))
            .with("CNI_ARGS", Some(&args))
            .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")))
    }

    /// What the proxy says of itself.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.node.get("127.0.0.1:15000", "/status").unwrap().1).unwrap()
    }

    /// How it says that it stands with the control plane.
    pub fn line(&self) -> String {
        self.status()["controlPlane"]["line"].as_str().unwrap().to_owned()
    }

    /// Waits until it says something with all of these words.
    #[track_caller]
    pub fn line_with(&self, words: &[&str]) -> String {
        let mut last = String::new();
        let found = crate::sandbox::happens(|| {
            last = self.line();
            words.iter().all(|w| last.contains(w)).then_some(())
        });
        assert!(found.is_some(), "the status says {last:?}, not {words:?}");
        last
    }

    /// Waits for a line with all of these words in the proxy's log.
    #[track_caller]
    pub fn log_with(&self, words: &[&str]) -> String {
        until(&format!("a line with {words:?} in the proxy's log"), || {
            let log = self.node.log("proxy");
            log.lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned)
        })
    }

    /// Where the server listens: by pod and by service, over both families.
    pub fn destinations() -> Vec<SocketAddr> {
        let pods = [PEER4, PEER6].map(|ip| SocketAddr::new(ip, 8080));
        pods.into_iter().chain(VIPS.map(|v| v.parse().unwrap())).collect()
    }

    /// The client connects to the server and is answered.
    ///
    /// # Errors
    /// When it is not.
    pub fn try_talk(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = connect(&self.wire.pod, to)?;
        let seen = read_line(&mut stream)?;
        let own = if to.is_ipv6() { POD6 } else { POD4 };
        assert_eq!(seen, own.to_string(), "whom {to} sees");
        say(&mut stream)?;
        Ok(stream)
    }

    /// The client is answered everywhere, on new connections.
    #[track_caller]
    pub fn talk(&self) {
        for to in Self::destinations() {
            self.try_talk(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        }
    }

    /// Waits until a new connection is refused.
    #[track_caller]
    pub fn refused(&self, to: SocketAddr) {
        until("a connection is refused", || self.try_talk(to).is_err().then_some(()));
    }

    /// Memory of the proxy, in MiB.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy)).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    }

    /// Talks on one connection after the other until `done`, and returns the slowest answer.
    pub fn talk_until(&self, mut done: impl FnMut() -> bool) -> Duration {
        let mut slowest = Duration::ZERO;
        let mut open = self.try_talk(Self::destinations()[0]).unwrap();
        while !done() {
            let began = Instant::now();
            say(&mut open).unwrap();
            self.try_talk(Self::destinations()[2]).unwrap();
            slowest = slowest.max(began.elapsed());
        }
        slowest
    }
}

/// A word there and back.
///
/// # Errors
/// When it does not come back.
pub fn say(stream: &mut TcpStream) -> io::Result<()> {
    writeln!(stream, "hello")?;
    let back = read_line(stream)?;
    assert_eq!(back, "hello");
    Ok(())
}
