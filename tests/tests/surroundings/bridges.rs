//! Bridges and containers within a pod, ports that it publishes for them, and what it forwards for
//! them.

use std::net::{SocketAddr, UdpSocket};

use netns::NetNs;
use redirect::{
    CaptureKind, Exceptions, Exclusions, Plan, find_bypasses, join as join_mesh, repair,
};
use underpass_tests::arrivals::{ArrivalPoint, ProxyListeners};
use underpass_tests::capture_setup::{CaptureSetup, assert_arrives, at};
use underpass_tests::iptables::run;
use underpass_tests::listener::{accept, connect, connect_briefly, plain, talk};
use underpass_tests::node;
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, POD4, POD6, Wire, join};

use super::{CAPTURES, differences, enrolled, follow, ip, sysctl};

/// Adds a bridge with two containers to a pod, with addresses of both families; returns their
/// namespaces.
fn add_bridge(pod: &NetNs, bridge: &str) -> [NetNs; 2] {
    ip(pod, &format!("link add {bridge} type bridge"));
    sysctl(pod, &format!("ipv6/conf/{bridge}/accept_dad"), "0");
    ip(pod, &format!("link set {bridge} up"));
    ip(pod, &format!("address add 172.17.0.1/16 dev {bridge}"));
    ip(pod, &format!("address add fd17::1/64 dev {bridge}"));
    [2, 3].map(|host| {
        let container = NetNs::create().unwrap();
        let port = format!("veth{host}");
        join(pod, &port, &container, "eth0");
        ip(pod, &format!("link set {port} master {bridge}"));
        ip(pod, &format!("link set {port} up"));
        sysctl(&container, "ipv6/conf/eth0/accept_dad", "0");
        ip(&container, "link set eth0 up");
        ip(
            &container,
            &format!("address add 172.17.0.{host}/16 dev eth0"),
        );
        ip(&container, &format!("address add fd17::{host}/64 dev eth0"));
        ip(&container, "route add default via 172.17.0.1");
        let v6: SocketAddr = format!("[fd17::{host}]:0").parse().unwrap();
        until("the address is usable", || {
            container.run(|| UdpSocket::bind(v6).ok()).unwrap()
        });
        container
    })
}

#[test]
fn containers_of_one_bridge_in_a_pod_talk_with_br_netfilter_on_and_off() {
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        return underpass_tests::skip::skip("the kernel has no br_netfilter");
    }
    for capture in CaptureKind::ALL {
        for (filtered, rerouted) in [
            ("0", None),
            ("1", None),
            ("1", Some("docker0")),
            ("1", Some("dock*")),
        ] {
            let wire = Wire::new();
            let [one, other] = add_bridge(&wire.pod, "docker0");
            for of in ["iptables", "ip6tables"] {
                sysctl(&wire.pod, &format!("bridge/bridge-nf-call-{of}"), filtered);
            }
            let _proxy = ProxyListeners::new(&wire.pod);
            let plan = Plan {
                capture,
                reroute_interfaces: rerouted.iter().map(|r| r.parse().unwrap()).collect(),
                ..Plan::for_pod([POD4, POD6])
            };
            wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
            assert_eq!(differences(&wire, &plan), []);
            for to in ["172.17.0.3:80", "[fd17::3]:80"] {
                let to: SocketAddr = to.parse().unwrap();
                let server = plain(&other, to);
                let what = format!("{capture}, bridge-nf-call-iptables {filtered}, {rerouted:?}");
                let mut client = connect(&one, to).unwrap_or_else(|e| panic!("{what}: {to}: {e}"));
                talk(&mut client, &mut accept(&server).unwrap().0);
            }
        }
    }
}

/// Publishes port 8080 of a container with this address in a pod, as Docker and podman do.
fn publish(s: &CaptureSetup, to: SocketAddr) {
    let (program, loopback) = match s.v6 {
        false => ("iptables-nft", "127.0.0.0/8"),
        true => ("ip6tables-nft", "::1/128"),
    };
    for rule in [
        "-N DOCKER".to_owned(),
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        format!("-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER"),
        format!("-A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination {to}"),
    ] {
        run(&s.wire.pod, program, &format!("-t nat {rule}"), "");
    }
}

/// The pod's own translation moves a connection to another address, where it would neither be
/// captured nor known.
#[test]
fn a_port_that_a_pod_publishes_for_a_container_is_named_and_never_reached_past_the_proxy() {
    for capture in CAPTURES {
        for v6 in [false, true] {
            for is_later in [false, true] {
                assert_not_reached_past_the_proxy(capture, v6, is_later);
            }
        }
    }
}

fn assert_not_reached_past_the_proxy(capture: CaptureKind, v6: bool, is_later: bool) {
    let what = format!("{capture}, IPv6 {v6}, published after the join {is_later}");
    let s = CaptureSetup::new(capture, v6);
    let (pod, peer) = (&s.wire.pod, &s.wire.peer);
    let [container, _] = add_bridge(pod, "docker0");
    ip(&container, "-6 route add default via fd17::1");
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        sysctl(pod, name, "1");
    }
    let inside = at(s.address("172.17.0.2", "fd17::2"), 80);
    let (published, direct) = (at(s.pod(), 8080), plain(&container, inside));
    let mut open = None;
    if !is_later {
        publish(&s, inside);
        let client = connect(peer, published).unwrap();
        open = Some((client, accept(&direct).unwrap().0));
    }
    let proxy = ProxyListeners::new(pod);
    let plan = s.plan();
    pod.run(|| join_mesh(&plan)).unwrap().unwrap();
    if is_later {
        publish(&s, inside);
    }
    assert_eq!(differences(&s.wire, &plan), [], "{what}");
    let found = pod.run(|| find_bypasses(&plan)).unwrap().unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    for chain in ["PREROUTING", "OUTPUT"] {
        let family = if v6 { "ip6" } else { "ip" };
        let name = format!("chain {chain} of nf_tables table {family} nat");
        let is_named = |b: &String| b.starts_with(&name) && b.ends_with("redirects port 8080");
        assert!(found.iter().any(is_named), "{what}: {found:?}");
    }
    // What was open before continues.
    if let Some((client, served)) = &mut open {
        talk(client, served);
    }
    // Everything else is captured.
    let (app, server) = (s.app(8081), s.server(80));
    let inbound = ArrivalPoint::Inbound;
    assert_arrives(&s, peer, at(s.pod(), 8081), &proxy, &app, inbound);
    let outbound = ArrivalPoint::Outbound;
    assert_arrives(&s, pod, at(s.peer(), 80), &proxy, &server, outbound);
    // The container is never reached past the proxy.
    match capture {
        CaptureKind::Routed => {
            let refused = connect_briefly(peer, published);
            assert!(refused.is_err(), "{what}");
        }
        _ => drop(assert_arrives(
            &s, peer, published, &proxy, &direct, inbound,
        )),
    }
    direct.set_nonblocking(true).unwrap();
    let kind = direct.accept().map(drop).map_err(|e| e.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::WouldBlock), "{what}");
    // Except if the port is excluded.
    let exclude = Exclusions {
        inbound_ports: [8080].into(),
        ..Exclusions::default()
    };
    let plan = Plan { exclude, ..plan };
    let repaired = pod.run(|| repair(&plan, &Exceptions::new()));
    repaired.unwrap().unwrap();
    direct.set_nonblocking(false).unwrap();
    let mut client = connect(peer, published).unwrap();
    talk(&mut client, &mut accept(&direct).unwrap().0);
}

#[test]
fn a_pattern_reroutes_bridges_that_are_added_later() {
    let s = CaptureSetup::new(CaptureKind::Routed, false);
    let plan = Plan {
        reroute_interfaces: ["br-*".parse().unwrap()].into(),
        ..s.plan()
    };
    let proxy = ProxyListeners::new(&s.wire.pod);
    s.apply(&plan);
    let [container, _] = add_bridge(&s.wire.pod, "br-0123456789ab");
    sysctl(&s.wire.pod, "ipv4/ip_forward", "1");
    sysctl(&s.wire.pod, "bridge/bridge-nf-call-iptables", "0");
    ip(&s.wire.peer, &format!("route add 172.17.0.0/16 via {POD4}"));
    follow(&s.wire, &plan);
    let to = at(PEER4, 80);
    let server = plain(&s.wire.peer, to);
    assert_arrives(&s, &container, to, &proxy, &server, ArrivalPoint::Outbound);
}

/// Their own addresses mean nothing outside of the pod.
#[test]
fn servers_see_containers_behind_a_rerouted_interface_as_their_pod() {
    let annotated = r#"fd78::1"], annotations: { istio.io/reroute-virtual-interfaces: docker0 } }"#;
    let mesh = node::MESH.replacen(r#"fd78::1"] }"#, annotated, 1);
    for capture in CAPTURES {
        let wire = Wire::new();
        let [container, _] = add_bridge(&wire.pod, "docker0");
        sysctl(&wire.pod, "ipv4/ip_forward", "1");
        sysctl(&wire.pod, "bridge/bridge-nf-call-iptables", "0");
        let _node = enrolled(&format!("rerouted-{capture}"), capture, &mesh, &wire);
        let server = plain(&wire.peer, at(PEER4, 80));
        let mut client = connect(&container, at(PEER4, 80)).unwrap();
        let (mut served, from) = accept(&server).unwrap();
        assert_eq!(from.ip(), POD4, "{capture}");
        talk(&mut client, &mut served);
    }
}
