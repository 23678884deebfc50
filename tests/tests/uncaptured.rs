//! Connections that are opened while rules are missing: under `nat`, conntrack translates a
//! connection by its first packet only, so that repaired rules do not capture them.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};

use agent_status::VerificationState;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::run;
use underpass_tests::listener::{accept, connect, plain, talk};
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// Both ends of a connection: that in the pod first.
type Ends = (TcpStream, TcpStream);

/// Connections of both families and directions, without the proxy.
fn open(wire: &Wire, port: u16) -> Vec<Ends> {
    let from_pod = |(_, peer): (IpAddr, IpAddr)| {
        let server = plain(&wire.peer, SocketAddr::new(peer, port));
        let client = connect(&wire.pod, SocketAddr::new(peer, port)).unwrap();
        let (served, from) = accept(&server).unwrap();
        assert_eq!(from, client.local_addr().unwrap(), "not captured");
        (client, served)
    };
    let to_pod = |(own, _): (IpAddr, IpAddr)| {
        let server = plain(&wire.pod, SocketAddr::new(own, port));
        let client = connect(&wire.peer, SocketAddr::new(own, port)).unwrap();
        (accept(&server).unwrap().0, client)
    };
    let families = [(POD4, PEER4), (POD6, PEER6)];
    let both = families.into_iter().flat_map(|f| [from_pod(f), to_pod(f)]);
    both.collect()
}

fn await_verified(node: &TestNode) {
    until("the pod is verified", || {
        let verification = node.pod("client").verification?;
        (verification.state == VerificationState::Verified).then_some(())
    });
}

/// Deletes the rules that a capture needs, as another program would.
fn delete_rules(wire: &Wire, capture: &str) {
    let Some(variant) = capture.strip_prefix("nat-iptables-") else {
        return run(&wire.pod, "nft", "delete table inet underpass", "");
    };
    for family in ["iptables", "ip6tables"] {
        for (table, chain) in [("nat", "OUT"), ("nat", "IN"), ("filter", "OUT")] {
            let flush = format!("-t {table} -F UNDERPASS_{chain}");
            run(&wire.pod, &format!("{family}-{variant}"), &flush, "");
        }
    }
}

#[test]
fn connections_opened_while_rules_are_missing_are_cut_and_older_ones_kept_under_nat() {
    for capture in ["nat", "nat-iptables-nft", "nat-iptables-legacy"] {
        let outside = MESH.replace("istio.io/dataplane-mode: ambient", "");
        let mut node = TestNode::new(&format!("uncaptured-{capture}"), &outside);
        let agent = node.start_agent_with(&["--capture", capture].map(AsRef::as_ref));
        node.start_ready_proxy();
        let wire = Wire::new();
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
        assert!(add.status.success(), "{add:?}");
        let mut before = open(&wire, 8080);
        std::fs::write(node.file("mesh.new"), MESH).unwrap();
        std::fs::rename(node.file("mesh.new"), node.file("mesh.yaml")).unwrap();
        await_verified(&node);
        let server = plain(&wire.peer, SocketAddr::new(PEER4, 8081));
        let mut captured = connect(&wire.pod, SocketAddr::new(PEER4, 8081)).unwrap();
        let (mut served, from) = accept(&server).unwrap();
        assert_ne!(from, captured.local_addr().unwrap(), "captured");
        assert_eq!(node.pod("client").exempted_connections, before.len());

        node.freeze(agent, true);
        delete_rules(&wire, capture);
        let mut meanwhile = open(&wire, 8082);
        for (pod, peer) in &mut meanwhile {
            talk(pod, peer);
        }
        node.freeze(agent, false);
        node.verify("client"); // the kernel does not report changes of iptables-legacy
        for (pod, _) in &mut meanwhile {
            pod.set_read_timeout(Some(PATIENCE)).unwrap();
            let cut = pod.read(&mut [0]).unwrap_err();
            let kind = std::io::ErrorKind::ConnectionAborted;
            assert_eq!(cut.kind(), kind, "{capture}: {cut}");
        }
        await_verified(&node);
        let repair = node
            .pod("client")
            .verification
            .unwrap()
            .last_repair
            .unwrap();
        assert!(
            repair.what.contains("4 connections that bypassed"),
            "{repair:?}"
        );
        for (pod, peer) in &mut before {
            talk(pod, peer);
        }
        talk(&mut captured, &mut served);
    }
}
