//! The `routed` capture's guard, exceptions and read-back with real packets, in both families. Where packets arrive: walks.rs.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netns::NetNs;
use redirect::{Difference, How, Plan, apply, diff, read_back, remove};
use underpass_tests::listener::{accept, connect, connect_marked, plain, talk, transparent};
use underpass_tests::sniffer::Sniffer;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire, flush_rules};

const FAMILIES: [(IpAddr, IpAddr); 2] = [(POD4, PEER4), (POD6, PEER6)];

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn plan() -> Plan {
    Plan::for_pod([POD4, POD6])
}

fn enrol(pod: &NetNs) -> usize {
    pod.run(|| apply(&plan())).unwrap().unwrap().exempted
}

fn refused(result: std::io::Result<std::net::TcpStream>) -> bool {
    matches!(result.map_err(|e| e.kind()), Err(std::io::ErrorKind::ConnectionRefused))
}

#[test]
fn what_is_read_back_is_what_was_planned() {
    let wire = Wire::new();
    assert!(wire.pod.run(read_back).unwrap().unwrap().is_empty());
    enrol(&wire.pod);
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    assert_eq!(diff(&plan(), &observed), []);
    enrol(&wire.pod);
    assert_eq!(wire.pod.run(read_back).unwrap().unwrap(), observed, "applying twice leaves one rule set");
    assert!(wire.pod.run(remove).unwrap().unwrap().anything);
    assert!(wire.pod.run(read_back).unwrap().unwrap().is_empty());
    assert!(!wire.pod.run(remove).unwrap().unwrap().anything, "removing twice is fine");
}

#[test]
fn without_the_ip_rules_the_guard_refuses() {
    let wire = Wire::new();
    let _proxy = transparent(&wire.pod, 15001);
    enrol(&wire.pod);
    underpass_tests::wire::flush_rules(&wire.pod);
    for (_, peer) in FAMILIES {
        let _outside = plain(&wire.peer, at(peer, 80));
        assert!(refused(connect(&wire.pod, at(peer, 80))), "over {peer}");
    }
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    let found = diff(&plan(), &observed);
    assert_eq!(found.len(), 6, "two families, three rules each: {found:?}");
    assert!(found.iter().all(|d| matches!(d, Difference::PolicyRule(_, How::Missing))));
}

#[test]
fn without_the_table_nothing_leaves_in_plain() {
    let wire = Wire::new();
    let _proxy = transparent(&wire.pod, 15001);
    enrol(&wire.pod);
    wire.pod
        .run(|| {
            let mut batch = nft::Batch::new(redirect::TABLE_NAME);
            batch.delete_table();
            batch.commit(&nft::Socket::open().unwrap()).unwrap();
        })
        .unwrap();
    for (_, peer) in FAMILIES {
        let outside = plain(&wire.peer, at(peer, 80));
        assert!(connect(&wire.pod, at(peer, 80)).is_err(), "over {peer}");
        outside.set_nonblocking(true).unwrap();
        assert_eq!(outside.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "over {peer}");
    }
    assert_eq!(diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()), [Difference::NoTable]);
}

#[test]
fn a_socket_bound_to_a_device_is_refused() {
    let wire = Wire::new();
    enrol(&wire.pod);
    for (_, peer) in FAMILIES {
        let _outside = plain(&wire.peer, at(peer, 80));
        let result = wire.pod.run(|| {
            let domain = socket2::Domain::for_address(at(peer, 80));
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.bind_device(Some(b"eth0"))?;
            socket.connect_timeout(&at(peer, 80).into(), std::time::Duration::from_secs(3))
        });
        assert_eq!(result.unwrap().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "over {peer}");
    }
}

#[test]
fn a_family_without_an_address_does_not_bypass() {
    let wire = Wire::new();
    wire.pod.run(|| apply(&Plan::for_pod([POD4]))).unwrap().unwrap();
    let _outside = plain(&wire.peer, at(PEER6, 80));
    assert!(refused(connect(&wire.pod, at(PEER6, 80))));
}

#[test]
fn open_connections_go_on() {
    let wire = Wire::new();
    let mut open = Vec::new();
    for (pod, peer) in FAMILIES {
        let outside = plain(&wire.peer, at(peer, 80));
        let app = connect(&wire.pod, at(peer, 80)).unwrap();
        open.push((app, accept(&outside).unwrap().0));
        let inside = plain(&wire.pod, at(pod, 8080));
        let client = connect(&wire.peer, at(pod, 8080)).unwrap();
        open.push((client, accept(&inside).unwrap().0));
    }
    assert_eq!(enrol(&wire.pod), 4);
    for (a, b) in &mut open {
        talk(a, b);
    }
    assert_eq!(wire.pod.run(|| redirect::release_closed_exceptions(&plan())).unwrap().unwrap(), 4);
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    assert_eq!((observed.exempted(), diff(&plan(), &observed)), (4, vec![]));
    for (a, _) in &open {
        netns::sockopt::reset_on_close(a).unwrap();
    }
    drop(open);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while wire.pod.run(|| redirect::release_closed_exceptions(&plan())).unwrap().unwrap() > 0 {
        assert!(std::time::Instant::now() < deadline, "exceptions of closed connections stay");
        std::thread::yield_now();
    }
}

#[test]
fn a_captured_connection_does_not_leave_when_the_ip_rules_go() {
    let wire = Wire::new();
    enrol(&wire.pod);
    for (pod, peer) in FAMILIES {
        let proxy = transparent(&wire.pod, 15001);
        let mut app = connect(&wire.pod, at(peer, 80)).unwrap();
        let (mut captured, _) = accept(&proxy).unwrap();
        talk(&mut app, &mut captured);
        let server = plain(&wire.pod, at(pod, 8080));
        let mut as_client = connect_marked(&wire.pod, Some(peer), at(pod, 8080)).unwrap();
        let (mut served, _) = accept(&server).unwrap();
        talk(&mut as_client, &mut served);

        let outside = Sniffer::new(&wire.peer);
        flush_rules(&wire.pod);
        app.write_all(b"what the pod asks").unwrap();
        served.write_all(b"what the pod answers").unwrap();
        assert!(!outside.sees("what the pod", Duration::from_millis(500)), "it left in plain text");
        // And once the rules are back, both go on as if nothing had been.
        enrol(&wire.pod);
        let mut asked = [0; 17];
        captured.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        captured.read_exact(&mut asked).unwrap();
        let mut answered = [0; 20];
        as_client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        as_client.read_exact(&mut answered).unwrap();
        assert_eq!((&asked, &answered), (b"what the pod asks", b"what the pod answers"));
    }
}

#[test]
fn two_hundred_cycles_leak_no_descriptor() {
    let wire = Wire::new();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let cycle = || {
        enrol(&wire.pod);
        wire.pod.run(remove).unwrap().unwrap();
    };
    cycle();
    let before = count();
    (0..200).for_each(|_| cycle());
    // Sockets that deleted something are closed by a thread of their own, and other tests of this process come and go.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while count() > before + 50 {
        assert!(std::time::Instant::now() < deadline, "{before} descriptors before, {} after", count());
        std::thread::yield_now();
    }
}
