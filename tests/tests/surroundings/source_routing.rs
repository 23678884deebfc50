//! Pods with several interfaces and source-based routing, as of Multus and of clouds.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use netns::NetNs;
use redirect::{CaptureKind, Plan, find_bypasses, join as join_mesh, read_back, repair};
use socket2::{Domain, Socket, Type};
use underpass_tests::arrivals::{ArrivalPoint, ProxyListeners, carries_both_ways};
use underpass_tests::capture_setup::{CaptureSetup, at};
use underpass_tests::listener::{accept, connect, connect_marked, plain, talk};
use underpass_tests::node::{self, TestNode};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::wire::{POD4, POD6, join};

use super::{BEYOND, CAPTURES, differences, enrolled, follow, ip, ip_shows, sysctl};

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
