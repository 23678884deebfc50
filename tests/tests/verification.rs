//! Enrolment is measured: what somebody changes in a pod is found and put right, and what does not answer is told.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::process::Command;

use serde_json::Value;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, Node};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{POD4, POD6, Wire, flush_rules};

/// A node with agent and proxy, and a pod that has joined.
fn enrolled(name: &str) -> (Node, Wire) {
    let (mut node, wire) = (Node::new(name, MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(add.status.success(), "{}", String::from_utf8_lossy(&add.stdout));
    (node, wire)
}

fn verification(node: &Node) -> Value {
    let status = node.get("127.0.0.1:15014", "/status").unwrap().1;
    serde_json::from_str::<Value>(&status).unwrap()["pods"][0]["verification"].clone()
}

fn metric(node: &Node, line: &str) -> Option<u64> {
    let metrics = node.get("127.0.0.1:15014", "/metrics").unwrap().1;
    metrics.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
}

fn await_state(node: &Node, state: &str) -> String {
    until(&format!("the pod is {state}"), || {
        let v = verification(node);
        (v["state"] == state).then(|| v["reason"].as_str().unwrap_or_default().to_owned())
    })
}

fn nothing_differs(wire: &Wire) -> bool {
    let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
    redirect::diff(&redirect::Plan::for_pod([POD4, POD6]), &observed).is_empty()
}

fn nft(wire: &Wire, args: &str) {
    let mut command = Command::new("nft");
    netns::process::in_netns(&mut command, &wire.pod).unwrap();
    assert!(command.args(args.split(' ')).status().unwrap().success(), "nft {args}");
}

fn ip(wire: &Wire, args: &str) {
    let mut command = Command::new("ip");
    netns::process::in_netns(&mut command, &wire.pod).unwrap();
    assert!(command.args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

#[test]
fn what_somebody_changes_is_found_and_put_right() {
    let (node, wire) = enrolled("repair");
    await_state(&node, "verified");
    let changes: [(&str, &dyn Fn()); 8] = [
        ("table inet underpass is missing", &|| nft(&wire, "delete table inet underpass")),
        ("chain guard", &|| nft(&wire, "flush chain inet underpass guard")),
        ("chain capture", &|| nft(&wire, "insert rule inet underpass capture accept")),
        ("set own4", &|| nft(&wire, "add element inet underpass own4 { 10.9.9.9 }")),
        ("is missing", &|| flush_rules(&wire.pod)),
        ("lookup main", &|| ip(&wire, "-6 rule del pref 32763")),
        ("table 100", &|| ip(&wire, "route flush table 100")),
        ("should not be there", &|| ip(&wire, "rule add pref 32762 to 10.9.9.9 lookup main")),
    ];
    for (expected, change) in changes {
        let before = node.log("agent").len();
        change();
        until("it is put right", || nothing_differs(&wire).then_some(()));
        let line = until("the repair is told", || {
            let log = node.log("agent");
            log[before..].lines().find(|l| l.contains("repaired")).map(str::to_owned)
        });
        assert!(line.contains(expected), "{expected} in {line}");
    }
    await_state(&node, "verified");
    assert!(metric(&node, "underpass_repairs_total").unwrap() >= 8);
    assert_eq!(metric(&node, "underpass_pods{state=\"verified\"}"), Some(1));
    assert_eq!(metric(&node, "underpass_pods{state=\"drifted\"}"), Some(0));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (node, wire) = enrolled("not-ours");
    await_state(&node, "verified");
    nft(&wire, "add table inet somebody");
    ip(&wire, "rule add pref 20000 to 10.9.9.9 lookup main");
    nft(&wire, "delete table inet underpass");
    until("ours is put right", || nothing_differs(&wire).then_some(()));
    nft(&wire, "list table inet somebody");
    ip(&wire, "rule del pref 20000");
}

#[test]
fn a_proxy_that_is_away_is_told_and_its_return_too() {
    let (mut node, wire) = enrolled("away");
    await_state(&node, "verified");
    node.kill_all();
    // Something of the pod's own takes the proxy's place.
    let impostor = wire.pod.run(|| std::net::TcpListener::bind(("::", 15001))).unwrap().unwrap();
    node.start_agent();
    let why = await_state(&node, "unverified");
    assert!(why.contains("15006"), "{why}");
    assert_eq!(metric(&node, "underpass_pods{state=\"unverified\"}"), Some(1));
    drop(impostor);
    node.start_ready_proxy();
    await_state(&node, "verified");
}

#[test]
fn an_application_that_listens_on_the_proxys_ports_is_not_taken_for_the_proxy() {
    let (mut node, wire) = enrolled("impostor-app");
    await_state(&node, "verified");
    node.kill_all();
    let own = |port| underpass_tests::listener::transparent(&wire.pod, port);
    let listeners = [15001, 15006, 15008].map(own);
    for listener in listeners {
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
    }
    node.start_agent();
    let why = await_state(&node, "unverified");
    assert!(why.contains("probe"), "{why}");
    until("failed probes are counted", || metric(&node, "underpass_probe_failures_total").filter(|n| *n > 0));
}
