//! Pods of the mesh that no plugin presented, because the runtime does not call it, or because they
//! are older than the agent.

use agent_status::{LateCause, PodStatus, UnreadyReason};
use serde_json::json;
use underpass_tests::cluster::{AgentNode, Cluster, ClusterPod, container_of};
use underpass_tests::sandbox::until;

use super::fixture::{AMBIENT, add_pod, cluster_or_skip, events_of, label, path};
use super::pod_process::PodProcess;

/// Starts a pod as a kubelet does whose runtime does not call the plugin.
fn start(cluster: &Cluster, pod: &ClusterPod) -> PodProcess {
    let api = &cluster.kubernetes.api;
    let created = &api.get(&path(pod)).unwrap()["metadata"]["creationTimestamp"];
    let status = json!({ "status": { "startTime": created } });
    api.patch(&format!("{}/status", path(pod)), &status)
        .unwrap();
    let below = format!("kubepods/pod{}/{}", pod.uid, container_of(pod));
    PodProcess::start(pod, &below)
}

fn cause(status: &PodStatus) -> Option<LateCause> {
    status.started_outside.map(|started| started.cause)
}

/// Number of pods in the metric.
fn counted(node: &AgentNode, cause: &str) -> u64 {
    let metrics = node.processes.get("127.0.0.1:15014", "/metrics").unwrap().1;
    let series = format!("underpass_started_outside_seconds_count{{cause=\"{cause}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn a_runtime_that_does_not_call_the_plugin_makes_the_agent_unready_until_an_add_arrives() {
    let cluster = cluster_or_skip!();
    cluster.namespace("uncalled", AMBIENT);
    let mut node = AgentNode::new(&cluster, "uncalled");
    let agent = node.start_agent(&[]);
    node.start_proxy();
    node.await_ready();
    let missed = |node: &AgentNode| node.processes.status().plugin_not_called;
    let mut pods = Vec::new();
    // The first ones start before the agent has been ready for a second.
    until("two pods start without an ADD", || {
        let pod = cluster.pod(&node.cluster_node, "uncalled", &format!("p{}", pods.len()));
        let process = start(&cluster, &pod);
        let status = node.await_verified(&pod);
        let count = missed(&node).map_or(0, |missed| missed.pods);
        pods.push((pod, process, cause(&status)));
        let uncalled = |p: &&(_, _, Option<LateCause>)| p.2 == Some(LateCause::PluginNotCalled);
        assert_eq!(pods.iter().filter(uncalled).count(), count as usize);
        let expected = match count {
            0 | 1 => (200, None),
            _ => (503, Some(UnreadyReason::PluginNotCalled)),
        };
        assert_eq!(node.readiness(), expected);
        (count == 2).then_some(())
    });
    assert!(counted(&node, "plugin_not_called") == 2);
    let (pod, ..) = pods.last().unwrap();
    let last = missed(&node).unwrap().last;
    assert_eq!(last, format!("uncalled/{}", pod.name));
    let event = until("an Event reports it", || {
        events_of(&cluster, pod, "MeshStartedOutside", "UP-AGENT-026").pop()
    });
    let message = event["message"].as_str().unwrap();
    for part in ["outside the mesh for ", " s", "Next step: "] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(event["type"], "Warning");

    // A label that is set after the start says nothing about the runtime.
    let labelled = cluster.pod(&node.cluster_node, "uncalled", "labelled");
    label(&cluster, &path(&labelled), Some("none"));
    node.await_status("the label is known", &labelled, |p| {
        p.reason.contains("none")
    });
    let _process = start(&cluster, &labelled);
    label(&cluster, &path(&labelled), None);
    assert_eq!(node.await_verified(&labelled).started_outside, None);
    assert_eq!(missed(&node).unwrap().pods, 2);

    let called = cluster.pod(&node.cluster_node, "uncalled", "called");
    add_pod(&node, &called);
    assert_eq!(node.await_verified(&called).started_outside, None);
    assert_eq!((node.readiness(), missed(&node)), ((200, None), None));

    // Its process outlives a DEL: it joins again, and the plugin was called for it.
    let _process = start(&cluster, &called);
    assert!(node.del(&called).status.success());
    label(&cluster, &path(&called), Some("ambient")); // pods are searched for after changes
    until("it is found by its process", || {
        let found = format!("event=\"pod_found_by_processes\" uid=\"{}\"", called.uid);
        node.processes.log("agent").contains(&found).then_some(())
    });
    assert_eq!(node.await_verified(&called).started_outside, None);
    assert_eq!(missed(&node), None);

    // The next agent takes the pods over, and blames no one.
    node.processes.kill(agent);
    node.start_agent(&[]);
    node.await_ready();
    let status = node.await_verified(pod);
    assert_eq!(cause(&status), Some(LateCause::PluginNotCalled));
    assert_eq!(missed(&node), None);
    assert_eq!(counted(&node, "plugin_not_called"), 0);
}

#[test]
fn a_pod_older_than_the_agent_is_reported_with_its_time_outside() {
    let cluster = cluster_or_skip!();
    cluster.namespace("outside", AMBIENT);
    let mut node = AgentNode::new(&cluster, "outside");
    let pod = cluster.pod(&node.cluster_node, "outside", "older");
    let _process = start(&cluster, &pod);
    node.start_agent(&[]);
    node.start_proxy();
    let status = node.await_verified(&pod);
    let started = status.started_outside.unwrap();
    assert_eq!(started.cause, LateCause::AgentNotReady);
    assert!((1..600_000).contains(&started.outside_ms), "{started:?}");
    let event = until("an Event reports it", || {
        events_of(&cluster, &pod, "MeshStartedOutside", "UP-AGENT-027").pop()
    });
    assert_eq!(event["type"], "Normal");
    assert_eq!(counted(&node, "agent_not_ready"), 1);
    node.await_ready();
    assert_eq!(node.processes.status().plugin_not_called, None);
}

#[test]
fn without_a_chain_pods_join_after_their_start_and_the_agent_is_ready() {
    let cluster = cluster_or_skip!();
    cluster.namespace("unchained", AMBIENT);
    let mut node = AgentNode::new(&cluster, "unchained");
    node.start_agent(&["--chained=false"]);
    node.start_proxy();
    node.await_ready();
    // Long after the agent was ready, which would be the runtime's fault with a chain.
    std::thread::sleep(std::time::Duration::from_secs(3));
    for name in ["one", "two"] {
        let pod = cluster.pod(&node.cluster_node, "unchained", name);
        let _process = start(&cluster, &pod);
        let started = node.await_verified(&pod).started_outside.unwrap();
        assert_eq!(started.cause, LateCause::AgentNotReady);
    }
    assert_eq!(
        (node.readiness(), node.processes.status().plugin_not_called),
        ((200, None), None)
    );
}
