//! ADD: who joins is known from the API server, or is asked for, or has to wait.

use serde_json::{Value, json};
use underpass_tests::cluster::AgentNode;
use underpass_tests::sandbox::until;

use super::scene::{AMBIENT, added, cluster_or_skip, in_place, label, path, refusal};

#[test]
fn a_pod_joins_by_the_labels_of_its_namespace_and_its_own() {
    let cluster = cluster_or_skip!("a_pod_joins_by_the_labels_of_its_namespace_and_its_own");
    cluster.namespace("add-in", AMBIENT);
    cluster.namespace("add-out", &[]);
    let node = AgentNode::start(&cluster, "add-labels");
    for (namespace, name, mode, joins) in [
        ("add-in", "by-namespace", None, true),
        ("add-in", "opted-out", Some("none"), false),
        ("add-out", "outside", None, false),
        ("add-out", "by-itself", Some("ambient"), true),
    ] {
        let pod = cluster.pod(&node.place, namespace, name);
        label(&cluster, &path(&pod), mode);
        let known = |p: &Value| mode.is_none_or(|m| p["reason"].as_str().is_some_and(|r| r.contains(m)));
        node.await_status("the watch has told the label", &pod, known);
        added(&node, &pod);
        assert_eq!(in_place(&pod), joins, "{name}");
        let status = node.status(&pod).unwrap();
        assert_eq!(status["state"], if joins { "enrolled" } else { "skipped" }, "{status}");
        assert!(node.del(&pod).status.success());
        assert!(!in_place(&pod));
    }
}

#[test]
fn a_pod_that_the_watch_has_not_told_yet_is_asked_for() {
    let cluster = cluster_or_skip!("a_pod_that_the_watch_has_not_told_yet_is_asked_for");
    cluster.namespace("add-new", AMBIENT);
    let node = AgentNode::start(&cluster, "add-new");
    // What the watch would tell is lost on its way, and sent again only a while after the way is mended.
    node.cut_off(true);
    let pod = cluster.pod(&node.place, "add-new", "new");
    node.cut_off(false);
    added(&node, &pod);
    node.await_verified(&pod);
    // A namespace that is as new, and a pod whose object comes in the same moment.
    cluster.namespace("add-newer", AMBIENT);
    let pod = cluster.pod(&node.place, "add-newer", "newer");
    added(&node, &pod);
    assert!(in_place(&pod));
}

#[test]
fn another_pod_of_the_same_name_is_not_taken_for_it() {
    let cluster = cluster_or_skip!("another_pod_of_the_same_name_is_not_taken_for_it");
    cluster.namespace("add-uid", AMBIENT);
    let node = AgentNode::start(&cluster, "add-uid");
    let mut pod = cluster.pod(&node.place, "add-uid", "web-0");
    let uid = std::mem::replace(&mut pod.uid, "00000000-1111-2222-3333-444455556666".to_owned());
    let error = refusal(&node.add(&pod));
    assert_eq!(error["code"], 11, "a runtime tries again: {error}");
    assert!(error["msg"].as_str().unwrap().contains("UP-AGENT-022"), "{error}");
    assert!(!in_place(&pod));
    pod.uid = uid;
    added(&node, &pod);
    // And one that is not there at all.
    cluster.delete(&pod);
    assert!(node.del(&pod).status.success());
    until("the pod is forgotten", || node.status(&pod).is_none().then_some(()));
    let error = refusal(&node.add(&pod));
    assert!(error["msg"].as_str().unwrap().contains("UP-AGENT-022"), "{error}");
}

#[test]
fn without_the_api_server_known_pods_start_and_unknown_ones_wait() {
    let cluster = cluster_or_skip!("without_the_api_server_known_pods_start_and_unknown_ones_wait");
    cluster.namespace("add-away", AMBIENT);
    cluster.namespace("add-away-out", &[]);
    let node = AgentNode::start(&cluster, "add-away");
    let known = cluster.pod(&node.place, "add-away", "known");
    let outside = cluster.pod(&node.place, "add-away-out", "outside");
    for pod in [&known, &outside] {
        until("the watch has told the pod", || node.status(pod));
    }
    node.cut_off(true);
    let unknown = cluster.pod(&node.place, "add-away-out", "unknown");
    added(&node, &known);
    node.await_verified(&known);
    added(&node, &outside);
    assert!(!in_place(&outside));
    let error = refusal(&node.add(&unknown));
    assert_eq!(error["code"], json!(11), "{error}");
    assert!(error["msg"].as_str().unwrap().contains("UP-AGENT-021"), "{error}");
    assert!(!in_place(&unknown));
    // The plugin itself lets the pods of excluded namespaces through, and so does the agent.
    cluster.namespace("excluded", AMBIENT);
    let excluded = cluster.pod(&node.place, "excluded", "excluded");
    added(&node, &excluded);
    assert!(!in_place(&excluded));
    node.cut_off(false);
    added(&node, &unknown);
    assert!(!in_place(&unknown), "it is known now, and outside");
}
