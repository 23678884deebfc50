//! CHECK, STATUS and GC of the built plugin, with the built agent and proxy.
#![allow(clippy::unwrap_used)]

use std::process::Output;

use agent_status::VerificationState;
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn call(verb: &str, node: &TestNode, wire: &Wire) -> Call {
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["cniVersion"] = json!("1.1.0");
    Call::new(verb, &path_of(&wire.pod), &config)
}

fn assert_silent_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(
        output.stdout.is_empty(),
        "unexpected output: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn error(output: &Output) -> (u64, String) {
    assert!(!output.status.success(), "the call succeeded");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["cniVersion"], "1.1.0");
    (error["code"].as_u64().unwrap(), error.to_string())
}

fn pods(node: &TestNode) -> usize {
    node.pods().len()
}

#[test]
fn check_reports_whether_the_pod_is_as_add_left_it() {
    let (mut node, wire) = (TestNode::new("check", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert_eq!(code, 101);
    assert!(
        text.contains("UP-CNI-013") && text.contains("UP-AGENT-011"),
        "{text}"
    );
    assert!(call("ADD", &node, &wire).run().status.success());
    assert_silent_success(&call("CHECK", &node, &wire).run());
    let outsider = "K8S_POD_NAMESPACE=outside;K8S_POD_NAME=peer";
    let other = call("CHECK", &node, &wire)
        .with("CNI_ARGS", Some(outsider))
        .with("CNI_CONTAINERID", Some("o"));
    assert_silent_success(&other.run());
    // Agent and proxy stop; a new agent starts without a proxy.
    node.kill_all();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert_eq!(code, 11, "without an agent: {text}");
    node.start_agent();
    let (code, text) = error(&call("CHECK", &node, &wire).run());
    assert!(code == 101 && text.contains("15001"), "{text}");
    let no_result = Call::new(
        "CHECK",
        &path_of(&wire.pod),
        &json!({ "cniVersion": "1.1.0", "name": "n" }),
    );
    assert!(error(&no_result.run()).1.contains("UP-CNI-005"));
}

/// By hand, to debug it, or by the runtime for another interface.
#[test]
fn another_attachment_of_a_pod_in_the_mesh_leaves_the_first_in_place() {
    let (node, wire) = TestNode::with_pod("attachments");
    let verified = || node.verify("client").verification.unwrap();
    let container = ("CNI_CONTAINERID", Some("debugging"));
    let interface = ("CNI_IFNAME", Some("net1"));
    let unnamed = (
        "CNI_ARGS",
        Some("K8S_POD_NAMESPACE=default;K8S_POD_NAME=client"),
    );
    for changes in [
        &[container][..],
        &[interface],
        &[container, interface, unnamed],
    ] {
        let other = |verb| {
            let call = call(verb, &node, &wire);
            let with = |call: Call, (name, value)| call.with(name, value);
            changes.iter().copied().fold(call, with).run()
        };
        assert!(other("ADD").status.success());
        assert_eq!(verified().state, VerificationState::Verified);
        assert_silent_success(&other("CHECK"));
        assert_silent_success(&call("CHECK", &node, &wire).run());
        let before = wire.pod.run(redirect::read_back).unwrap().unwrap();
        assert_silent_success(&other("DEL"));
        let after = wire.pod.run(redirect::read_back).unwrap().unwrap();
        assert_eq!((before, pods(&node)), (after, 1));
        let verification = verified();
        assert_eq!(verification.state, VerificationState::Verified);
        assert_eq!(verification.last_repair, None, "nothing was removed");
    }
    assert_silent_success(&call("DEL", &node, &wire).run());
    until("the pod has left", || (pods(&node) == 0).then_some(()));
    assert!(
        wire.pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn status_reports_whether_a_pod_could_join() {
    let (mut node, wire) = (TestNode::new("status", MESH), Wire::new());
    // Runtimes pass only a configuration.
    let status = |node: &TestNode| {
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
    assert!(
        code == 51 && text.contains("UP-CNI-014") && text.contains("UP-AGENT-006"),
        "{text}"
    );
    node.start_ready_proxy();
    assert_silent_success(&status(&node));
}

/// The kubelet treats an error as a node without a network, on which the proxy's own pod would
/// never start.
#[test]
fn status_that_needs_nothing_never_fails() {
    let (node, wire) = (TestNode::new("status-needs", MESH), Wire::new());
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["cniVersion"] = json!("1.1.0");
    config["statusNeeds"] = json!("nothing");
    let status = |config: &Value| Call::new("STATUS", &path_of(&wire.pod), config).run();
    assert_silent_success(&status(&config));
    config["statusNeeds"] = json!("everything");
    assert!(error(&status(&config)).1.contains("UP-CNI-"));
}

#[test]
fn commands_that_the_version_lacks_are_rejected() {
    let (mut node, wire) = (TestNode::new("verbs", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    for (verb, version) in [
        ("CHECK", ""),
        ("CHECK", "0.2.0"),
        ("CHECK", "0.3.1"),
        ("GC", "0.4.0"),
        ("GC", "1.0.0"),
        ("STATUS", "0.3.0"),
        ("STATUS", "1.0.0"),
    ] {
        let mut config = config(&node.agent_socket(), &ADDRESSES);
        config["cniVersion"] = json!(version);
        let output = Call::new(verb, &path_of(&wire.pod), &config).run();
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        let answered = if version.is_empty() { "0.1.0" } else { version };
        assert_eq!(
            (&error["code"], &error["cniVersion"]),
            (&json!(1), &json!(answered))
        );
        let text = error["msg"].as_str().unwrap();
        assert!(text.contains("UP-CNI-003") && text.contains(verb), "{text}");
    }
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["cniVersion"] = json!("0.4.0");
    assert!(
        Call::new("ADD", &path_of(&wire.pod), &config)
            .run()
            .status
            .success()
    );
    assert_silent_success(&Call::new("CHECK", &path_of(&wire.pod), &config).run());
}

#[test]
fn gc_removes_attachments_that_the_runtime_does_not_list() {
    let (mut node, wire) = (TestNode::new("gc", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    assert!(
        call("ADD", &node, &wire)
            .with("CNI_CONTAINERID", Some("one"))
            .run()
            .status
            .success()
    );
    let gc = |key: &str, ids: &[&str]| {
        let valid: Vec<Value> = ids
            .iter()
            .map(|i| json!({ "containerID": i, "ifname": "eth0" }))
            .collect();
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "n",
            "agentSocket": node.agent_socket(),
            key: valid,
        });
        Call::new("GC", "", &config)
            .with("CNI_CONTAINERID", None)
            .with("CNI_NETNS", None)
            .run()
    };
    assert_silent_success(&gc("cni.dev/valid-attachments", &["one", "two"]));
    assert_eq!(pods(&node), 1);
    assert_silent_success(&gc("unrelated", &[]));
    assert_eq!(pods(&node), 1, "without a list nothing is removed");
    assert_silent_success(&gc("cni.dev/attachments", &["two"]));
    assert_eq!(pods(&node), 0);
    assert!(
        wire.pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "the pod's rules are removed"
    );
    until("the proxy's listeners are closed", || {
        let listeners = wire.pod.run(redirect::listeners).unwrap().unwrap();
        listeners.is_empty().then_some(())
    });
}
