//! Pods that already have istio-cni's redirection: detected, rejected, and adopted with
//! `--adopt-istio`.
#![allow(clippy::unwrap_used)]

use redirect::{CaptureKind, Difference, Plan};
use underpass_tests::arrivals::{ArrivalPoint, carries_both_ways};
use underpass_tests::capture_setup::{CaptureSetup, assert_arrives, at};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::{IstioBackend, install_istio_rules_with, run};
use underpass_tests::listener::connect;
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::wire::{POD4, POD6, Wire};

const BACKENDS: [IstioBackend; 3] = [
    IstioBackend::IptablesNft,
    IstioBackend::IptablesLegacy,
    IstioBackend::Nft,
];

fn add(node: &TestNode, wire: &Wire) -> std::process::Output {
    Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]),
    )
    .run()
}

#[test]
fn pod_with_istio_rules_is_rejected() {
    let mut node = TestNode::new("foreign-rules", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for backend in BACKENDS {
        let wire = Wire::new();
        install_istio_rules_with(&wire.pod, backend);
        let found = wire
            .pod
            .run(redirect::find_foreign_redirection)
            .unwrap()
            .unwrap();
        assert!(!found.is_empty(), "{backend:?}");
        let rejected = add(&node, &wire);
        let text = String::from_utf8(rejected.stdout).unwrap();
        assert!(
            !rejected.status.success() && text.contains("UP-AGENT-017"),
            "{text}"
        );
        assert!(
            text.contains(&found[0].to_string()) && text.contains("--adopt-istio"),
            "{text}"
        );
        assert_eq!(
            wire.pod
                .run(redirect::find_foreign_redirection)
                .unwrap()
                .unwrap(),
            found,
            "Istio's rules are unchanged"
        );
    }
}

#[test]
fn adopt_istio_replaces_istio_rules() {
    let mut node = TestNode::new("adopted", MESH);
    node.start_agent_with(&["--adopt-istio".as_ref()]);
    node.start_ready_proxy();
    for backend in BACKENDS {
        let wire = Wire::new();
        install_istio_rules_with(&wire.pod, backend);
        run(&wire.pod, "nft", "add table ip unrelated", "");
        let added = add(&node, &wire);
        assert!(
            added.status.success(),
            "{backend:?}: {}",
            String::from_utf8_lossy(&added.stdout)
        );
        let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
        let plan = Plan {
            adopt: true,
            ..Plan::for_pod([POD4, POD6])
        };
        assert_eq!(redirect::diff(&plan, &observed), [], "{backend:?}");
        run(&wire.pod, "nft", "list table ip unrelated", "");
        let del = Call::new(
            "DEL",
            &path_of(&wire.pod),
            &config(&node.agent_socket(), &[]),
        )
        .run();
        assert!(del.status.success());
        assert!(
            wire.pod
                .run(redirect::read_back)
                .unwrap()
                .unwrap()
                .is_empty(),
            "{backend:?}: no rules are left"
        );
    }
}

#[test]
fn connections_captured_by_istio_rules_continue() {
    for backend in BACKENDS {
        for v6 in [false, true] {
            let s = CaptureSetup::new(CaptureKind::Nat, v6);
            install_istio_rules_with(&s.wire.pod, backend);
            let proxy = underpass_tests::arrivals::ProxyListeners::new(&s.wire.pod);
            let mut out = connect(&s.wire.pod, at(s.peer(), 80)).unwrap();
            let mut captured_out = proxy.next(&[]).unwrap();
            assert_eq!(
                (captured_out.point, captured_out.destination),
                (ArrivalPoint::Outbound, at(s.peer(), 80))
            );
            let app = s.app(8080);
            let mut inside = connect(&s.wire.peer, at(s.pod(), 8080)).unwrap();
            let mut captured_in = proxy.next(&[&app]).unwrap();
            assert_eq!(captured_in.point, ArrivalPoint::Inbound);
            let plan = Plan {
                adopt: true,
                ..s.plan()
            };
            assert!(
                s.wire
                    .pod
                    .run(|| redirect::count_captured(&plan))
                    .unwrap()
                    .unwrap()
                    > 0
            );
            s.apply(&plan);
            for (a, b) in [
                (&mut out, &mut captured_out.stream),
                (&mut inside, &mut captured_in.stream),
            ] {
                carries_both_ways(a, b).unwrap_or_else(|e| panic!("{backend:?}, IPv6 {v6}: {e}"));
            }
            assert_arrives(
                &s,
                &s.wire.pod,
                at(s.peer(), 81),
                &proxy,
                &s.server(81),
                ArrivalPoint::Outbound,
            );
            assert_arrives(
                &s,
                &s.wire.peer,
                at(s.pod(), 8081),
                &proxy,
                &s.app(8081),
                ArrivalPoint::Inbound,
            );
        }
    }
}

#[test]
fn istio_rules_added_later_are_a_difference() {
    let s = CaptureSetup::new(CaptureKind::Routed, false);
    s.apply(&s.plan());
    install_nat_table(&s);
    let found = redirect::diff(
        &s.plan(),
        &s.wire.pod.run(redirect::read_back).unwrap().unwrap(),
    );
    assert!(
        found.iter().any(|d| matches!(d, Difference::Foreign(_))),
        "{found:?}"
    );
    assert!(found[0].to_string().contains("istio"), "{found:?}");
}

fn install_nat_table(s: &CaptureSetup) {
    run(&s.wire.pod, "nft", "add table inet istio-ambient-nat", "");
    run(
        &s.wire.pod,
        "nft",
        "add chain inet istio-ambient-nat istio-output",
        "",
    );
}
