//! Interfaces, ip rules and routing tables that other plugins add to a pod.

use std::ffi::OsStr;
use std::net::IpAddr;

use netns::NetNs;
use redirect::{Exceptions, Plan, leave, read_back};
use underpass_tests::arrivals::{ArrivalPoint, ProxyListeners};
use underpass_tests::capture_setup::{CaptureSetup, assert_arrives, at};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain, talk};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, POD4, POD6, Wire, join};

use super::{BEYOND, CAPTURES, differences, follow, ip, ip_shows};

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
