//! The built proxy under a fake of Istio's agent, which speaks ZDS byte by byte, and under Istio's
//! iptables rules.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use netns::NetNs;
use underpass_tests::iptables::install_istio_rules;
use underpass_tests::istio_agent::{
    ACK, IstioAgent, add_workload, del_workload, field, keep_workload, request, snapshot_sent,
};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const MESH: &str = r#"
workloads:
  - { name: a, namespace: default, serviceAccount: a, protocol: HBONE, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: b, namespace: default, serviceAccount: b, protocol: HBONE, node: node,
      workloadIps: [10.78.0.2, "fd78::2"] }
"#;

#[test]
fn proxy_works_with_istios_agent_and_iptables_rules() {
    let (mut node, wire) = (TestNode::new("foreign", MESH), Wire::new());
    let server = IstioAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    for (netns, uid, name) in [(&wire.pod, "uid-a", "a"), (&wire.peer, "uid-b", "b")] {
        install_istio_rules(netns);
        assert_eq!(request(&agent, &add_workload(uid, name), Some(netns)), ACK);
    }
    let not_ready = node.get("127.0.0.1:15021", "/healthz/ready").unwrap();
    assert_eq!(not_ready.0, 500, "before the snapshot: {not_ready:?}");
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    assert_eq!(
        node.get("127.0.0.1:15021", "/healthz/ready").unwrap(),
        (200, "ready\n".to_owned())
    );

    serve_echo(&wire.peer, 8080);
    for (own, peer) in [(POD4, PEER4), (POD6, PEER6)] {
        let mut stream = connect(&wire.pod, SocketAddr::new(peer, 8080)).unwrap();
        assert_eq!(
            read_line(&mut stream).unwrap(),
            own.to_string(),
            "the server sees the pod's address"
        );
        writeln!(stream, "through the tunnel").unwrap();
        assert_eq!(read_line(&mut stream).unwrap(), "through the tunnel");
        drop(stream);
        let target = format!("dst.hbone_addr={}", SocketAddr::new(peer, 8080));
        until("both ends log the tunnel", || {
            let log = node.log("proxy");
            let has = |direction: &str| {
                log.lines()
                    .any(|l| l.contains(&target) && l.contains(direction))
            };
            (has("direction=\"outbound\"") && has("direction=\"inbound\"")).then_some(())
        });
    }
}

#[test]
fn reconnect_keeps_pods_of_the_snapshot_and_drops_the_rest() {
    let (mut node, wire) = (TestNode::new("reconnect", MESH), Wire::new());
    let server = IstioAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    assert_eq!(
        request(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)),
        ACK
    );
    assert_eq!(
        request(&agent, &add_workload("uid-b", "b"), Some(&wire.peer)),
        ACK
    );
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    let listens = |netns: &NetNs| {
        netns
            .run(|| std::net::TcpStream::connect("127.0.0.1:15008").is_ok())
            .unwrap()
    };
    assert!(listens(&wire.pod) && listens(&wire.peer));
    drop(agent);
    let agent = server.accept();
    assert!(listens(&wire.pod), "pods are served without an agent");
    assert_eq!(request(&agent, &keep_workload("uid-a"), None), ACK);
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    assert!(listens(&wire.pod));
    until("the pod that is not in the snapshot is dropped", || {
        (!listens(&wire.peer)).then_some(())
    });
    assert_eq!(request(&agent, &del_workload("uid-a"), None), ACK);
    until("the deleted pod is dropped", || {
        (!listens(&wire.pod)).then_some(())
    });
}

#[test]
fn invalid_zds_requests_are_rejected_and_the_proxy_keeps_running() {
    let (mut node, wire) = (TestNode::new("nonsense", MESH), Wire::new());
    let server = IstioAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    let assert_rejected = |message: &[u8], netns: Option<&NetNs>| {
        let answer = request(&agent, message, netns);
        assert!(answer.len() > ACK.len(), "{message:?} was not rejected");
    };
    assert_rejected(&add_workload("uid-a", "a"), None);
    assert_rejected(&del_workload("uid-a"), Some(&wire.pod));
    assert_rejected(&field(1, &field(1, b"uid")), Some(&wire.pod));
    assert_rejected(&field(9, b"of a later version"), None);
    let file = std::fs::File::open("/etc/hostname").unwrap();
    agent
        .send(&add_workload("uid-a", "a"), Some(file.as_fd()))
        .unwrap();
    assert!(
        agent.recv().unwrap().unwrap().data.len() > ACK.len(),
        "a file is not a namespace"
    );
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    assert_rejected(&snapshot_sent(), None);
    assert_rejected(&keep_workload("uid-a"), None);
    assert_eq!(
        request(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)),
        ACK
    );
    // Garbage closes the connection; the proxy and its pods stay.
    agent.send(&[0xff; 30], None).unwrap();
    assert!(agent.recv().unwrap().is_none());
    let agent = server.accept();
    assert_eq!(
        request(&agent, &add_workload("uid-a", "a"), Some(&wire.pod)),
        ACK
    );
}

#[test]
fn recreated_pod_does_not_reuse_tunnels_of_the_first() {
    let (mut node, first, second) = (TestNode::new("again", MESH), Wire::new(), Wire::new());
    let server = IstioAgent::listen(&node);
    node.start_proxy();
    let agent = server.accept();
    // Both wires have the same addresses; only the servers' greetings differ.
    for (wire, name) in [(&first, "first"), (&second, "second")] {
        // The first server keeps running, so that old tunnels would still work.
        for (netns, uid, pod) in [(&wire.pod, "uid-a", "a"), (&wire.peer, name, "b")] {
            install_istio_rules(netns);
            assert_eq!(request(&agent, &add_workload(uid, pod), Some(netns)), ACK);
        }
        let listener = underpass_tests::sandbox::listen(&wire.peer, 8080);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = writeln!(stream, "{name}"); // the client may have disconnected
            }
        });
        for peer in [PEER4, PEER6] {
            // Several connections, so that every worker opens a tunnel.
            for _ in 0..4 {
                let mut stream = connect(&wire.pod, SocketAddr::new(peer, 8080)).unwrap();
                assert_eq!(read_line(&mut stream).unwrap(), name);
            }
        }
    }
}
