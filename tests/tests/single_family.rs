//! Pods with addresses of a single family, with the other family disabled or unused.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};

use netns::NetNs;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// Two pods of a node, each with one address.
struct SingleFamilyPods {
    node: TestNode,
    wire: Wire,
    addresses: [IpAddr; 2],
}

impl SingleFamilyPods {
    fn new(name: &str, capture: &str, addresses: [IpAddr; 2], prepare: impl Fn(&NetNs)) -> Self {
        let [client, server] = addresses;
        let mesh = format!(
            "namespaces: [{{ name: default, labels: {{ istio.io/dataplane-mode: ambient }} }}]
workloads:
  - {{ name: client, namespace: default, serviceAccount: client, node: node, workloadIps: \
             [\"{client}\"] }}
  - {{ name: server, namespace: default, serviceAccount: server, node: node, workloadIps: \
             [\"{server}\"] }}
"
        );
        let (mut node, wire) = (TestNode::new(name, &mesh), Wire::new());
        for netns in [&wire.pod, &wire.peer] {
            prepare(netns);
        }
        node.start_agent_with(&[OsStr::new("--capture"), OsStr::new(capture)]);
        node.start_ready_proxy();
        serve_echo(&wire.peer, 8080);
        let pods = Self {
            node,
            wire,
            addresses,
        };
        pods.enrol("client", &pods.wire.pod, client);
        pods.enrol("server", &pods.wire.peer, server);
        pods
    }

    fn enrol(&self, name: &str, netns: &NetNs, address: IpAddr) {
        let length = if address.is_ipv4() { 24 } else { 64 };
        let config = config(&self.node.agent_socket(), &[&format!("{address}/{length}")]);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"
        );
        let id: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        let call = Call::new("ADD", &path_of(netns), &config).with("CNI_ARGS", Some(&args));
        let added = call
            .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")))
            .run();
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stdout)
        );
    }

    /// Asserts that the pods communicate through a tunnel, and that both are verified.
    fn assert_tunnel(&self) {
        let [client, server] = self.addresses;
        let mut stream = connect(&self.wire.pod, SocketAddr::new(server, 8080)).unwrap();
        assert_eq!(read_line(&mut stream).unwrap(), client.to_string());
        drop(stream);
        let authority = format!("dst.hbone_addr={}", SocketAddr::new(server, 8080));
        for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
            until("the tunnel is logged", || {
                let log = self.node.log("proxy");
                log.lines()
                    .any(|l| l.contains(direction) && l.contains(&authority))
                    .then_some(())
            });
        }
        until("both are verified", || {
            (self.node.verified_pods() == 2).then_some(())
        });
    }
}

/// Disables IPv6 with sysctls, as a node or pod would before any plugin is called.
fn disable_ipv6(netns: &NetNs) {
    let off = |of: &str| {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"), "1").unwrap()
    };
    netns
        .run(|| ["all", "default", "lo", "eth0"].into_iter().for_each(off))
        .unwrap();
}

fn remove_ipv4_address(netns: &NetNs) {
    let ip = if netns
        .run(|| std::net::UdpSocket::bind((POD4, 0)).is_ok())
        .unwrap()
    {
        POD4
    } else {
        PEER4
    };
    underpass_tests::iptables::run(
        netns,
        "ip",
        "-batch -",
        &format!("address del {ip}/24 dev eth0\n"),
    );
}

#[test]
fn ipv4_only_pods_join_and_communicate() {
    for capture in ["routed", "nat"] {
        SingleFamilyPods::new(
            &format!("no-ipv6-{capture}"),
            capture,
            [POD4, PEER4],
            disable_ipv6,
        )
        .assert_tunnel();
    }
}

#[test]
fn ipv6_only_pods_join_and_communicate() {
    for capture in ["routed", "nat"] {
        SingleFamilyPods::new(
            &format!("only-ipv6-{capture}"),
            capture,
            [POD6, PEER6],
            remove_ipv4_address,
        )
        .assert_tunnel();
    }
}
