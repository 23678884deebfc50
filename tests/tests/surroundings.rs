//! Addresses, interfaces, routes and ip rules that other processes add to a pod, before or after it
//! joins: their traffic is captured or left alone, and they are unchanged after the pod has left.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use netns::NetNs;
use redirect::{
    CaptureKind, Exceptions, Exclusions, Plan, diff, find_bypasses, join as join_mesh, leave,
    read_back, repair,
};
use socket2::{Domain, Socket, Type};
use underpass_tests::arrivals::{ArrivalPoint, ProxyListeners, carries_both_ways};
use underpass_tests::capture_setup::{CaptureSetup, assert_arrives, at};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::run;
use underpass_tests::listener::{accept, connect, connect_briefly, connect_marked, plain, talk};
use underpass_tests::node::{self, TestNode};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::wire::{PEER4, POD4, POD6, Wire, join};

const CAPTURES: [CaptureKind; 2] = [CaptureKind::Routed, CaptureKind::Nat];

fn ip(netns: &NetNs, args: &str) {
    run(netns, "ip", args, "");
}

/// What `ip` prints.
fn ip_shows(netns: &NetNs, args: &str) -> String {
    let mut command = Command::new("ip");
    netns::process::in_netns(&mut command, netns).unwrap();
    let output = command.args(args.split(' ')).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn sysctl(netns: &NetNs, name: &str, value: &str) {
    let written = netns.run(|| std::fs::write(format!("/proc/sys/net/{name}"), value));
    written.unwrap().unwrap();
}

fn differences(wire: &Wire, plan: &Plan) -> Vec<redirect::Difference> {
    diff(plan, &wire.pod.run(read_back).unwrap().unwrap())
}

/// Repairs a pod whose surroundings have changed.
fn follow(wire: &Wire, plan: &Plan) {
    assert_ne!(differences(wire, plan), [], "the change is noticed");
    wire.pod
        .run(|| repair(plan, &Exceptions::new()))
        .unwrap()
        .unwrap();
    assert_eq!(differences(wire, plan), []);
}

/// Adds an interface for IPv4 egress to a pod, as networks of IPv6 clusters do, and returns the
/// namespace at its other end, which has 198.51.100.1.
fn add_egress(pod: &NetNs) -> NetNs {
    let outside = NetNs::create().unwrap();
    join(pod, "v4if0", &outside, "eth0");
    for (netns, link, address) in [
        (pod, "v4if0", "169.254.172.2/22"),
        (&outside, "eth0", "169.254.172.1/22"),
        (&outside, "lo", "198.51.100.1/32"),
    ] {
        ip(netns, &format!("link set {link} up"));
        ip(netns, &format!("address add {address} dev {link}"));
    }
    ip(pod, "route add default via 169.254.172.1");
    outside
}

const BEYOND: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 80);

#[test]
fn an_egress_interface_of_the_other_family_is_captured() {
    for capture in CAPTURES {
        for is_later in [false, true] {
            let s = CaptureSetup::new(capture, false);
            ip(&s.wire.pod, &format!("address del {POD4}/24 dev eth0"));
            let plan = Plan {
                capture,
                ..Plan::for_pod([POD6])
            };
            let mut outside = (!is_later).then(|| add_egress(&s.wire.pod));
            let proxy = ProxyListeners::new(&s.wire.pod);
            s.apply(&plan);
            if is_later {
                outside = Some(add_egress(&s.wire.pod));
                follow(&s.wire, &plan);
            }
            let server = plain(outside.as_ref().unwrap(), BEYOND);
            let (from, outbound) = (&s.wire.pod, ArrivalPoint::Outbound);
            let arrived = assert_arrives(&s, from, BEYOND, &proxy, &server, outbound);
            let client: IpAddr = "169.254.172.2".parse().unwrap();
            assert_eq!(arrived.client.ip(), client, "{capture}");
            drop(arrived);
            // The interface is removed again.
            ip(&s.wire.pod, "link del v4if0");
            follow(&s.wire, &plan);
            s.wire
                .pod
                .run(|| leave(&plan, &Exceptions::new(), false))
                .unwrap()
                .unwrap();
            assert!(s.wire.pod.run(read_back).unwrap().unwrap().is_empty());
        }
    }
}

#[test]
fn a_pod_with_ipv6_addresses_reaches_ipv4_through_the_proxy() {
    let mesh = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: ["fd78::1"] }
"#;
    for capture in CAPTURES {
        for is_later in [false, true] {
            let name = format!("egress-{capture}-{is_later}");
            let (mut node, wire) = (TestNode::new(&name, mesh), Wire::new());
            ip(&wire.pod, &format!("address del {POD4}/24 dev eth0"));
            let mut outside = (!is_later).then(|| add_egress(&wire.pod));
            node.start_agent_with(&["--capture", capture.name()].map(OsStr::new));
            node.start_ready_proxy();
            let config = config(&node.agent_socket(), &["fd78::1/64"]);
            let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
            assert!(added.status.success());
            until("the pod is verified", || {
                (node.verified_pods() == 1).then_some(())
            });
            if is_later {
                outside = Some(add_egress(&wire.pod));
            }
            let server = plain(outside.as_ref().unwrap(), BEYOND);
            let mut client = until("the egress is captured", || connect(&wire.pod, BEYOND).ok());
            let (mut served, from) = accept(&server).unwrap();
            talk(&mut client, &mut served);
            assert_eq!(from.ip().to_string(), "169.254.172.2");
            until("the proxy logs the connection", || {
                node.get("127.0.0.1:15000", "/config_dump")
                    .ok()
                    .is_some_and(|(_, dump)| dump.contains("198.51.100.1:80"))
                    .then_some(())
            });
            let pod = node.verify("client");
            assert_eq!(node.verified_pods(), 1, "{pod:?}");
            assert_eq!(pod.ips, [POD6], "the pod's addresses are the cluster's");
        }
    }
}

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

#[test]
fn a_routing_table_in_use_is_kept() {
    for capture in CAPTURES {
        let s = CaptureSetup::new(capture, false);
        let rules_before = ip_shows(&s.wire.pod, "rule");
        // As plugins for source-based routing add it, which count from 100.
        ip(
            &s.wire.pod,
            &format!("route add default via {PEER4} table 100"),
        );
        let routes_before = ip_shows(&s.wire.pod, "route show table 100");
        let proxy = s.enrol(|_| {});
        ip(
            &s.wire.pod,
            &format!("route add default via {PEER4} table 101"),
        );
        let (to, server) = (at(PEER4, 80), s.server(80));
        assert_arrives(&s, &s.wire.pod, to, &proxy, &server, ArrivalPoint::Outbound);
        assert_eq!(differences(&s.wire, &s.plan()), [], "{capture}");
        proxy.drop_pending();
        s.wire.pod.run(redirect::remove).unwrap().unwrap();
        let routes = ip_shows(&s.wire.pod, "route show table 100");
        assert_eq!(routes, routes_before, "{capture}");
        assert_eq!(ip_shows(&s.wire.pod, "rule"), rules_before, "{capture}");
    }
}

/// A pod with a second interface, net1, and the namespace at its other end; 198.51.100.1 and
/// 2001:db8::1 are beyond both interfaces.
struct Multihomed {
    s: CaptureSetup,
    other: NetNs,
}

impl Multihomed {
    fn new(capture: CaptureKind, v6: bool) -> Self {
        let (s, other) = (CaptureSetup::new(capture, v6), NetNs::create().unwrap());
        join(&s.wire.pod, "net1", &other, "eth0");
        let own = format!("{}/{}", Self::net1(v6), if v6 { 64 } else { 24 });
        let far = s.address("10.90.0.2", "fd90::2");
        for (netns, link, address) in [
            (&s.wire.pod, "net1", own),
            (
                &other,
                "eth0",
                format!("{far}/{}", if v6 { 64 } else { 24 }),
            ),
            (&other, "lo", Self::beyond(v6).to_string()),
            (&s.wire.peer, "lo", Self::beyond(v6).to_string()),
        ] {
            sysctl(netns, &format!("ipv6/conf/{link}/accept_dad"), "0");
            ip(netns, &format!("link set {link} up"));
            ip(netns, &format!("address add {address} dev {link}"));
        }
        let family = s.family_flag();
        ip(
            &s.wire.pod,
            &format!("{family} route add default via {}", s.peer()),
        );
        for (netns, address) in [(&s.wire.pod, Self::net1(v6)), (&other, far)] {
            until("the address is usable", || {
                netns.run(|| UdpSocket::bind(at(address, 0)).ok()).unwrap()
            });
        }
        Self { s, other }
    }

    fn net1(v6: bool) -> IpAddr {
        if v6 { "fd90::1" } else { "10.90.0.1" }.parse().unwrap()
    }

    fn beyond(v6: bool) -> IpAddr {
        if v6 { "2001:db8::1" } else { "198.51.100.1" }
            .parse()
            .unwrap()
    }

    /// Routes what has net1's address to net1, as Multus' SBR plugin does: its rules have no
    /// priority, so that they precede all others.
    fn route_by_source(&self) {
        let (family, own) = (self.s.family_flag(), Self::net1(self.s.v6));
        let far = self.s.address("10.90.0.2", "fd90::2");
        let pod = &self.s.wire.pod;
        ip(
            pod,
            &format!("{family} route add default via {far} dev net1 table 101"),
        );
        ip(pod, &format!("{family} rule add from {own} lookup 101"));
    }

    /// The rules of other programs.
    fn foreign_rules(&self) -> Vec<String> {
        let rules = ip_shows(&self.s.wire.pod, &format!("{} rule", self.s.family_flag()));
        let foreign = rules.lines().filter(|r| r.contains("101"));
        foreign.map(str::to_owned).collect()
    }

    /// Connects as an application that binds this address.
    fn connect_from(&self, from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
        let connected = self.s.wire.pod.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&at(from, 0).into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok(TcpStream::from(socket))
        });
        connected.unwrap()
    }

    /// Every path of captured packets and of the proxy's.
    fn assert_captured(&self, proxy: &ProxyListeners, what: &str) {
        let (s, v6) = (&self.s, self.s.v6);
        let (own, to) = (Self::net1(v6), at(Self::beyond(v6), 80));
        let [by_eth0, by_net1] = [&s.wire.peer, &self.other].map(|n| plain(n, to));
        for from in [own, s.pod()] {
            let mut client = self
                .connect_from(from, to)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let mut arrived = proxy.next(&[&by_eth0, &by_net1]).unwrap();
            assert_eq!(arrived.point, ArrivalPoint::Outbound, "{what}, from {from}");
            assert_eq!(
                (arrived.destination, arrived.client.ip()),
                (to, from),
                "{what}"
            );
            carries_both_ways(&mut client, &mut arrived.stream).unwrap();
        }
        // Without an address of its own, the application has that of the network it connects to.
        let near = at(s.address("10.90.0.2", "fd90::2"), 80);
        let mut client = connect(&s.wire.pod, near).unwrap();
        let mut arrived = proxy.next(&[]).unwrap();
        assert_eq!(
            (arrived.destination, arrived.client.ip()),
            (near, own),
            "{what}"
        );
        assert_eq!(client.local_addr().unwrap().ip(), own, "{what}");
        carries_both_ways(&mut client, &mut arrived.stream).unwrap();
        // The proxy's own connections take the way that the application's would have taken.
        for (from, server) in [(None, &by_eth0), (Some(own), &by_net1)] {
            let mut client = connect_marked(&s.wire.pod, from, to).unwrap();
            let (mut served, from) = accept(server).unwrap();
            assert_eq!(from.ip(), client.local_addr().unwrap().ip(), "{what}");
            talk(&mut client, &mut served);
        }
        // Clients beyond net1.
        let app = plain(&s.wire.pod, at(own, 8080));
        let mut client = connect(&self.other, at(own, 8080)).unwrap();
        let mut arrived = proxy.next(&[&app]).unwrap();
        assert_eq!(arrived.point, ArrivalPoint::Inbound, "{what}");
        carries_both_ways(&mut client, &mut arrived.stream).unwrap();
        let client = Self::beyond(v6);
        let mut of_proxy = connect_marked(&s.wire.pod, Some(client), at(own, 8080)).unwrap();
        let (mut served, from) = accept(&app).unwrap();
        assert_eq!(from.ip(), client, "{what}");
        talk(&mut of_proxy, &mut served);
        let plan = s.plan();
        let bypasses = s.wire.pod.run(|| find_bypasses(&plan)).unwrap().unwrap();
        assert_eq!(bypasses, [], "{what}");
    }
}

/// As in pods of Multus with the SBR plugin, and with several interfaces of a cloud.
#[test]
fn pods_with_source_based_routing_are_captured_on_every_interface() {
    for capture in CAPTURES {
        for v6 in [false, true] {
            for is_later in [false, true] {
                let what = format!("{capture}, IPv6 {v6}, after the join {is_later}");
                let pod = Multihomed::new(capture, v6);
                let (wire, plan) = (&pod.s.wire, pod.s.plan());
                let to = at(Multihomed::beyond(v6), 81);
                let mut open = None;
                if !is_later {
                    pod.route_by_source();
                    let server = plain(&pod.other, to);
                    let client = pod.connect_from(Multihomed::net1(v6), to).unwrap();
                    open = Some((client, accept(&server).unwrap().0));
                }
                let proxy = ProxyListeners::new(&wire.pod);
                let joined = wire.pod.run(|| join_mesh(&plan)).unwrap().unwrap();
                assert_eq!(differences(wire, &plan), [], "{what}");
                if is_later {
                    pod.route_by_source();
                    follow(wire, &plan);
                }
                let foreign = pod.foreign_rules();
                pod.assert_captured(&proxy, &what);
                // Two rules were there, or are added, as for another address.
                pod.s.ip(
                    &wire.pod,
                    &format!(
                        "{} rule add from {} lookup 101",
                        pod.s.family_flag(),
                        pod.s.peer()
                    ),
                );
                wire.pod
                    .run(|| repair(&plan, &joined.exempted))
                    .unwrap()
                    .unwrap();
                if let Some((client, served)) = &mut open {
                    talk(client, served);
                }
                pod.assert_captured(&proxy, &what);
                let after = pod.foreign_rules();
                assert_eq!(after.len(), foreign.len() + 1, "{what}: {after:?}");
                drop(proxy);
                wire.pod.run(redirect::remove).unwrap().unwrap();
                assert!(wire.pod.run(read_back).unwrap().unwrap().is_empty());
                assert_eq!(pod.foreign_rules(), after, "{what}");
                if let Some((client, served)) = &mut open {
                    talk(client, served);
                }
            }
        }
    }
}

/// Rules without a priority, of which the first have those that Underpass's would have.
#[test]
fn ip_rules_that_were_there_before_the_join_keep_their_priorities() {
    for capture in CAPTURES {
        let wire = Wire::new();
        for number in 101..110 {
            let table = format!("10.78.0.1 lookup {number}");
            ip(&wire.pod, &format!("rule add from {table}"));
            ip(
                &wire.pod,
                &format!("rule add fwmark {number} lookup {number}"),
            );
        }
        let before = ip_shows(&wire.pod, "rule");
        let plan = Plan {
            capture,
            ..Plan::for_pod([POD4, POD6])
        };
        wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        assert_eq!(differences(&wire, &plan), []);
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let during = lines(&ip_shows(&wire.pod, "rule"));
        assert!(
            lines(&before).iter().all(|rule| during.contains(rule)),
            "{during:?}"
        );
        wire.pod.run(redirect::remove).unwrap().unwrap();
        assert_eq!(ip_shows(&wire.pod, "rule"), before);
    }
}

/// Adds a pod to the mesh of a node with this capture, and waits until it is verified.
fn enrolled(name: &str, capture: CaptureKind, mesh: &str, wire: &Wire) -> TestNode {
    let mut node = TestNode::new(name, mesh);
    node.start_agent_with(&["--capture", capture.name()].map(OsStr::new));
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(added.status.success(), "{added:?}");
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    node
}

#[test]
fn servers_see_the_address_that_the_application_has_bound() {
    for capture in CAPTURES {
        for v6 in [false, true] {
            for by_source in [false, true] {
                let what = format!("{capture}, IPv6 {v6}, source-based routing {by_source}");
                let pod = Multihomed::new(capture, v6);
                if by_source {
                    pod.route_by_source();
                }
                let wire = &pod.s.wire;
                let name = format!("bound-{capture}-{v6}-{by_source}");
                let node = enrolled(&name, capture, node::MESH, wire);
                let (eth0, net1) = (pod.s.pod(), Multihomed::net1(v6));
                let to = at(Multihomed::beyond(v6), 80);
                let [by_eth0, by_net1] = [&wire.peer, &pod.other].map(|n| plain(n, to));
                let of_net1 = if by_source { &by_net1 } else { &by_eth0 };
                if !by_source {
                    // The answers to net1's address return by the interface that it leaves by.
                    let route = format!("{} route add {net1} via {eth0}", pod.s.family_flag());
                    ip(&wire.peer, &route);
                }
                for (source, server) in [(eth0, &by_eth0), (net1, of_net1)] {
                    let mut client = pod.connect_from(source, to).unwrap();
                    let (mut served, from) = accept(server).unwrap();
                    assert_eq!(from.ip(), source, "{what}");
                    talk(&mut client, &mut served);
                }
                // Without a choice, the address is that of the route.
                let near = at(pod.s.address("10.90.0.2", "fd90::2"), 80);
                let near_server = plain(&pod.other, near);
                for (to, server, source) in [(to, &by_eth0, eth0), (near, &near_server, net1)] {
                    let mut client = connect(&wire.pod, to).unwrap();
                    let (mut served, from) = accept(server).unwrap();
                    assert_eq!(from.ip(), source, "{what}, to {to}");
                    talk(&mut client, &mut served);
                }
                // A route that only the proxy's own socket meets.
                let far = at(pod.s.address("203.0.113.1", "2001:db8:1::1"), 80);
                let family = pod.s.family_flag();
                ip(
                    &pod.other,
                    &format!("{family} address add {} dev lo", far.ip()),
                );
                let route = format!("{family} route add {} via {} dev net1", far.ip(), near.ip());
                ip(&wire.pod, &route);
                let server = until("the address is usable", || {
                    pod.other
                        .run(|| std::net::TcpListener::bind(far).ok())
                        .unwrap()
                });
                let mut client = connect(&wire.pod, far).unwrap();
                let (mut served, from) = accept(&server).unwrap();
                assert_eq!(from.ip(), net1, "{what}, to {far}");
                talk(&mut client, &mut served);
                assert_eq!(node.verified_pods(), 1, "{what}");
            }
        }
    }
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

#[test]
fn a_pod_with_source_based_routing_is_verified_and_serves_every_interface() {
    let (node, wire) = TestNode::with_pod("source-based-routing");
    let other = NetNs::create().unwrap();
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    join(&wire.pod, "net1", &other, "eth0");
    for (netns, link, address) in [
        (&wire.pod, "net1", "10.90.0.1/24"),
        (&other, "eth0", "10.90.0.2/24"),
        (&other, "lo", "198.51.100.1"),
    ] {
        ip(netns, &format!("link set {link} up"));
        ip(netns, &format!("address add {address} dev {link}"));
    }
    ip(
        &wire.pod,
        "route add default via 10.90.0.2 dev net1 table 101",
    );
    ip(&wire.pod, "rule add from 10.90.0.1 lookup 101");
    until("the rules have followed", || {
        let plan = Plan::for_pod([POD4, POD6]);
        differences(&wire, &plan).is_empty().then_some(())
    });
    let own: SocketAddr = "10.90.0.1:8080".parse().unwrap();
    let app = plain(&wire.pod, own);
    let client = other.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&"198.51.100.1:0".parse::<SocketAddr>().unwrap().into())?;
        socket.connect_timeout(&own.into(), PATIENCE)?;
        std::io::Result::Ok(TcpStream::from(socket))
    });
    let (mut served, from) = accept(&app).unwrap();
    assert_eq!(from.ip(), BEYOND.ip());
    talk(&mut client.unwrap().unwrap(), &mut served);
    let pod = node.verify("client");
    assert_eq!(node.verified_pods(), 1, "{pod:?}");
}
