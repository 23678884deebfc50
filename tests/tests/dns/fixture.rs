//! A pod whose DNS is captured, and its name server.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::Message;
use netns::NetNs;
use netns::seqpacket::SeqPacket;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::{install_istio_dns_rules, install_istio_rules};
use underpass_tests::istio_agent::{ACK, IstioAgent, add_workload, request, snapshot_sent};
use underpass_tests::name_server::{NameServer, ask_tcp, ask_udp};
use underpass_tests::node::TestNode;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

pub const MESH: &str = r#"
namespaces:
  [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: other }, { name: com }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: peer, namespace: other, workloadIps: [10.78.0.2, "fd78::2"],
      services: { other/db.other.svc.cluster.local: {} } }
services:
  - { name: web, namespace: default, vips: [/10.96.0.10, "/fd96::10"], ports: { 80: 8080 } }
  - { name: four, namespace: other, vips: [/10.96.0.11], ports: { 80: 8080 } }
  - { name: git, namespace: com, vips: [/10.96.0.12], ports: { 80: 8080 } }
  - { name: db, namespace: other }
  - { name: many, namespace: other }
"#;

/// [`MESH`] and a service with more addresses than fit into a UDP message.
pub fn mesh() -> String {
    let many = (0..60).map(|i| {
        format!(
            "  - {{ name: many-{i}, namespace: other, workloadIps: [10.79.0.{i}], services: {{ \
             other/many.other.svc.cluster.local: {{}} }} }}\n"
        )
    });
    MESH.replace(
        "services:\n  - { name: web",
        &(many.collect::<String>() + "services:\n  - { name: web"),
    )
}

/// The pod's name servers.
pub fn servers() -> [SocketAddr; 2] {
    [PEER4, PEER6].map(|ip| SocketAddr::new(ip, 53))
}

/// A pod whose DNS is captured, and a name server outside the mesh.
pub struct Setup {
    pub node: TestNode,
    pub wire: Wire,
    pub server: NameServer,
    pub nat: bool,
    /// The connection of Istio's agent, if it is used.
    pub agent: Option<SeqPacket>,
}

impl Setup {
    pub fn pod(&self) -> &NetNs {
        &self.wire.pod
    }

    /// The source address of forwarded queries. Over UDP under NAT, only the configured name server
    /// is queried.
    pub fn query_source(&self, server: SocketAddr, udp: bool) -> IpAddr {
        if server.is_ipv4() || udp && self.nat {
            POD4
        } else {
            POD6
        }
    }
}

/// A pod under the built agent, with one of its captures.
pub fn under_agent(name: &str, capture: &str) -> Setup {
    let (mut node, wire) = (TestNode::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    node.start_agent_with(&[
        "--capture".as_ref(),
        capture.as_ref(),
        "--dns-capture".as_ref(),
    ]);
    node.start_ready_proxy_with(&[
        ("RUST_LOG", "info,dns=debug"),
        ("UNDERPASS_DNS_UPSTREAM", "10.78.0.2"),
    ]);
    let add = Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]),
    );
    assert!(add.run().status.success());
    Setup {
        node,
        wire,
        server,
        nat: capture != "routed",
        agent: None,
    }
}

pub fn under_routed(name: &str) -> Setup {
    under_agent(name, "routed")
}

pub fn under_istio_agent(name: &str) -> Setup {
    under_istio_agent_with(name, "10.78.0.2")
}

/// The same with these name servers for queries over UDP.
pub fn under_istio_agent_with(name: &str, upstreams: &str) -> Setup {
    let (mut node, wire) = (TestNode::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    let agent = IstioAgent::listen(&node);
    node.start_proxy_with(&[
        ("RUST_LOG", "info,dns=debug"),
        ("UNDERPASS_DNS_UPSTREAM", upstreams),
    ]);
    let agent = agent.accept();
    install_istio_rules(&wire.pod);
    install_istio_dns_rules(&wire.pod);
    assert_eq!(
        request(&agent, &add_workload("uid-1", "client"), Some(&wire.pod)),
        ACK
    );
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    Setup {
        node,
        wire,
        server,
        nat: true,
        agent: Some(agent),
    }
}

/// Runs a test under both captures of the built agent, and under Istio's agent and rules.
pub fn under_all(name: &str, test: impl Fn(&mut Setup)) {
    test(&mut under_routed(&format!("{name}-routed")));
    test(&mut under_agent(&format!("{name}-nat"), "nat"));
    test(&mut under_istio_agent(&format!("{name}-istio")));
}

pub type Ask = fn(&NetNs, SocketAddr, &Message) -> std::io::Result<Message>;

pub const BOTH: [(&str, Ask); 2] = [("udp", ask_udp), ("tcp", ask_tcp)];
