//! Pods that have redirection of istio-cni: recognised, told, and taken over on request.
#![allow(clippy::unwrap_used)]

use redirect::{CaptureKind, Difference, Plan};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::{Istio, install_istio_rules_by, run};
use underpass_tests::listener::connect;
use underpass_tests::node::{MESH, Node};
use underpass_tests::places::{Place, carries};
use underpass_tests::scene::{Scene, at, goes};
use underpass_tests::wire::{POD4, POD6, Wire};

const BACKENDS: [Istio; 3] = [Istio::IptablesNft, Istio::IptablesLegacy, Istio::Nft];

fn add(node: &Node, wire: &Wire) -> std::process::Output {
    Call::new("ADD", &path_of(&wire.pod), &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"])).run()
}

#[test]
fn istios_rules_are_recognised_and_the_pod_is_refused() {
    let mut node = Node::new("foreign-rules", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for backend in BACKENDS {
        let wire = Wire::new();
        install_istio_rules_by(&wire.pod, backend);
        let found = wire.pod.run(redirect::foreign).unwrap().unwrap();
        assert!(!found.is_empty(), "{backend:?}");
        let refused = add(&node, &wire);
        let text = String::from_utf8(refused.stdout).unwrap();
        assert!(!refused.status.success() && text.contains("UP-AGENT-017"), "{text}");
        assert!(text.contains(&found[0].to_string()) && text.contains("--adopt-istio"), "{text}");
        assert_eq!(wire.pod.run(redirect::foreign).unwrap().unwrap(), found, "nothing of theirs is touched");
    }
}

#[test]
fn istios_rules_are_replaced_on_request() {
    let mut node = Node::new("adopted", MESH);
    node.start_agent_with(&["--adopt-istio".as_ref()]);
    node.start_ready_proxy();
    for backend in BACKENDS {
        let wire = Wire::new();
        install_istio_rules_by(&wire.pod, backend);
        run(&wire.pod, "nft", "add table ip somebody", "");
        let added = add(&node, &wire);
        assert!(added.status.success(), "{backend:?}: {}", String::from_utf8_lossy(&added.stdout));
        let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
        let plan = Plan { adopt: true, ..Plan::for_pod([POD4, POD6]) };
        assert_eq!(redirect::diff(&plan, &observed), [], "{backend:?}");
        run(&wire.pod, "nft", "list table ip somebody", "");
        let del = Call::new("DEL", &path_of(&wire.pod), &config(&node.agent_socket(), &[])).run();
        assert!(del.status.success());
        assert!(wire.pod.run(redirect::read_back).unwrap().unwrap().is_empty(), "{backend:?}: nothing is left");
    }
}

#[test]
fn connections_that_istios_rules_captured_go_on() {
    for backend in BACKENDS {
        for v6 in [false, true] {
            let s = Scene::new(CaptureKind::Nat, v6);
            install_istio_rules_by(&s.wire.pod, backend);
            let proxy = underpass_tests::places::Proxy::new(&s.wire.pod);
            let mut out = connect(&s.wire.pod, at(s.peer(), 80)).unwrap();
            let mut captured_out = proxy.next(&[]).unwrap();
            assert_eq!((captured_out.place, captured_out.destination), (Place::Outbound, at(s.peer(), 80)));
            let app = s.app(8080);
            let mut inside = connect(&s.wire.peer, at(s.pod(), 8080)).unwrap();
            let mut captured_in = proxy.next(&[&app]).unwrap();
            assert_eq!(captured_in.place, Place::Inbound);
            let plan = Plan { adopt: true, ..s.plan() };
            assert!(s.wire.pod.run(|| redirect::captured(&plan)).unwrap().unwrap() > 0);
            s.apply(&plan);
            for (a, b) in [(&mut out, &mut captured_out.stream), (&mut inside, &mut captured_in.stream)] {
                carries(a, b).unwrap_or_else(|e| panic!("{backend:?}, IPv6 {v6}: {e}"));
            }
            goes(&s, &s.wire.pod, at(s.peer(), 81), &proxy, &s.server(81), Place::Outbound);
            goes(&s, &s.wire.peer, at(s.pod(), 8081), &proxy, &s.app(8081), Place::Inbound);
        }
    }
}

#[test]
fn istios_rules_that_come_later_are_a_difference() {
    let s = Scene::new(CaptureKind::Routed, false);
    s.apply(&s.plan());
    install_nat_table(&s);
    let found = redirect::diff(&s.plan(), &s.wire.pod.run(redirect::read_back).unwrap().unwrap());
    assert!(found.iter().any(|d| matches!(d, Difference::Foreign(_))), "{found:?}");
    assert!(found[0].to_string().contains("istio"), "{found:?}");
}

fn install_nat_table(s: &Scene) {
    run(&s.wire.pod, "nft", "add table inet istio-ambient-nat", "");
    run(&s.wire.pod, "nft", "add chain inet istio-ambient-nat istio-output", "");
}
