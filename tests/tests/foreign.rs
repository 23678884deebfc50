//! The proxy under an agent that is not ours, with redirection that is not ours: Istio's ZDS byte by byte, and Istio's
//! iptables rules.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use netns::NetNs;
use underpass_tests::foreign_agent::{
    DONE, ForeignAgent, add_workload, ask, del_workload, field, keep_workload, snapshot_sent,
};
use underpass_tests::iptables::install_istio_rules;
use underpass_tests::node::Node;
use underpass_tests::sandbox::{connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const MESH: &str = r#"
workloads:
  - { name: a, namespace: default, serviceAccount: a, protocol: HBONE, node: node, workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: b, namespace: default, serviceAccount: b, protocol: HBONE, node: node, workloadIps: [10.78.0.2, "fd78::2"] }
"#;

#[test]
fn the_proxy_works_under_a_foreign_agent_and_istios_iptables_rules() {
    let (mut node, wire) = (Node::new("foreign", MESH), Wire::new());
    let server = ForeignAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    for (netns, uid, name) in [(&wire.pod, "uid-a", "a"), (&wire.peer, "uid-b", "b")] {
        install_istio_rules(netns);
        assert_eq!(ask(&agent, &add_workload(uid, name), Some(netns)), DONE);
    }
    let not_ready = node.get("127.0.0.1:15021", "/healthz/ready").unwrap();
    assert_eq!(not_ready.0, 500, "before the snapshot: {not_ready:?}");
    assert_eq!(ask(&agent, &snapshot_sent(), None), DONE);
    assert_eq!(node.get("127.0.0.1:15021", "/healthz/ready").unwrap(), (200, "ready\n".to_owned()));

    serve_echo(&wire.peer, 8080);
    for (own, peer) in [(POD4, PEER4), (POD6, PEER6)] {
        let mut stream = connect(&wire.pod, SocketAddr::new(peer, 8080)).unwrap();
        assert_eq!(read_line(&mut stream).unwrap(), own.to_string(), "the server sees the client's address");
        writeln!(stream, "through the tunnel").unwrap();
        assert_eq!(read_line(&mut stream).unwrap(), "through the tunnel");
        drop(stream);
        let target = format!("dst.hbone_addr={}", SocketAddr::new(peer, 8080));
        until("both ends log the tunnel", || {
            let log = node.log("proxy");
            let has = |direction: &str| log.lines().any(|l| l.contains(&target) && l.contains(direction));
            (has("direction=\"outbound\"") && has("direction=\"inbound\"")).then_some(())
        });
    }
}

#[test]
fn a_reconnect_keeps_what_the_snapshot_names_and_drops_the_rest() {
    let (mut node, wire) = (Node::new("reconnect", MESH), Wire::new());
    let server = ForeignAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    assert_eq!(ask(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)), DONE);
    assert_eq!(ask(&agent, &add_workload("uid-b", "b"), Some(&wire.peer)), DONE);
    assert_eq!(ask(&agent, &snapshot_sent(), None), DONE);
    let listens = |netns: &NetNs| netns.run(|| std::net::TcpStream::connect("127.0.0.1:15008").is_ok()).unwrap();
    assert!(listens(&wire.pod) && listens(&wire.peer));
    drop(agent);
    let agent = server.accept();
    assert!(listens(&wire.pod), "pods are served while the agent is away");
    assert_eq!(ask(&agent, &keep_workload("uid-a"), None), DONE);
    assert_eq!(ask(&agent, &snapshot_sent(), None), DONE);
    assert!(listens(&wire.pod));
    until("the pod that was not named is given up", || (!listens(&wire.peer)).then_some(()));
    assert_eq!(ask(&agent, &del_workload("uid-a"), None), DONE);
    until("the deleted pod is given up", || (!listens(&wire.pod)).then_some(()));
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_proxy_goes_on() {
    let (mut node, wire) = (Node::new("nonsense", MESH), Wire::new());
    let server = ForeignAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    let refused = |request: &[u8], netns: Option<&NetNs>| {
        let answer = ask(&agent, request, netns);
        assert!(answer.len() > DONE.len(), "{request:?} was not refused");
    };
    refused(&add_workload("uid-a", "a"), None);
    refused(&del_workload("uid-a"), Some(&wire.pod));
    refused(&field(1, &field(1, b"uid")), Some(&wire.pod));
    refused(&field(9, b"of a later version"), None);
    let file = std::fs::File::open("/etc/hostname").unwrap();
    agent.send(&add_workload("uid-a", "a"), Some(file.as_fd())).unwrap();
    assert!(agent.recv().unwrap().unwrap().data.len() > DONE.len(), "a file is no namespace");
    assert_eq!(ask(&agent, &snapshot_sent(), None), DONE);
    refused(&snapshot_sent(), None);
    refused(&keep_workload("uid-a"), None);
    assert_eq!(ask(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)), DONE);
    // Bytes that are no message end the connection, not the proxy, and not the pods.
    agent.send(&[0xff; 30], None).unwrap();
    assert!(agent.recv().unwrap().is_none());
    let agent = server.accept();
    assert_eq!(ask(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)), DONE);
}

#[test]
fn a_pod_that_is_made_again_does_not_get_the_tunnels_of_the_first() {
    let (mut node, first, second) = (Node::new("again", MESH), Wire::new(), Wire::new());
    let server = ForeignAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    // Both wires have the same addresses; only what answers at their ends tells them apart.
    for (wire, name) in [(&first, "first"), (&second, "second")] {
        // The first server stays, so that tunnels to it would still work.
        for (netns, uid, pod) in [(&wire.pod, "uid-a", "a"), (&wire.peer, name, "b")] {
            install_istio_rules(netns);
            assert_eq!(ask(&agent, &add_workload(uid, pod), Some(netns)), DONE);
        }
        let listener = underpass_tests::sandbox::listen(&wire.peer, 8080);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = writeln!(stream, "{name}"); // the client has gone
            }
        });
        for peer in [PEER4, PEER6] {
            // Several, so that every worker has a tunnel.
            for _ in 0..4 {
                let mut stream = connect(&wire.pod, SocketAddr::new(peer, 8080)).unwrap();
                assert_eq!(read_line(&mut stream).unwrap(), name);
            }
        }
    }
}
