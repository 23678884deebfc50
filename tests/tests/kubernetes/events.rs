//! The annotation of verified pods, and Events with code, cause and next step.

use serde_json::{Value, json};
use underpass_tests::cluster::{AgentNode, ClusterPod};
use underpass_tests::sandbox::until;

use super::fixture::{
    AMBIENT, add_error, add_pod, annotation, await_annotation, cluster_or_skip, events_of,
};

#[test]
fn the_annotation_reflects_the_verified_state() {
    let cluster = cluster_or_skip!();
    cluster.namespace("event", AMBIENT);
    let mut node = AgentNode::new(&cluster, "event");
    node.start_agent(&[]);
    let proxy = node.start_proxy();
    node.await_ready();
    let pod = cluster.pod(&node.cluster_node, "event", "app");
    until("the watch has reported the pod", || node.status(&pod));
    // A frozen proxy does not answer, so the ADD fails.
    node.processes.freeze(proxy, true);
    add_error(&node.add_within(&pod, 1500)); // the agent's, or the plugin's if it is busy
    assert_eq!(annotation(&cluster, &pod), Value::Null);
    let event = until("an Event gives the reason", || {
        events_of(&cluster, &pod, "MeshEnrolmentFailed", "UP-AGENT-007").pop()
    });
    let message = event["message"].as_str().unwrap();
    for part in ["UP-AGENT-007", "Cause: ", "Next step: "] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        (&event["type"], &event["source"]["component"]),
        (&json!("Warning"), &json!("underpass-agent"))
    );
    node.processes.freeze(proxy, false);
    add_pod(&node, &pod);
    node.await_verified(&pod);
    await_annotation(&cluster, &pod, &json!("enabled"));
    // Events during an API server outage are written afterwards.
    node.block_api_server(true);
    assert!(pod.netns.run(redirect::remove).unwrap().is_ok());
    until("it is repaired", || {
        node.status(&pod).filter(|p| {
            p.verification
                .as_ref()
                .is_some_and(|v| v.last_repair.is_some())
        })
    });
    node.block_api_server(false);
    until("an Event reports the repair", || {
        events_of(&cluster, &pod, "MeshRedirectionRepaired", "UP-AGENT-005").pop()
    });
    assert_eq!(annotation(&cluster, &pod), json!("enabled"));
}

#[test]
fn a_repeated_failure_increments_its_event() {
    let cluster = cluster_or_skip!();
    cluster.namespace("again", AMBIENT);
    let mut node = AgentNode::new(&cluster, "again");
    node.start_agent(&[]);
    let pod = cluster.pod(&node.cluster_node, "again", "app");
    until("the watch has reported the pod", || node.status(&pod));
    for _ in 0..3 {
        add_error(&node.add_within(&pod, 1500)); // the agent's, or the plugin's if it is busy
    }
    let event = until("the Event counts", || {
        let events = events_of(&cluster, &pod, "MeshEnrolmentFailed", "UP-AGENT-006");
        assert!(events.len() <= 1, "{events:?}");
        events.into_iter().find(|e| e["count"].as_u64() >= Some(3))
    });
    assert!(
        event["message"].as_str().unwrap().contains("Next step"),
        "{event}"
    );
    assert_eq!(annotation(&cluster, &pod), Value::Null);
}

/// More failures than are written at once, and a later one.
#[test]
fn many_failures_all_become_events() {
    let cluster = cluster_or_skip!();
    cluster.namespace("many-event", AMBIENT);
    let mut node = AgentNode::new(&cluster, "many-event");
    // The pods have no processes, so none can be found.
    let pods: Vec<_> = (0..24)
        .map(|n| cluster.pod(&node.cluster_node, "many-event", &format!("lost-{n}")))
        .collect();
    node.start_agent(&[]);
    node.start_proxy();
    let is_reported = |pod: &ClusterPod| {
        !events_of(&cluster, pod, "MeshEnrolmentFailed", "UP-AGENT-023").is_empty()
    };
    until("all failures are Events", || {
        pods.iter().all(is_reported).then_some(())
    });
    let late = cluster.pod(&node.cluster_node, "many-event", "late");
    until("a later failure is an Event", || {
        is_reported(&late).then_some(())
    });
}

#[test]
fn a_pod_that_is_no_longer_verified_gets_an_event() {
    let cluster = cluster_or_skip!();
    cluster.namespace("unverified", AMBIENT);
    let mut node = AgentNode::new(&cluster, "unverified");
    node.start_agent(&[]);
    let proxy = node.start_proxy();
    node.await_ready();
    let pod = cluster.pod(&node.cluster_node, "unverified", "app");
    until("the watch has reported the pod", || node.status(&pod));
    add_pod(&node, &pod);
    node.await_verified(&pod);
    node.processes.kill(proxy);
    // A requested verification does not wait for the timer.
    assert_eq!(
        node.processes
            .request("POST", "127.0.0.1:15014", "/verify?pod=unverified/app")
            .unwrap()
            .0,
        200
    );
    let event = until("an Event reports it", || {
        events_of(&cluster, &pod, "MeshVerificationFailed", "UP-AGENT-").pop()
    });
    let message = event["message"].as_str().unwrap();
    assert!(
        message.contains("15001") && message.contains("Next step: "),
        "{message}"
    );
}
