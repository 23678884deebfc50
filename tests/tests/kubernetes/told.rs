//! What istiod and people see: the annotation when it is true, and Events with code, cause and next step.

use serde_json::{Value, json};
use underpass_tests::cluster::{AgentNode, Pod};
use underpass_tests::sandbox::{await_within, until};

use super::scene::{AMBIENT, added, annotation, await_annotation, cluster_or_skip, events, refusal};

#[test]
fn the_annotation_says_what_was_verified() {
    let cluster = cluster_or_skip!("the_annotation_says_what_was_verified");
    cluster.namespace("told", AMBIENT);
    let mut node = AgentNode::new(&cluster, "told");
    node.start_agent(&[]);
    let proxy = node.start_proxy();
    node.await_ready();
    let pod = cluster.pod(&node.place, "told", "app");
    until("the watch has told the pod", || node.status(&pod));
    // Frozen, the proxy takes nothing, and the ADD fails.
    node.processes.freeze(proxy, true);
    let error = refusal(&node.add(&pod));
    assert!(error["msg"].as_str().unwrap().contains("UP-AGENT-007"), "{error}");
    assert_eq!(annotation(&cluster, &pod), Value::Null);
    let told = until("an Event tells why", || events(&cluster, &pod, "MeshEnrolmentFailed", "UP-AGENT-007").pop());
    let message = told["message"].as_str().unwrap();
    for part in ["UP-AGENT-007", "Cause: ", "Next step: "] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!((&told["type"], &told["source"]["component"]), (&json!("Warning"), &json!("underpass-agent")));
    node.processes.freeze(proxy, false);
    added(&node, &pod);
    node.await_verified(&pod);
    await_annotation(&cluster, &pod, &json!("enabled"));
    // The API server is away for a while, and what happened meanwhile is written afterwards.
    node.cut_off(true);
    assert!(pod.netns.run(redirect::remove).unwrap().is_ok());
    until("it is repaired", || node.status(&pod).filter(|p| !p["verification"]["lastRepair"].is_null()));
    node.cut_off(false);
    let told = until("an Event tells of the repair", || {
        events(&cluster, &pod, "MeshRedirectionRepaired", "UP-AGENT-005").pop()
    });
    assert!(told["message"].as_str().unwrap().contains("is repaired"), "{told}");
    assert_eq!(annotation(&cluster, &pod), json!("enabled"));
}

#[test]
fn the_same_failure_again_is_the_same_event() {
    let cluster = cluster_or_skip!("the_same_failure_again_is_the_same_event");
    cluster.namespace("again", AMBIENT);
    let mut node = AgentNode::new(&cluster, "again");
    node.start_agent(&[]);
    let pod = cluster.pod(&node.place, "again", "app");
    until("the watch has told the pod", || node.status(&pod));
    for _ in 0..3 {
        let error = refusal(&node.add(&pod));
        assert!(error["msg"].as_str().unwrap().contains("UP-AGENT-006"), "{error}");
    }
    let told = until("the Event counts", || {
        let events = events(&cluster, &pod, "MeshEnrolmentFailed", "UP-AGENT-006");
        assert!(events.len() <= 1, "{events:?}");
        events.into_iter().find(|e| e["count"].as_u64() >= Some(3))
    });
    assert!(told["message"].as_str().unwrap().contains("Next step"), "{told}");
    assert_eq!(annotation(&cluster, &pod), Value::Null);
}

/// More than are written at once; and none is forgotten, nor is what comes later.
#[test]
fn many_failures_are_told_one_after_the_other() {
    let cluster = cluster_or_skip!("many_failures_are_told_one_after_the_other");
    cluster.namespace("many-told", AMBIENT);
    let mut node = AgentNode::new(&cluster, "many-told");
    // Nothing runs in them, so that none can be found.
    let pods: Vec<_> = (0..24).map(|n| cluster.pod(&node.place, "many-told", &format!("lost-{n}"))).collect();
    node.start_agent(&[]);
    node.start_proxy();
    let is_told = |pod: &Pod| !events(&cluster, pod, "MeshEnrolmentFailed", "UP-AGENT-023").is_empty();
    await_within(20, "all are told", || pods.iter().all(is_told).then_some(()));
    let late = cluster.pod(&node.place, "many-told", "late");
    await_within(20, "one that comes later is told, too", || is_told(&late).then_some(()));
}

#[test]
fn a_pod_that_is_not_verified_any_more_is_told() {
    let cluster = cluster_or_skip!("a_pod_that_is_not_verified_any_more_is_told");
    cluster.namespace("unverified", AMBIENT);
    let mut node = AgentNode::new(&cluster, "unverified");
    node.start_agent(&[]);
    let proxy = node.start_proxy();
    node.await_ready();
    let pod = cluster.pod(&node.place, "unverified", "app");
    until("the watch has told the pod", || node.status(&pod));
    added(&node, &pod);
    node.await_verified(&pod);
    node.processes.kill(proxy);
    // Asked to look now, the agent need not wait for its timer.
    assert_eq!(node.processes.request("POST", "127.0.0.1:15014", "/verify?pod=unverified/app").unwrap().0, 200);
    let told = until("an Event tells it", || events(&cluster, &pod, "MeshVerificationFailed", "UP-AGENT-").pop());
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("15001") && message.contains("Next step: "), "{message}");
}
