//! Connections that bypass the proxy because of annotations or because they are older than the
//! pod's join: probes take precedence, users are informed, and an administrator can forbid them.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::ffi::OsStr;
use std::process::Command;

use agent_status::{PodStatus, VerificationState};
use netns::NetNs;
use serde_json::Value;
use underpass_tests::binaries::binary;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, Wire};

/// A mesh with these annotations of the pod, which belongs to it if `mode` is `ambient`.
fn mesh(mode: &str, annotations: &str) -> String {
    format!(
        r#"
namespaces:
  - {{ name: default, labels: {{ istio.io/dataplane-mode: {mode} }} }}
  - {{ name: outside }}
workloads:
  - {{ name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"], annotations: {{ {annotations} }} }}
  - {{ name: peer, namespace: outside, workloadIps: [10.78.0.2, "fd78::2"] }}
"#
    )
}

fn write_mesh(node: &TestNode, text: &str) {
    let staged = node.file("mesh.new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, node.file("mesh.yaml")).unwrap();
}

/// A node with an agent with these arguments and a proxy.
fn start(name: &str, mesh: &str, arguments: &[&str]) -> (TestNode, Wire) {
    let (mut node, wire) = (TestNode::new(name, mesh), Wire::new());
    let arguments: Vec<&OsStr> = arguments.iter().map(|a| OsStr::new(*a)).collect();
    node.start_agent_with(&arguments);
    node.start_ready_proxy();
    (node, wire)
}

/// The result of an ADD: whether it succeeded, and what the plugin printed.
fn add(node: &TestNode, wire: &Wire) -> (bool, String) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    (
        added.status.success(),
        String::from_utf8(added.stdout).unwrap(),
    )
}

fn await_pod(node: &TestNode, what: &str, holds: impl Fn(&PodStatus) -> bool) -> PodStatus {
    until(what, || Some(node.pod("client")).filter(&holds))
}

fn state(pod: &PodStatus) -> Option<VerificationState> {
    pod.verification.as_ref().map(|v| v.state)
}

fn is_verified(pod: &PodStatus) -> bool {
    state(pod) == Some(VerificationState::Verified)
}

fn underpass(node: &NetNs, args: &str) -> String {
    let mut command = Command::new(binary("underpass"));
    netns::process::in_netns(&mut command, node).unwrap();
    let command = command.args(args.split(' '));
    let output = command
        .env_remove("UNDERPASS_AGENT_ADMIN")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn metrics(node: &TestNode) -> String {
    node.get("127.0.0.1:15014", "/metrics").unwrap().1
}

#[test]
fn exclusions_of_the_probes_destination_leave_the_pod_verified() {
    for capture in ["routed", "nat", "nat-iptables-nft"] {
        let annotations = "underpass.io/exclude-outbound-cidrs: \"169.254.0.0/16, fc00::/7\", \
                           underpass.io/exclude-outbound-ports: \"15099,3306\"";
        let name = format!("exclude-probes-{capture}");
        let (node, wire) = start(
            &name,
            &mesh("ambient", annotations),
            &["--capture", capture],
        );
        let (added, text) = add(&node, &wire);
        assert!(added, "{text}");
        await_pod(&node, "the pod is verified", is_verified);
        let pod = node.verify("client");
        assert!(is_verified(&pod), "{pod:?}");
    }
}

#[test]
fn exclusions_appear_in_status_why_metrics_and_check() {
    let annotations = "underpass.io/exclude-outbound-cidrs: 10.78.0.0/24, \
                       underpass.io/exclude-inbound-ports: \"9100\"";
    let (node, wire) = start("exclude-report", &mesh("ambient", annotations), &[]);
    assert!(add(&node, &wire).0);
    await_pod(&node, "the pod is verified", is_verified);
    let line = "default/client: outside the mesh: ports 9100; destinations 10.78.0.0/24";
    let status = underpass(&node.netns, "status");
    assert!(status.contains(line), "{status}");
    let check = underpass(&node.netns, "check");
    assert!(check.contains(line), "{check}");
    assert!(metrics(&node).contains("underpass_pods_with_exclusions 1"));
    let excludes = "default/client excludes destination 10.78.0.0/24";
    let why = underpass(&node.netns, "why client 10.78.0.2:80");
    assert!(why.contains(excludes), "{why}");
    let why: Value =
        serde_json::from_str(&underpass(&node.netns, "why client 10.78.0.2:80 --json")).unwrap();
    assert!(
        why["bypasses"][0].as_str().unwrap().contains(excludes),
        "{why}"
    );
    let other = underpass(&node.netns, "why client 192.0.2.1:80");
    assert!(!other.is_empty() && !other.contains("excludes"), "{other}");
}

#[test]
fn halves_that_exclude_everything_are_rejected_like_the_whole() {
    for cidrs in ["0.0.0.0/0", "0.0.0.0/1,128.0.0.0/1", "::/1,8000::/1"] {
        let annotations = format!("underpass.io/exclude-outbound-cidrs: \"{cidrs}\"");
        let (node, wire) = start("exclude-all", &mesh("ambient", &annotations), &[]);
        let (added, text) = add(&node, &wire);
        assert!(!added && text.contains("UP-AGENT-015"), "{cidrs}: {text}");
    }
}

#[test]
fn a_node_that_forbids_exclusions_rejects_new_pods_and_reports_running_ones() {
    let forbidding = ["--allow-exclusions", "false"];
    let excluding = mesh("ambient", "underpass.io/exclude-inbound-ports: \"9100\"");
    let (node, wire) = start("exclude-forbidden", &excluding, &forbidding);
    let (added, text) = add(&node, &wire);
    assert!(!added && text.contains("UP-AGENT-028"), "{text}");

    write_mesh(&node, &mesh("ambient", ""));
    until("the pod starts", || add(&node, &wire).0.then_some(()));
    await_pod(&node, "the pod is verified", is_verified);
    write_mesh(&node, &excluding);
    let kept = await_pod(&node, "the pod is not verified", |p| !is_verified(p));
    let reason = kept.verification.unwrap().reason.unwrap();
    assert!(
        reason.contains("UP-AGENT-028") && reason.contains("exclude-inbound-ports"),
        "{reason}"
    );
    assert!(kept.exclusions.is_none(), "the plan is the earlier one");
    write_mesh(&node, &mesh("ambient", ""));
    await_pod(&node, "the pod is verified again", is_verified);
}

#[test]
fn connections_older_than_the_join_are_counted_or_reset_as_the_node_says() {
    let cases = [("keep", true), ("reset", false)];
    for (capture, (existing, survive)) in ["routed", "nat"]
        .iter()
        .flat_map(|capture| cases.map(|case| (capture, case)))
    {
        let arguments = ["--capture", capture, "--existing-connections", existing];
        let name = format!("existing-{existing}-{capture}");
        let (node, wire) = start(&name, &mesh("none", ""), &arguments);
        assert!(add(&node, &wire).0);
        let server = plain(&wire.peer, (PEER4, 8001).into());
        let client = connect(&wire.pod, (PEER4, 8001).into()).unwrap();
        let _served = accept(&server).unwrap();
        write_mesh(&node, &mesh("ambient", ""));
        let joined = await_pod(&node, "the pod is verified", is_verified);
        assert_eq!(joined.exempted_connections, usize::from(survive));
        let count = format!("underpass_exempted_connections {}", u8::from(survive));
        assert!(metrics(&node).contains(&count), "{existing}, {capture}");
        assert_eq!(
            client.take_error().unwrap().is_none(),
            survive,
            "{existing}, {capture}"
        );
        let status = underpass(&node.netns, "status");
        assert_eq!(
            status.contains("older than the pod's join"),
            survive,
            "{status}"
        );
    }
}
