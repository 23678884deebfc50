//! CHECK, STATUS and GC of the built plugin, with a real agent and a real proxy.
#![allow(clippy::unwrap_used)]

use std::process::Output;

use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, Node};
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn call(verb: &str, node: &Node, wire: &Wire) -> Call {
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["cniVersion"] = json!("1.1.0");
    Call::new(verb, &path_of(&wire.pod), &config)
}

fn fine(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.is_empty(), "nothing is printed: {}", String::from_utf8_lossy(&output.stdout));
}

fn error(output: &Output) -> (u64, String) {
    assert!(!output.status.success(), "it succeeded");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["cniVersion"], "1.1.0");
    (error["code"].as_u64().unwrap(), error.to_string())
}

fn pods(node: &Node) -> usize {
    let status: Value = serde_json::from_str(&node.get("127.0.0.1:15014", "/status").unwrap().1).unwrap();
    status["pods"].as_array().unwrap().len()
}

#[test]
fn check_tells_whether_the_pod_is_as_add_left_it() {
    let (mut node, wire) = (Node::new("check", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert_eq!(code, 101);
    assert!(text.contains("UP-CNI-013") && text.contains("UP-AGENT-011") && text.contains("not joined"), "{text}");
    assert!(call("ADD", &node, &wire).run().status.success());
    fine(&call("CHECK", &node, &wire).run());
    let outsider = "K8S_POD_NAMESPACE=outside;K8S_POD_NAME=peer";
    let other = call("CHECK", &node, &wire).with("CNI_ARGS", Some(outsider)).with("CNI_CONTAINERID", Some("o"));
    fine(&other.run());
    // The proxy goes, and a new agent takes over.
    node.kill_all();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert_eq!(code, 11, "nobody to ask: {text}");
    node.start_agent();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert!(code == 101 && text.contains("15001"), "{text}");
    let no_result = Call::new("CHECK", &path_of(&wire.pod), &json!({ "cniVersion": "1.1.0", "name": "n" }));
    assert!(error(&no_result.run()).1.contains("UP-CNI-005"));
}

#[test]
fn status_tells_whether_a_pod_could_join() {
    let (mut node, wire) = (Node::new("status", MESH), Wire::new());
    // As runtimes call it: with a configuration and nothing else.
    let status = |node: &Node| {
        let mut call = call("STATUS", node, &wire);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            call = call.with(name, None);
        }
        call.run()
    };
    let (code, text) = error(&status(&node));
    assert!(code == 50 && text.contains("UP-CNI-007"), "{text}");
    node.start_agent();
    let (code, text) = error(&status(&node));
    assert!(code == 51 && text.contains("UP-CNI-014") && text.contains("UP-AGENT-006"), "{text}");
    node.start_ready_proxy();
    fine(&status(&node));
}

/// A kubelet takes an error for a node without a network, on which the proxy's own pod would never start.
#[test]
fn a_status_that_needs_nothing_is_never_an_error() {
    let (node, wire) = (Node::new("status-needs", MESH), Wire::new());
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["cniVersion"] = json!("1.1.0");
    config["statusNeeds"] = json!("nothing");
    let status = |config: &Value| Call::new("STATUS", &path_of(&wire.pod), config).run();
    fine(&status(&config));
    config["statusNeeds"] = json!("everything");
    assert!(error(&status(&config)).1.contains("UP-CNI-"));
}

#[test]
fn gc_forgets_what_the_runtime_does_not_name() {
    let (mut node, wire) = (Node::new("gc", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    assert!(call("ADD", &node, &wire).with("CNI_CONTAINERID", Some("one")).run().status.success());
    let gc = |key: &str, ids: &[&str]| {
        let valid: Vec<Value> = ids.iter().map(|i| json!({ "containerID": i, "ifname": "eth0" })).collect();
        let config = json!({ "cniVersion": "1.1.0", "name": "n", "agentSocket": node.agent_socket(), key: valid });
        Call::new("GC", "", &config).with("CNI_CONTAINERID", None).with("CNI_NETNS", None).run()
    };
    fine(&gc("cni.dev/valid-attachments", &["one", "two"]));
    assert_eq!(pods(&node), 1);
    fine(&gc("unrelated", &[]));
    assert_eq!(pods(&node), 1, "no list asks for nothing");
    fine(&gc("cni.dev/attachments", &["two"]));
    assert_eq!(pods(&node), 0);
    assert!(wire.pod.run(redirect::read_back).unwrap().unwrap().is_empty(), "its rules are taken back");
    until("its listeners are closed", || {
        let listeners = wire.pod.run(redirect::listeners).unwrap().unwrap();
        listeners.is_empty().then_some(())
    });
}
