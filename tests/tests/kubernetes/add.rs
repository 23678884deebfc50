//! ADD of pods that the agent knows, has to fetch, or cannot fetch.

use agent_status::{EnrolmentReason, PodState};
use serde_json::json;
use underpass_tests::cluster::AgentNode;
use underpass_tests::sandbox::until;

use super::fixture::{AMBIENT, add_error, add_pod, cluster_or_skip, has_rules, label, path};

#[test]
fn labels_of_namespace_and_pod_decide_enrolment() {
    let cluster = cluster_or_skip!();
    cluster.namespace("add-in", AMBIENT);
    cluster.namespace("add-out", &[]);
    let node = AgentNode::start(&cluster, "add-labels");
    for (namespace, name, mode, joins) in [
        ("add-in", "by-namespace", None, true),
        ("add-in", "opted-out", Some("none"), false),
        ("add-out", "outside", None, false),
        ("add-out", "by-itself", Some("ambient"), true),
    ] {
        let pod = cluster.pod(&node.cluster_node, namespace, name);
        label(&cluster, &path(&pod), mode);
        let expected = match (mode, joins) {
            (None, true) => EnrolmentReason::NamespaceLabel,
            (None, false) => EnrolmentReason::NoLabel,
            (Some(_), true) => EnrolmentReason::PodLabel,
            (Some(_), false) => EnrolmentReason::OptedOut,
        };
        // The pod has no process that the agent finds: then the reason is an error code.
        node.await_status("the watch has reported the label", &pod, |p| {
            p.reason_code == Some(expected) || joins && p.reason.starts_with("UP-AGENT-023")
        });
        add_pod(&node, &pod);
        assert_eq!(has_rules(&pod), joins, "{name}");
        let status = node.status(&pod).unwrap();
        let state = if joins {
            PodState::Enrolled
        } else {
            PodState::Skipped
        };
        assert_eq!(
            (status.state, status.reason_code),
            (state, Some(expected)),
            "{status:?}"
        );
        assert!(node.del(&pod).status.success());
        assert!(!has_rules(&pod));
    }
}

#[test]
fn a_pod_that_the_watch_has_not_reported_is_fetched() {
    let cluster = cluster_or_skip!();
    cluster.namespace("add-new", AMBIENT);
    let node = AgentNode::start(&cluster, "add-new");
    // The watch's packets are lost, and retransmitted only some time after the block is removed.
    node.block_api_server(true);
    let pod = cluster.pod(&node.cluster_node, "add-new", "new");
    node.block_api_server(false);
    add_pod(&node, &pod);
    node.await_verified(&pod);
    // A new namespace, and a pod created at the same moment.
    cluster.namespace("add-newer", AMBIENT);
    let pod = cluster.pod(&node.cluster_node, "add-newer", "newer");
    add_pod(&node, &pod);
    assert!(has_rules(&pod));
}

#[test]
fn a_pod_with_another_uid_is_not_mistaken_for_the_pod() {
    let cluster = cluster_or_skip!();
    cluster.namespace("add-uid", AMBIENT);
    let node = AgentNode::start(&cluster, "add-uid");
    let mut pod = cluster.pod(&node.cluster_node, "add-uid", "web-0");
    let uid = std::mem::replace(
        &mut pod.uid,
        "00000000-1111-2222-3333-444455556666".to_owned(),
    );
    let error = add_error(&node.add(&pod));
    assert_eq!(error["code"], 11, "the runtime should retry: {error}");
    assert!(
        error["msg"].as_str().unwrap().contains("UP-AGENT-022"),
        "{error}"
    );
    assert!(!has_rules(&pod));
    pod.uid = uid;
    add_pod(&node, &pod);
    // A pod that does not exist.
    cluster.delete(&pod);
    assert!(node.del(&pod).status.success());
    until("the agent no longer lists the pod", || {
        node.status(&pod).is_none().then_some(())
    });
    let error = add_error(&node.add(&pod));
    assert!(
        error["msg"].as_str().unwrap().contains("UP-AGENT-022"),
        "{error}"
    );
}

#[test]
fn during_an_api_server_outage_known_pods_start_and_unknown_ones_wait() {
    let cluster = cluster_or_skip!();
    cluster.namespace("add-away", AMBIENT);
    cluster.namespace("add-away-out", &[]);
    let node = AgentNode::start(&cluster, "add-away");
    let known = cluster.pod(&node.cluster_node, "add-away", "known");
    let outside = cluster.pod(&node.cluster_node, "add-away-out", "outside");
    for pod in [&known, &outside] {
        until("the watch has reported the pod", || node.status(pod));
    }
    node.block_api_server(true);
    let unknown = cluster.pod(&node.cluster_node, "add-away-out", "unknown");
    add_pod(&node, &known);
    node.await_verified(&known);
    add_pod(&node, &outside);
    assert!(!has_rules(&outside));
    let error = add_error(&node.add(&unknown));
    assert_eq!(error["code"], json!(11), "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("UP-AGENT-021"),
        "{error}"
    );
    assert!(!has_rules(&unknown));
    // Plugin and agent skip pods of excluded namespaces.
    cluster.namespace("excluded", AMBIENT);
    let excluded = cluster.pod(&node.cluster_node, "excluded", "excluded");
    add_pod(&node, &excluded);
    assert!(!has_rules(&excluded));
    node.block_api_server(false);
    add_pod(&node, &unknown);
    assert!(
        !has_rules(&unknown),
        "the pod is known now and outside the mesh"
    );
}
