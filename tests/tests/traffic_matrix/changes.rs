//! Open connections when a pod joins or leaves, and plans that are applied again or removed.

use std::net::TcpStream;

use redirect::{CaptureKind, ExistingConnections, Plan};
use underpass_tests::arrivals::{ArrivalPoint, carries_both_ways};
use underpass_tests::capture_setup::{CaptureSetup, assert_inbound, assert_outbound, at};
use underpass_tests::listener::{accept, connect, connect_marked};
use underpass_tests::sandbox::until;

use super::dns::{query, resolver};

/// A connection in each direction, opened before enrolment.
fn open_both_ways(s: &CaptureSetup) -> Vec<(TcpStream, TcpStream)> {
    let outside = s.server(80);
    let app = s.app(8080);
    let out = connect(&s.wire.pod, at(s.peer(), 80)).unwrap();
    let inside = connect(&s.wire.peer, at(s.pod(), 8080)).unwrap();
    let pairs = vec![
        (out, accept(&outside).unwrap().0),
        (inside, accept(&app).unwrap().0),
    ];
    pairs
}

pub(crate) fn open_connections(s: &CaptureSetup) {
    let mut open = open_both_ways(s);
    let proxy = s.enrol(|_| {});
    for (a, b) in &mut open {
        carries_both_ways(a, b).unwrap();
    }
    assert_outbound(s, &proxy, 81, ArrivalPoint::Outbound);
    for (a, b) in &mut open {
        carries_both_ways(a, b).unwrap();
    }
}

pub(crate) fn open_connections_cut(s: &CaptureSetup) {
    let mut open = open_both_ways(s);
    let plan = Plan {
        existing_connections: ExistingConnections::Reset,
        ..s.plan()
    };
    let applied = s.apply(&plan);
    assert_eq!((applied.exempted.len(), applied.aborted), (0, 2));
    for (a, b) in &mut open {
        assert!(
            carries_both_ways(a, b).is_err(),
            "an open connection continues"
        );
    }
}

pub(crate) fn leaving(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let app = s.app(8080);
    let mut out = connect(&s.wire.pod, at(s.peer(), 80)).unwrap();
    let mut captured_out = proxy.next(&[]).unwrap();
    let mut inside = connect(&s.wire.peer, at(s.pod(), 8080)).unwrap();
    let mut captured_in = proxy.next(&[&app]).unwrap();
    // As the proxy does: to the application with the client's address.
    let mut to_app = connect_marked(&s.wire.pod, Some(s.peer()), at(s.pod(), 8080)).unwrap();
    let (mut served, _) = accept(&app).unwrap();
    let leave = || {
        s.wire
            .pod
            .run(|| redirect::leave(&s.plan(), &redirect::Exceptions::new(), false))
            .unwrap()
            .unwrap()
    };
    assert!(
        leave() >= 2,
        "the application's two connections with the proxy"
    );
    let left = s.wire.pod.run(redirect::read_back).unwrap().unwrap();
    assert!(leave() >= 2);
    assert_eq!(
        s.wire.pod.run(redirect::read_back).unwrap().unwrap(),
        left,
        "leaving again changes nothing"
    );
    for (a, b) in [
        (&mut out, &mut captured_out.stream),
        (&mut inside, &mut captured_in.stream),
    ] {
        carries_both_ways(a, b).unwrap();
    }
    carries_both_ways(&mut to_app, &mut served).unwrap();
    // New connections are plain, in both directions.
    assert_outbound(s, &proxy, 81, ArrivalPoint::Direct);
    assert_inbound(s, &proxy, 8081, ArrivalPoint::Direct);
    for stream in [&out, &inside, &to_app] {
        netns::sockopt::reset_on_close(stream).unwrap();
    }
    drop((out, captured_out, inside, captured_in, to_app, served));
    until("the rest is removed with the last connection", || {
        (leave() == 0).then_some(())
    });
    assert!(
        s.wire
            .pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty()
    );
}

pub(crate) fn idempotent(s: &CaptureSetup) {
    let everything = |p: &mut Plan| {
        p.dns = true;
        p.reroute_interfaces = ["vm0".parse().unwrap()].into();
        p.exclude.inbound_ports = [1, 2].into();
        p.exclude.outbound_ports = [3].into();
        p.exclude.inbound_cidrs =
            ["10.1.0.0/16".parse().unwrap(), "fd01::/16".parse().unwrap()].into();
        p.exclude.outbound_cidrs =
            ["10.2.0.0/16".parse().unwrap(), "fd02::/16".parse().unwrap()].into();
    };
    let mut plan = s.plan();
    everything(&mut plan);
    s.apply(&plan);
    let first = s.wire.pod.run(redirect::read_back).unwrap().unwrap();
    s.apply(&plan);
    assert_eq!(s.wire.pod.run(redirect::read_back).unwrap().unwrap(), first);
    s.wire
        .pod
        .run(|| redirect::repair(&plan, &redirect::Exceptions::new()))
        .unwrap()
        .unwrap();
    assert_eq!(s.wire.pod.run(redirect::read_back).unwrap().unwrap(), first);
    // The same from any other capture to this one.
    for other in CaptureKind::ALL {
        s.apply(&Plan {
            capture: other,
            ..plan.clone()
        });
        s.apply(&plan);
        assert_eq!(
            s.wire.pod.run(redirect::read_back).unwrap().unwrap(),
            first,
            "after {other}"
        );
    }
}

pub(crate) fn removal(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    assert!(s.wire.pod.run(redirect::remove).unwrap().unwrap().found);
    assert!(
        s.wire
            .pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty()
    );
    assert!(
        !s.wire.pod.run(redirect::remove).unwrap().unwrap().found,
        "removing twice is not an error"
    );
    assert_outbound(s, &proxy, 80, ArrivalPoint::Direct);
    assert_inbound(s, &proxy, 8080, ArrivalPoint::Direct);
    let resolver = resolver(s);
    let _client = query(&s.wire.pod, at(s.pod(), 0), at(s.peer(), 53));
    let (_, from) = resolver.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.ip(), s.pod());
}
