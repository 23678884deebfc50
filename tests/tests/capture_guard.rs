//! The `routed` capture's guard, exceptions and read-back with real packets, in both families. See
//! `traffic_matrix` for where packets arrive.

#![allow(clippy::unwrap_used)] // a test that cannot continue panics

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netns::NetNs;
use nft::Batch;
use redirect::{Difference, DifferenceKind, Plan, apply, diff, example_tables, read_back, remove};
use underpass_tests::iptables::run;
use underpass_tests::listener::{
    accept, connect, connect_briefly, connect_marked, plain, talk, transparent,
};
use underpass_tests::sandbox::PATIENCE;
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
    pod.run(|| apply(&plan())).unwrap().unwrap().exempted.len()
}

/// Releases exceptions in the calling thread's namespace; returns how many remain.
fn release() -> usize {
    let present = read_back().unwrap().exempted_connections();
    let remaining = redirect::release_closed_exceptions(&plan(), &present);
    remaining.unwrap().len()
}

/// Applies a batch in the calling thread's namespace.
fn commit(batch: &mut Batch) -> Result<(), nft::NftError> {
    std::mem::replace(batch, Batch::new("")).commit(&nft::Socket::open()?)
}

fn refused(result: std::io::Result<std::net::TcpStream>) -> bool {
    matches!(
        result.map_err(|e| e.kind()),
        Err(std::io::ErrorKind::ConnectionRefused)
    )
}

#[test]
fn the_rules_read_back_match_the_plan() {
    let wire = Wire::new();
    assert!(wire.pod.run(read_back).unwrap().unwrap().is_empty());
    enrol(&wire.pod);
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    assert_eq!(diff(&plan(), &observed), []);
    enrol(&wire.pod);
    assert_eq!(
        wire.pod.run(read_back).unwrap().unwrap(),
        observed,
        "applying twice leaves one rule set"
    );
    assert!(wire.pod.run(remove).unwrap().unwrap().found);
    assert!(wire.pod.run(read_back).unwrap().unwrap().is_empty());
    assert!(
        !wire.pod.run(remove).unwrap().unwrap().found,
        "removing twice is not an error"
    );
}

#[test]
fn without_the_ip_rules_the_guard_refuses_connections() {
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
    assert!(
        found
            .iter()
            .all(|d| matches!(d, Difference::PolicyRule(_, DifferenceKind::Missing)))
    );
}

#[test]
fn without_the_table_nothing_leaves_in_plain_text() {
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
        assert!(
            connect_briefly(&wire.pod, at(peer, 80)).is_err(),
            "over {peer}"
        );
        outside.set_nonblocking(true).unwrap();
        assert_eq!(
            outside.accept().unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock,
            "over {peer}"
        );
    }
    assert_eq!(
        diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()),
        [Difference::NoTable]
    );
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
            socket.connect_timeout(&at(peer, 80).into(), PATIENCE)
        });
        assert_eq!(
            result.unwrap().unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "over {peer}"
        );
    }
}

#[test]
fn a_family_without_an_address_does_not_bypass() {
    let wire = Wire::new();
    wire.pod
        .run(|| apply(&Plan::for_pod([POD4])))
        .unwrap()
        .unwrap();
    let _outside = plain(&wire.peer, at(PEER6, 80));
    assert!(refused(connect(&wire.pod, at(PEER6, 80))));
}

#[test]
fn open_connections_survive_enrolment() {
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
    assert_eq!(wire.pod.run(release).unwrap(), 4);
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    assert_eq!(observed.exempted_connections().len(), 4);
    assert_eq!(diff(&plan(), &observed), []);
    for (a, _) in &open {
        netns::sockopt::reset_on_close(a).unwrap();
    }
    drop(open);
    let deadline = std::time::Instant::now() + PATIENCE;
    while wire.pod.run(release).unwrap() > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "exceptions of closed connections remain"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_rule_that_looks_like_an_exception_before_the_join_is_not_kept() {
    let wire = Wire::new();
    for (family, peer) in [("-4", PEER4), ("-6", PEER6)] {
        let rule = format!(
            "{family} rule add pref 32762 iif lo ipproto tcp sport 40000 dport 8080 to {peer} \
             lookup main"
        );
        run(&wire.pod, "ip", &rule, "");
    }
    for install in [redirect::join, apply] {
        let outcome = wire.pod.run(|| install(&plan())).unwrap().unwrap();
        assert_eq!(outcome.exempted.len(), 0);
        let observed = wire.pod.run(read_back).unwrap().unwrap();
        let none = redirect::Exceptions::new();
        assert_eq!(redirect::diff_with(&plan(), &none, &observed), []);
    }
}

/// Exceptions are released in the background, also at the moment in which the pod joins or leaves,
/// under a table that lets connections pass which the plan's table refuses.
#[test]
fn releasing_exceptions_keeps_the_tables_of_joining_and_leaving_pods() {
    let wire = Wire::new();
    let mut open = Vec::new();
    let servers = FAMILIES.map(|(_, peer)| plain(&wire.peer, at(peer, 80)));
    for ((_, peer), server) in FAMILIES.into_iter().zip(&servers) {
        let app = connect(&wire.pod, at(peer, 80)).unwrap();
        open.push((app, accept(server).unwrap().0));
    }
    assert_eq!(enrol(&wire.pod), 2);
    for (app, _) in &open {
        netns::sockopt::reset_on_close(app).unwrap();
    }
    drop(open);
    let transitions = ["joining", "rejoining", "stop_capturing", "leaving"];
    let transitions = transitions.map(|name| format!("routed/{name}.nft"));
    let tables: Vec<_> = example_tables()
        .into_iter()
        .filter(|e| transitions.iter().any(|t| t == e.file))
        .collect();
    assert_eq!(tables.len(), transitions.len());
    wire.pod
        .run(|| {
            for example in tables {
                commit(
                    Batch::new("underpass")
                        .delete_table()
                        .create_table(&example.table),
                )
                .unwrap();
                let before = read_back().unwrap();
                assert_eq!(release(), 2, "{}", example.file);
                assert_eq!(read_back().unwrap(), before, "{}", example.file);
            }
            redirect::repair(&plan(), &read_back().unwrap().exempted_connections()).unwrap();
            assert_eq!(release(), 0);
            assert_eq!(diff(&plan(), &read_back().unwrap()), []);
        })
        .unwrap();
}

/// A background task must not overwrite what another one has written since it read the rules.
#[test]
fn a_batch_for_an_earlier_generation_changes_nothing() {
    let wire = Wire::new();
    wire.pod
        .run(|| {
            let generation = || nft::generation(&nft::Socket::open().unwrap()).unwrap();
            let delete = |generation| {
                commit(
                    Batch::new("underpass")
                        .for_generation(generation)
                        .delete_table(),
                )
            };
            let earlier = generation();
            apply(&plan()).unwrap();
            let rejected = delete(earlier).unwrap_err();
            assert_eq!(rejected.errno(), Some(nix::libc::ERESTART), "{rejected}");
            assert_eq!(diff(&plan(), &read_back().unwrap()), []);
            delete(generation()).unwrap();
            assert_eq!(read_back().unwrap().table, None);
        })
        .unwrap();
}

#[test]
fn a_captured_connection_does_not_leave_when_the_ip_rules_are_deleted() {
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
        assert!(
            !outside.sees("what the pod", Duration::from_millis(500)),
            "data left in plain text"
        );
        // Both connections continue once the rules are restored.
        enrol(&wire.pod);
        let mut request = [0; 17];
        captured.set_read_timeout(Some(PATIENCE)).unwrap();
        captured.read_exact(&mut request).unwrap();
        let mut response = [0; 20];
        as_client.set_read_timeout(Some(PATIENCE)).unwrap();
        as_client.read_exact(&mut response).unwrap();
        assert_eq!(
            (&request, &response),
            (b"what the pod asks", b"what the pod answers")
        );
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
    // Sockets that deleted something are closed by another thread, and other tests of this process
    // run.
    let deadline = std::time::Instant::now() + PATIENCE;
    while count() > before + 50 {
        assert!(
            std::time::Instant::now() < deadline,
            "{before} descriptors before, {} after",
            count()
        );
        std::thread::yield_now();
    }
}
