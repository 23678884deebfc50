//! Pods that run join and leave when the mesh file says so, without losing a connection; and what their annotations say.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use netns::NetNs;
use redirect::{CaptureKind, Plan};
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain};
use underpass_tests::node::Node;
use underpass_tests::places::carries;
use underpass_tests::sandbox::until;
use underpass_tests::traffic::Traffic;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// The mesh of the tests, with the pod's namespace and the pod itself as told.
fn mesh(labels: &str, annotations: &str) -> String {
    format!(
        r#"
namespaces: [{{ name: default, labels: {{ {labels} }} }}, {{ name: outside }}]
workloads:
  - {{ name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.78.0.1, "fd78::1"], annotations: {{ {annotations} }} }}
  - {{ name: peer, namespace: outside, workloadIps: [10.78.0.2, "fd78::2"] }}
"#
    )
}

const IN: &str = "istio.io/dataplane-mode: ambient";

fn write_mesh(node: &Node, text: &str) {
    let staged = node.file("mesh.new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, node.file("mesh.yaml")).unwrap();
}

fn add(node: &Node, wire: &Wire, change: impl FnOnce(&mut Value)) -> std::process::Output {
    let mut config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    change(&mut config);
    Call::new("ADD", &path_of(&wire.pod), &config).run()
}

fn pod(node: &Node) -> Value {
    let status = node.get("127.0.0.1:15014", "/status").unwrap().1;
    serde_json::from_str::<Value>(&status).unwrap()["pods"][0].clone()
}

fn await_pod(node: &Node, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(what, || Some(pod(node)).filter(&holds))
}

fn in_place(wire: &Wire) -> bool {
    !wire.pod.run(redirect::read_back).unwrap().unwrap().is_empty()
}

fn differs(wire: &Wire, plan: &Plan) -> Vec<redirect::Difference> {
    redirect::diff(plan, &wire.pod.run(redirect::read_back).unwrap().unwrap())
}

/// A connection of each family and direction, and who serves it.
fn open(wire: &Wire, port: u16) -> Vec<(TcpStream, TcpStream)> {
    let pair = |from, to, address| {
        let at = SocketAddr::new(address, port);
        let server = plain(to, at);
        let client = connect(from, at).unwrap();
        (client, accept(&server).unwrap().0)
    };
    let (pod, peer) = (&wire.pod, &wire.peer);
    vec![pair(pod, peer, PEER4), pair(pod, peer, PEER6), pair(peer, pod, POD4), pair(peer, pod, POD6)]
}

fn all_carry(connections: &mut [(TcpStream, TcpStream)]) {
    for (a, b) in connections {
        carries(a, b).unwrap();
    }
}

fn joins_and_leaves(capture: &str) {
    let (mut node, wire) = (Node::new(&format!("members-{capture}"), &mesh("", "")), Wire::new());
    node.start_agent_with(&["--capture".as_ref(), capture.as_ref()]);
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    assert_eq!(pod(&node)["state"], "skipped");
    assert!(!in_place(&wire));

    let mut before = open(&wire, 8001);
    write_mesh(&node, &mesh(IN, ""));
    let joined = await_pod(&node, "the pod is verified", |p| p["verification"]["state"] == "verified");
    assert_eq!(joined["reason"], "label istio.io/dataplane-mode=ambient on the namespace");
    all_carry(&mut before);
    let mut captured = open(&wire, 8002);
    all_carry(&mut captured);
    let seen = captured.iter().map(|(_, served)| served.peer_addr().unwrap().ip().to_canonical());
    assert_eq!(seen.collect::<Vec<_>>(), [POD4, POD6, PEER4, PEER6], "addresses are preserved");

    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "the pod leaves", |p| p["state"] == "leaving");
    all_carry(&mut before);
    all_carry(&mut captured);
    let mut after = open(&wire, 8003);
    assert!(node.log("agent").contains("open=4"), "those that were captured are known");
    drop(captured);
    await_pod(&node, "the pod is outside", |p| p["state"] == "skipped");
    assert!(!in_place(&wire), "nothing of ours is left");
    all_carry(&mut before);
    all_carry(&mut after);
    until("the proxy's listeners are closed", || {
        let listeners = wire.pod.run(redirect::listeners).unwrap().unwrap();
        let is_proxys = |port| [15001, 15006, 15008].contains(&port);
        (!listeners.iter().any(|l| is_proxys(l.address.port()))).then_some(())
    });
}

#[test]
fn a_running_pod_joins_and_leaves_without_losing_a_connection() {
    joins_and_leaves("routed");
}

#[test]
fn the_same_under_nat() {
    joins_and_leaves("nat");
}

#[test]
fn the_same_under_nat_by_iptables() {
    joins_and_leaves("nat-iptables-nft");
}

/// A pod in the mesh, and both directions and families: who connects, who answers, and where.
fn enrolled(name: &str, capture: &str) -> (Node, Wire) {
    let (mut node, wire) = (Node::new(&format!("{name}-{capture}"), &mesh(IN, "")), Wire::new());
    node.start_agent_with(&["--capture".as_ref(), capture.as_ref(), "--dns-capture".as_ref(), "true".as_ref()]);
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    (node, wire)
}

fn ways(wire: &Wire) -> [(&NetNs, &NetNs, SocketAddr); 4] {
    let (pod, peer) = (&wire.pod, &wire.peer);
    [(pod, peer, PEER4), (pod, peer, PEER6), (peer, pod, POD4), (peer, pod, POD6)]
        .map(|(client, server, address)| (client, server, SocketAddr::new(address, 8001)))
}

/// It comes and goes while connections of each family and direction talk without a pause, and new ones are made.
fn comes_and_goes_under_traffic(capture: &str) {
    let (node, wire) = enrolled("traffic", capture);
    let mut traffic = Traffic::default();
    for (client, server, at) in ways(&wire) {
        traffic.serve(server, at);
        traffic.talk(client, at);
        traffic.connect(client, at);
    }
    for round in 0..15 {
        write_mesh(&node, &mesh("", ""));
        await_pod(&node, "the pod leaves", |p| p["state"] == "leaving");
        assert_eq!(traffic.goes_on(), [""; 0], "round {round}, leaving");
        write_mesh(&node, &mesh(IN, ""));
        await_pod(&node, "the pod is verified", |p| p["verification"]["state"] == "verified");
        assert_eq!(traffic.goes_on(), [""; 0], "round {round}, joining");
    }
}

#[test]
fn a_pod_comes_and_goes_under_traffic_without_losing_a_connection() {
    comes_and_goes_under_traffic("routed");
}

#[test]
fn under_nat_a_pod_comes_and_goes_under_traffic_without_losing_a_connection() {
    comes_and_goes_under_traffic("nat");
}

/// It is out, and joins again, while connections are made that are open for a moment only.
fn is_out_and_in_again(capture: &str) {
    let (node, wire) = enrolled("brief", capture);
    let mut traffic = Traffic::default();
    for (client, server, at) in ways(&wire) {
        traffic.serve(server, at);
        traffic.connect(client, at);
    }
    for round in 0..2 {
        write_mesh(&node, &mesh("", ""));
        await_pod(&node, "the pod is outside", |p| p["state"] == "skipped");
        assert_eq!(traffic.goes_on(), [""; 0], "round {round}, outside");
        assert!(!in_place(&wire), "nothing of ours is left");
        write_mesh(&node, &mesh(IN, ""));
        await_pod(&node, "the pod is verified", |p| p["verification"]["state"] == "verified");
        assert_eq!(traffic.goes_on(), [""; 0], "round {round}, inside");
    }
}

#[test]
fn connections_that_are_made_while_a_pod_leaves_for_good_are_not_lost() {
    is_out_and_in_again("routed");
}

#[test]
fn under_nat_connections_that_are_made_while_a_pod_leaves_for_good_are_not_lost() {
    is_out_and_in_again("nat");
}

#[test]
fn a_pod_that_leaves_may_change_its_mind() {
    let (mut node, wire) = (Node::new("mind", &mesh(IN, "")), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    let mut captured = open(&wire, 8001);
    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "the pod leaves", |p| p["state"] == "leaving");
    let mut outside = open(&wire, 8002);
    // And the agent is killed meanwhile.
    node.kill_all();
    node.start_agent();
    node.start_ready_proxy();
    assert_eq!(pod(&node)["state"], "leaving");
    write_mesh(&node, &mesh(IN, ""));
    await_pod(&node, "the pod is verified", |p| p["verification"]["state"] == "verified");
    all_carry(&mut outside);
    drop(captured.drain(..)); // their proxy was killed
    assert_eq!(differs(&wire, &Plan::for_pod([POD4, POD6])), []);
}

#[test]
fn without_a_proxy_a_running_pod_goes_on_as_it_was() {
    let (mut node, wire) = (Node::new("no-proxy-yet", &mesh("", "")), Wire::new());
    node.start_agent();
    assert!(add(&node, &wire, |_| {}).status.success());
    write_mesh(&node, &mesh(IN, ""));
    let waits = await_pod(&node, "it is told why", |p| p["reason"].as_str().unwrap().contains("UP-AGENT-006"));
    assert_eq!(waits["state"], "skipped");
    all_carry(&mut open(&wire, 8001));
    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "what is told is what holds now", |p| p["reason"].as_str().unwrap().contains("no label"));
    write_mesh(&node, &mesh(IN, ""));
    // The next agent knows the pod, too.
    node.kill_all();
    node.start_agent();
    node.start_ready_proxy();
    await_pod(&node, "the pod is verified", |p| p["verification"]["state"] == "verified");
}

/// The agent was killed while the pod joined, and the pod is not to join any more.
#[test]
fn rules_of_a_join_that_was_killed_do_not_cut_off_a_pod_outside_the_mesh() {
    let (mut node, wire) = (Node::new("killed-join", &mesh("", "")), Wire::new());
    node.start_agent();
    assert!(add(&node, &wire, |_| {}).status.success());
    let is_written = || std::fs::read_to_string(node.file("state/pods.json")).is_ok_and(|s| s.contains("client"));
    until("the pod is written down", || is_written().then_some(()));
    let run = |program: &str, args: &[&str]| {
        let done = wire.pod.run(|| Command::new(program).args(args).output()).unwrap().unwrap();
        assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let no_table = || run("nft", &["delete table inet underpass"]);
    let no_rules = || ["-4", "-6"].into_iter().for_each(|family| run("ip", &[family, "rule", "del", "pref", "32764"]));
    let cuts: [(&str, &dyn Fn()); 3] = [("whole", &|| ()), ("no table", &no_table), ("no ip rules", &no_rules)];
    for (number, (what, cut)) in (0..).zip(cuts) {
        node.kill_all();
        wire.pod.run(|| redirect::join(&Plan::for_pod([POD4, POD6]))).unwrap().unwrap();
        cut();
        assert!(in_place(&wire), "{what}");
        node.start_agent();
        until(what, || (!in_place(&wire)).then_some(()));
        all_carry(&mut open(&wire, 8001 + number));
        until("it is told", || node.log("agent").contains("a join that had not come to its end").then_some(()));
        assert_eq!(pod(&node)["state"], "skipped");
    }
}

#[test]
fn annotations_shape_the_plan_of_a_new_pod_and_of_one_that_runs() {
    let (mut node, wire) = (Node::new("annotated", &mesh(IN, "")), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // From the runtime, as containerd tells them.
    let annotations = json!({ "underpass.io/exclude-outbound-ports": "8001", "other/annotation": "x" });
    let runtime = json!({ "io.kubernetes.cri.pod-annotations": annotations, "other": 3 });
    assert!(add(&node, &wire, |c| c["runtimeConfig"] = runtime).status.success());
    let mut plan = Plan::for_pod([POD4, POD6]);
    plan.exclude.outbound_ports = [8001].into();
    assert_eq!(differs(&wire, &plan), []);
    // From the mesh, while the pod runs; what the runtime said stays.
    write_mesh(&node, &mesh(IN, r#""underpass.io/exclude-inbound-cidrs": "10.78.0.2""#));
    plan.exclude.inbound_cidrs = ["10.78.0.2/32".parse().unwrap()].into();
    until("the plan has changed", || differs(&wire, &plan).is_empty().then_some(()));
    // A typo changes nothing, and is told.
    write_mesh(&node, &mesh(IN, r#""underpass.io/exclude-inbound-cidrs": "10.78.0.2/77""#));
    until("the typo is told", || node.log("agent").contains("10.78.0.2/77").then_some(()));
    assert_eq!(differs(&wire, &plan), []);
}

#[test]
fn an_annotation_that_cannot_be_followed_fails_the_add_by_name() {
    let (mut node, wire) = (Node::new("bad-annotation", &mesh(IN, "")), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    for (name, value) in [
        ("istio.io/reroute-virtual-interfaces", "eth0 -j ACCEPT".to_owned()),
        ("underpass.io/exclude-inbound-ports", "1-9".to_owned()),
        ("underpass.io/exclude-outbound-cidrs", "10.1.1.1,".repeat(1000)),
    ] {
        let runtime = json!({ "io.kubernetes.cri.pod-annotations": { name: value } });
        let failed = add(&node, &wire, |c| c["runtimeConfig"] = runtime);
        let text = String::from_utf8(failed.stdout).unwrap();
        assert!(!failed.status.success() && text.contains("UP-AGENT-015") && text.contains(name), "{text}");
        assert!(!in_place(&wire));
    }
    // Istio's booleans are ignored where they are none, as istio-cni does.
    let runtime = json!({ "io.kubernetes.cri.pod-annotations": { "ambient.istio.io/bypass-inbound-capture": "yes" } });
    assert!(add(&node, &wire, |c| c["runtimeConfig"] = runtime).status.success());
    assert_eq!(differs(&wire, &Plan::for_pod([POD4, POD6])), []);
}

#[test]
fn the_agent_says_which_capture_it_chose_and_why() {
    let mut node = Node::new("capture", &mesh(IN, ""));
    node.start_agent();
    let status: Value = serde_json::from_str(&node.get("127.0.0.1:15014", "/status").unwrap().1).unwrap();
    assert_eq!(status["capture"]["kind"], "routed");
    assert!(status["capture"]["why"].as_str().unwrap().contains("scratch namespace"));
    for kind in CaptureKind::ALL {
        let (mut node, wire) = (Node::new(&format!("capture-{kind}"), &mesh(IN, "")), Wire::new());
        node.start_agent_with(&["--capture".as_ref(), kind.name().as_ref(), "--dns-capture".as_ref(), "true".as_ref()]);
        node.start_ready_proxy();
        assert!(add(&node, &wire, |_| {}).status.success(), "{kind}");
        let plan = Plan { capture: kind, dns: true, ..Plan::for_pod([POD4, POD6]) };
        assert_eq!(differs(&wire, &plan), []);
        all_carry(&mut open(&wire, 8001));
    }
}
