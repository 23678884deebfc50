//! The `routed` capture under special conditions: source validation, several interfaces and
//! addresses, listeners of the pod, and missing parts of the rules.

#![allow(clippy::unwrap_used)] // a test that cannot continue panics

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use netns::NetNs;
use redirect::{CaptureKind, Exceptions, Plan};
use underpass_tests::arrivals::{ArrivalPoint, carries_both_ways, nothing_arrives};
use underpass_tests::capture_setup::{CaptureSetup, assert_arrives, at};
use underpass_tests::iptables::run;
use underpass_tests::listener::{accept, connect, connect_briefly, connect_marked, plain};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::sniffer::Sniffer;
use underpass_tests::wire::join;

fn scenes() -> impl Iterator<Item = CaptureSetup> {
    [false, true]
        .into_iter()
        .map(|v6| CaptureSetup::new(CaptureKind::Routed, v6))
}

fn sysctl(netns: &NetNs, name: &str, value: &str) {
    netns
        .run(|| std::fs::write(format!("/proc/sys/net/{name}"), value))
        .unwrap()
        .unwrap();
}

#[test]
fn capture_works_under_every_source_validation_setting() {
    for rp_filter in ["0", "1", "2"] {
        for src_valid_mark in ["0", "1"] {
            let s = CaptureSetup::new(CaptureKind::Routed, false);
            for of in ["all", "eth0", "lo", "default"] {
                sysctl(&s.wire.pod, &format!("ipv4/conf/{of}/rp_filter"), rp_filter);
                sysctl(
                    &s.wire.pod,
                    &format!("ipv4/conf/{of}/src_valid_mark"),
                    src_valid_mark,
                );
            }
            s.ip(&s.wire.pod, &format!("route add default via {}", s.peer()));
            let mut before = connect_pair(&s);
            let proxy = s.enrol(|p| p.dns = true);
            carries_both_ways(&mut before.0, &mut before.1).unwrap();
            assert_arrives(
                &s,
                &s.wire.pod,
                at(s.peer(), 80),
                &proxy,
                &s.server(80),
                ArrivalPoint::Outbound,
            );
            assert_arrives(
                &s,
                &s.wire.pod,
                at("10.96.0.10".parse().unwrap(), 80),
                &proxy,
                &s.server(81),
                ArrivalPoint::Outbound,
            );
            assert_arrives(
                &s,
                &s.wire.peer,
                at(s.pod(), 8080),
                &proxy,
                &s.app(8080),
                ArrivalPoint::Inbound,
            );
            assert_arrives(
                &s,
                &s.wire.peer,
                at(s.pod(), 15008),
                &proxy,
                &s.app(8080),
                ArrivalPoint::Hbone,
            );
            // The proxy connects with the address of a client on the link, and of a remote one.
            // With src_valid_mark, the application's responses are validated with the proxy's mark,
            // which they do not have.
            for client in [s.peer(), "192.0.2.7".parse().unwrap()] {
                let app = s.app(8081);
                let mut of_proxy =
                    connect_marked(&s.wire.pod, Some(client), at(s.pod(), 8081)).unwrap();
                let (mut served, from) = accept(&app).unwrap();
                assert_eq!(
                    from.ip(),
                    client,
                    "rp_filter {rp_filter}, src_valid_mark {src_valid_mark}"
                );
                carries_both_ways(&mut of_proxy, &mut served).unwrap();
            }
            let client = s
                .wire
                .pod
                .run(|| UdpSocket::bind(at(s.pod(), 0)))
                .unwrap()
                .unwrap();
            client.send_to(b"query", at(s.peer(), 53)).unwrap();
            assert_eq!(proxy.answer_dns(b"answer").unwrap().1, at(s.peer(), 53));
        }
    }
}

fn connect_pair(s: &CaptureSetup) -> (std::net::TcpStream, std::net::TcpStream) {
    let server = s.server(90);
    let client = connect(&s.wire.pod, at(s.peer(), 90)).unwrap();
    (client, accept(&server).unwrap().0)
}

#[test]
fn every_interface_is_captured() {
    for s in scenes() {
        let other = NetNs::create().unwrap();
        join(&s.wire.pod, "net1", &other, "eth0");
        let (own, peer) = (
            s.address("10.81.0.1", "fd81::1"),
            s.address("10.81.0.2", "fd81::2"),
        );
        for (netns, link, address) in [(&s.wire.pod, "net1", own), (&other, "eth0", peer)] {
            sysctl(netns, &format!("ipv6/conf/{link}/accept_dad"), "0");
            s.ip(netns, &format!("link set {link} up"));
            s.ip(
                netns,
                &format!(
                    "address add {address}/{} dev {link}",
                    if s.v6 { 64 } else { 24 }
                ),
            );
            until("the address can be used", || {
                netns.run(|| UdpSocket::bind(at(address, 0)).ok()).unwrap()
            });
        }
        let proxy = s.enrol(|p| p.addresses.push(own));
        let arrived = assert_arrives(
            &s,
            &s.wire.pod,
            at(peer, 80),
            &proxy,
            &plain(&other, at(peer, 80)),
            ArrivalPoint::Outbound,
        );
        drop(arrived);
        assert_arrives(
            &s,
            &other,
            at(own, 8080),
            &proxy,
            &plain(&s.wire.pod, at(own, 8080)),
            ArrivalPoint::Inbound,
        );
        assert_arrives(
            &s,
            &other,
            at(own, 15008),
            &proxy,
            &s.app(8081),
            ArrivalPoint::Hbone,
        );
        // The proxy's own connections leave by the interface of the main table.
        let outside = plain(&other, at(peer, 82));
        let mut of_proxy = connect_marked(&s.wire.pod, None, at(peer, 82)).unwrap();
        carries_both_ways(&mut of_proxy, &mut accept(&outside).unwrap().0).unwrap();
    }
}

#[test]
fn an_address_added_later_is_captured() {
    for s in scenes() {
        let proxy = s.enrol(|_| {});
        let later = s.address("10.78.0.33", "fd78::33");
        let (length, flags) = if s.v6 { (64, " nodad") } else { (24, "") };
        s.ip(
            &s.wire.pod,
            &format!("address add {later}/{length} dev eth0{flags}"),
        );
        assert_arrives(
            &s,
            &s.wire.peer,
            at(later, 8080),
            &proxy,
            &plain(&s.wire.pod, at(later, 8080)),
            ArrivalPoint::Inbound,
        );
        // Connections from and to the new address go to the proxy, as the plan does not contain it.
        let outside = s.server(80);
        let from_later = s.wire.pod.run(|| {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(at(later, 0)),
                socket2::Type::STREAM,
                None,
            )?;
            socket.bind(&at(later, 0).into())?;
            socket.connect_timeout(&at(s.peer(), 80).into(), PATIENCE)?;
            std::io::Result::Ok(socket)
        });
        from_later.unwrap().unwrap();
        let arrived = proxy.next(&[&outside]).unwrap();
        assert_eq!(
            (arrived.point, arrived.client.ip()),
            (ArrivalPoint::Outbound, later)
        );
        assert_arrives(
            &s,
            &s.wire.pod,
            at(later, 8081),
            &proxy,
            &plain(&s.wire.pod, at(later, 8081)),
            ArrivalPoint::Outbound,
        );
    }
}

#[test]
fn a_wildcard_listener_of_the_pod_gets_no_outbound_connections() {
    for s in scenes() {
        let proxy = s.enrol(|_| {});
        let own: TcpListener = plain(&s.wire.pod, at("::".parse().unwrap(), 80));
        let _outside = s.server(80);
        assert_arrives(
            &s,
            &s.wire.pod,
            at(s.peer(), 80),
            &proxy,
            &own,
            ArrivalPoint::Outbound,
        );
    }
}

/// A part of the rules, and a function that removes it.
type Part = (&'static str, fn(&CaptureSetup));

/// With one part missing and the proxy running, all that the pod sends is captured, refused or
/// lost; nothing leaves in plain text.
#[test]
fn with_any_part_of_the_rules_missing_nothing_leaves_in_plain_text() {
    let parts: &[Part] = &[
        ("the table", |s| {
            run(&s.wire.pod, "nft", "delete table inet underpass", "")
        }),
        ("the capture chain's rules", |s| {
            run(&s.wire.pod, "nft", "flush chain inet underpass capture", "")
        }),
        ("the capture chain", |s| {
            run(&s.wire.pod, "nft", "flush chain inet underpass capture", "");
            run(
                &s.wire.pod,
                "nft",
                "delete chain inet underpass capture",
                "",
            );
        }),
        ("the guard chain's rules", |s| {
            run(&s.wire.pod, "nft", "flush chain inet underpass guard", "")
        }),
        ("the own addresses", |s| {
            run(
                &s.wire.pod,
                "nft",
                &format!("flush set inet underpass own{}", number(s)),
                "",
            )
        }),
        ("the probe sources", |s| {
            run(
                &s.wire.pod,
                "nft",
                &format!("flush set inet underpass probe{}", number(s)),
                "",
            )
        }),
        ("the capturing ip rules", |s| delete_rule(s, "pref 32764")),
        ("the proxy's ip rule", |s| delete_rule(s, "pref 32763")),
        ("the probes' ip rule", |s| delete_rule(s, "pref 32762")),
        ("the route", |s| {
            s.ip(
                &s.wire.pod,
                &format!("{} route flush table 15001", s.family_flag()),
            )
        }),
    ];
    for (name, remove) in parts {
        for s in scenes() {
            let proxy = s.enrol(|_| {});
            let mut app = connect(&s.wire.pod, at(s.peer(), 80)).unwrap();
            let _captured = proxy.next(&[]).unwrap();
            let outside = s.server(80);
            let sniffer = Sniffer::new(&s.wire.peer);
            remove(&s);
            let _ = app.write_all(b"secret of an open connection");
            if let Ok(mut new) = connect_briefly(&s.wire.pod, at(s.peer(), 80)) {
                let _ = new.write_all(b"secret of a new connection");
            }
            assert!(
                nothing_arrives(&outside),
                "{name}: a connection left, IPv6: {}",
                s.v6
            );
            assert!(
                !sniffer.sees("secret", Duration::from_millis(150)),
                "{name}: in plain, IPv6: {}",
                s.v6
            );
            // The rules can be repaired from this state.
            s.wire
                .pod
                .run(|| redirect::repair(&s.plan(), &Exceptions::new()))
                .unwrap()
                .unwrap();
            assert_eq!(
                redirect::diff(
                    &s.plan(),
                    &s.wire.pod.run(redirect::read_back).unwrap().unwrap()
                ),
                [],
                "{name}"
            );
            proxy.drop_pending();
            assert_arrives(
                &s,
                &s.wire.pod,
                at(s.peer(), 81),
                &proxy,
                &s.server(81),
                ArrivalPoint::Outbound,
            );
        }
    }
}

fn number(s: &CaptureSetup) -> u8 {
    if s.v6 { 6 } else { 4 }
}

fn delete_rule(s: &CaptureSetup, which: &str) {
    s.ip(
        &s.wire.pod,
        &format!("{} rule del {which}", s.family_flag()),
    );
}

/// Without the translation, only the guard protects NAT. (Without the whole table NAT is open until
/// the agent has repaired it, which is why `routed` is the default.)
#[test]
fn the_nat_guard_refuses_connections_without_translation() {
    for v6 in [false, true] {
        let s = CaptureSetup::new(CaptureKind::Nat, v6);
        let _proxy = s.enrol(|p: &mut Plan| p.dns = true);
        run(&s.wire.pod, "nft", "flush chain inet underpass nat-out", "");
        let outside = s.server(80);
        assert!(underpass_tests::capture_setup::is_refused(&connect(
            &s.wire.pod,
            at(s.peer(), 80)
        )));
        assert!(nothing_arrives(&outside));
    }
}
