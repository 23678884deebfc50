//! Enrolment is measured: what somebody changes in a pod is found and put right, and what does not answer is told.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener;
use underpass_tests::node::{MESH, Node};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{POD4, POD6, Wire, flush_rules};

/// Where the agent answers.
const ADMIN: &str = "127.0.0.1:15014";

/// What a look at the pod finds now.
fn probed(node: &Node) -> Value {
    let (status, body) = node.request("POST", ADMIN, "/verify?pod=default/client").unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["verification"].clone()
}

fn verification(node: &Node) -> Value {
    let status = node.get(ADMIN, "/status").unwrap().1;
    serde_json::from_str::<Value>(&status).unwrap()["pods"][0]["verification"].clone()
}

fn metric(node: &Node, line: &str) -> Option<u64> {
    let metrics = node.get(ADMIN, "/metrics").unwrap().1;
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
    let (node, wire) = Node::with_pod("repair");
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
    for (index, (expected, change)) in changes.into_iter().enumerate() {
        let before = node.log("agent").len();
        change();
        until("it is put right", || nothing_differs(&wire).then_some(()));
        let line = until("the repair is told", || {
            let log = node.log("agent");
            log[before..].lines().find(|l| l.contains("repaired")).map(str::to_owned)
        });
        assert!(line.contains(expected), "{expected} in {line}");
        let author = if index < 4 { "nft (pid " } else { "netlink port " };
        assert!(line.contains(author), "{author} in {line}");
    }
    await_state(&node, "verified");
    assert!(metric(&node, "underpass_repairs_total").unwrap() >= 8);
    assert!(metric(&node, "underpass_drift_seconds_count").unwrap() >= 8);
    assert!(verification(&node)["lastRepair"]["by"].as_str().unwrap().contains("netlink port"));
    assert_eq!(metric(&node, "underpass_pods{state=\"verified\"}"), Some(1));
    assert_eq!(metric(&node, "underpass_pods{state=\"drifted\"}"), Some(0));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (node, wire) = Node::with_pod("not-ours");
    await_state(&node, "verified");
    nft(&wire, "add table inet somebody");
    ip(&wire, "rule add pref 20000 to 10.9.9.9 lookup main");
    nft(&wire, "delete table inet underpass");
    until("ours is put right", || nothing_differs(&wire).then_some(()));
    nft(&wire, "list table inet somebody");
    ip(&wire, "rule del pref 20000");
}

#[test]
fn a_drift_that_cannot_be_put_right_is_told_and_costs_little() {
    let (node, wire) = Node::with_pod("stubborn");
    await_state(&node, "verified");
    // Without --adopt-istio that table is not ours to remove.
    nft(&wire, "add table inet istio-ambient-nat");
    nft(&wire, "add chain inet istio-ambient-nat istio-output");
    let why = await_state(&node, "drifted");
    assert!(why.contains("istio-ambient-nat") && why.contains("could not be repaired"), "{why}");
    let looks = || metric(&node, "underpass_verification_seconds_count").unwrap();
    let (before, began) = (looks(), Instant::now());
    until("it is tried again", || (looks() >= before + 2).then_some(()));
    assert!(began.elapsed() > Duration::from_millis(900), "it was looked at without a pause: {:?}", began.elapsed());
    nft(&wire, "delete table inet istio-ambient-nat");
    await_state(&node, "verified");
}

#[test]
fn a_proxy_that_is_away_is_told_and_its_return_too() {
    let (mut node, wire) = Node::with_pod("away");
    await_state(&node, "verified");
    node.kill_all();
    // Something of the pod's own takes the proxy's place.
    let impostor = wire.pod.run(|| std::net::TcpListener::bind(("::", 15001))).unwrap().unwrap();
    node.start_agent();
    let why = await_state(&node, "unverified");
    assert!(why.contains("port 15001 in the pod is listened on by something that is not the proxy"), "{why}");
    assert_eq!(metric(&node, "underpass_pods{state=\"unverified\"}"), Some(1));
    drop(impostor);
    assert!(probed(&node)["reason"].as_str().unwrap().contains("the proxy is away"));
    node.start_ready_proxy();
    await_state(&node, "verified");
    assert_eq!(metric(&node, "underpass_not_verified_seconds_count{state=\"unverified\"}"), Some(1));
    let age = until("the age of the verification is told", || {
        let metrics = node.get(ADMIN, "/metrics").unwrap().1;
        let line = metrics.lines().find_map(|l| l.strip_prefix("underpass_verification_age_seconds "));
        line.and_then(|l| l.parse::<f64>().ok())
    });
    assert!((0.0..60.0).contains(&age), "{age}");
}

#[test]
fn an_application_that_joins_the_proxys_port_is_noticed() {
    let (node, wire) = Node::with_pod("sharing");
    await_state(&node, "verified");
    for port in [15001, 15006, 15008] {
        let stranger = listener::sharing(&wire.pod, port, false);
        let found = probed(&node);
        let expected = format!("port {port} in the pod is listened on by something that is not the proxy");
        assert_eq!(found["state"], "unverified");
        assert!(found["reason"].as_str().unwrap().contains(&expected), "{found}");
        drop(stranger);
        assert_eq!(probed(&node)["state"], "verified");
    }
}

#[test]
fn an_application_that_joins_the_proxys_port_in_disguise_is_met_by_a_probe() {
    let (node, wire) = Node::with_pod("disguise");
    await_state(&node, "verified");
    for port in [15006, 15008] {
        let stranger = listener::sharing(&wire.pod, port, true);
        std::thread::spawn(move || {
            for stream in stranger.incoming() {
                drop(stream);
            }
        });
        // Each probe meets one of the two sockets, as any connection would.
        until("a probe meets the stranger", || {
            let found = probed(&node);
            let met = found["reason"].as_str().is_some_and(|why| why.contains(&format!(":{port} ")));
            met.then_some(())
        });
    }
}

#[test]
fn an_application_that_calls_a_listener_from_loopback_learns_nothing_and_is_not_relayed() {
    let (node, wire) = Node::with_pod("direct");
    await_state(&node, "verified");
    let mut stream = wire
        .pod
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&"10.78.0.1:15006".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            std::net::TcpStream::from(socket)
        })
        .unwrap();
    stream.write_all(&[b'x'; 100]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // a reset, for what was not read
    assert!(answer.len() < 100, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_pod_is_looked_at_when_somebody_asks() {
    let (mut node, wire) = Node::with_pod("asked");
    await_state(&node, "verified");
    let ask = |node: &Node, method, path| node.request(method, ADMIN, path).unwrap();
    assert_eq!(ask(&node, "GET", "/verify?pod=default/client").0, 405);
    assert_eq!(ask(&node, "POST", "/verify").0, 400);
    assert_eq!(ask(&node, "POST", "/verify?pod=default/nobody").0, 404);
    assert_eq!(ask(&node, "POST", "/verify?pod=default%2Fclient").0, 200);
    let looks = || metric(&node, "underpass_verification_seconds_count").unwrap();
    let before = looks();
    nft(&wire, "delete table inet underpass");
    until("it is put right", || nothing_differs(&wire).then_some(()));
    let found = probed(&node);
    assert_eq!(found["state"], "verified");
    assert!(found["lastRepair"]["by"].as_str().unwrap().starts_with("nft (pid "), "{found}");
    // The change, perhaps the agent's own look meanwhile finished by ours, and ours; a repair is not looked at again.
    until("both are counted", || (looks() >= before + 2).then_some(()));
    assert_eq!(looks(), before + 2);
    // Asked while the proxy is away, it says so at once.
    node.kill_all();
    node.start_agent();
    let found = probed(&node);
    assert!(found["state"] == "unverified" && found["reason"].as_str().unwrap().contains("away"), "{found}");
}

#[test]
fn an_application_that_listens_on_the_proxys_ports_is_not_taken_for_the_proxy() {
    let (mut node, wire) = Node::with_pod("impostor-app");
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

#[test]
fn a_proxy_that_goes_is_noticed_without_anybody_asking() {
    let mut node = Node::new("goes", MESH);
    node.start_agent();
    let proxy = node.start_ready_proxy();
    let wire = Wire::new();
    let addresses = ["10.78.0.1/24", "fd78::1/64"];
    assert!(Call::new("ADD", &path_of(&wire.pod), &config(&node.agent_socket(), &addresses)).run().status.success());
    await_state(&node, "verified");
    node.kill(proxy);
    await_state(&node, "unverified");
    node.start_ready_proxy();
    await_state(&node, "verified");
}
