//! Nodes that are down cost connections little while a healthy endpoint exists.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpStream};

use underpass_tests::fake_waypoint::hbone;
use underpass_tests::raw_tunnel::{RawTunnels, accepted, data};
use underpass_tests::sandbox::{MESH, Sandbox, VIPS, connect, read_line, serve_echo};

/// `server` and `outsider` serve one service; the test plays the proxy of `outsider`, which answers
/// "here".
fn sandbox_with_played_endpoint(name: &str) -> (Sandbox, Vec<RawTunnels>) {
    let services = "services: { default/server.default.svc.cluster.local: { 80: 8080 } }";
    let mesh = MESH.replace(
        "name: outsider, namespace: outside,",
        &format!("name: outsider, namespace: outside, protocol: HBONE, {services},"),
    );
    let sandbox = Sandbox::up_with(name, &mesh);
    serve_echo(&sandbox.pod("server"), 8080);
    let identity = "spiffe://cluster.local/ns/outside/sa/outsider";
    let play = |ip| {
        RawTunnels::start(&sandbox, "outsider", hbone(ip), identity, |stream| {
            [accepted(stream, false), data(stream, b"here\n")].concat()
        })
    };
    let played = sandbox.ips("outsider").into_iter().map(play).collect();
    (sandbox, played)
}

fn workers() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Connects from the client; returns the connection and the first line of the answer.
fn answer(sandbox: &Sandbox, to: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(&sandbox.pod("client"), to).unwrap();
    let line = read_line(&mut stream).unwrap_or_else(|e| panic!("{to}: {e}"));
    (stream, line)
}

fn vip() -> SocketAddr {
    VIPS[0].parse().unwrap()
}

#[test]
fn a_node_that_does_not_answer_is_not_tried_by_every_connection() {
    let (sandbox, played) = sandbox_with_played_endpoint("dead-node");
    played[0].silence_all();
    for _ in 0..20 * workers() {
        assert_ne!(answer(&sandbox, vip()).1, "here");
    }
    // One for each worker, and one whenever it checks whether the node is back.
    let tried = played[0].opened();
    assert!(tried <= 4 * workers(), "tried {tried} times");
}

#[test]
fn connections_leave_a_tunnel_that_falls_silent_for_another_endpoint() {
    let (sandbox, played) = sandbox_with_played_endpoint("falls-silent");
    let answers: Vec<_> = (0..16 * workers())
        .map(|_| answer(&sandbox, vip()))
        .collect();
    assert!(answers.iter().any(|(_, line)| line == "here"));
    played[0].silence_all();
    for _ in 0..10 * workers() {
        assert_ne!(answer(&sandbox, vip()).1, "here");
    }
}

#[test]
fn a_silent_tunnel_is_replaced_when_a_connection_waits_for_it() {
    let (sandbox, played) = sandbox_with_played_endpoint("node-restarted");
    for (ip, played) in sandbox.ips("outsider").into_iter().zip(played) {
        let to = SocketAddr::new(ip, 8080);
        let _open: Vec<_> = (0..4 * workers()).map(|_| answer(&sandbox, to)).collect();
        played.silence_open();
        for _ in 0..2 * workers() {
            assert_eq!(answer(&sandbox, to).1, "here");
        }
    }
}
