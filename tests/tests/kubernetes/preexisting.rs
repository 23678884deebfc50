//! Pods that are older than the agent, which finds them by their processes and control groups.

use agent_status::PodState;
use serde_json::json;
use underpass_tests::cluster::{AgentNode, ClusterPod, container_of};
use underpass_tests::cni::Call;
use underpass_tests::sandbox::until;

use super::fixture::{
    AMBIENT, add_pod, await_annotation, cluster_or_skip, events_of, has_rules, path,
};
use super::pod_process::PodProcess;

#[test]
fn pods_older_than_the_agent_are_found_by_their_processes() {
    let cluster = cluster_or_skip!();
    cluster.namespace("older", AMBIENT);
    let mut node = AgentNode::new(&cluster, "older");
    let [cgroupfs, systemd, lost] =
        ["cgroupfs", "systemd", "lost"].map(|name| cluster.pod(&node.cluster_node, "older", name));
    let (uid, id) = (&cgroupfs.uid, container_of(&cgroupfs));
    let _first = PodProcess::start(&cgroupfs, &format!("kubepods/besteffort/pod{uid}/{id}"));
    let (uid, id) = (systemd.uid.replace('-', "_"), container_of(&systemd));
    let slice =
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
    let _second = PodProcess::start(&systemd, &format!("{slice}/cri-containerd-{id}.scope"));
    // A process with the pod's control group in another namespace.
    let other = cluster.pod(&node.cluster_node, "older", "other");
    let _third = PodProcess::start(
        &ClusterPod {
            uid: lost.uid.clone(),
            name: "lost".into(),
            ..other
        },
        &format!("kubepods/pod{}", lost.uid),
    );

    node.start_agent(&[]);
    node.start_proxy();
    for pod in [&cgroupfs, &systemd] {
        node.await_verified(pod);
        assert!(has_rules(pod));
        await_annotation(&cluster, pod, &json!("enabled"));
    }
    node.await_status("the lost pod is reported", &lost, |p| {
        p.reason.contains("UP-AGENT-023")
    });
    assert!(!has_rules(&lost));
    let event = until("an Event reports the lost pod", || {
        events_of(&cluster, &lost, "MeshEnrolmentFailed", "UP-AGENT-023").pop()
    });
    assert!(
        event["message"].as_str().unwrap().contains("Next step: "),
        "{event}"
    );
    // DEL works as for any other pod.
    assert!(node.del(&cgroupfs).status.success());
    until("the agent has released it", || {
        node.status(&cgroupfs)
            .is_none_or(|p| p.state != PodState::Enrolled)
            .then_some(())
    });
    add_pod(&node, &lost);
    node.await_verified(&lost);
}

/// The runtime knows a static pod by the hash of its manifest, the API server by another uid.
#[test]
fn static_pods_start_and_are_found_when_already_running() {
    let cluster = cluster_or_skip!();
    cluster.namespace("static", AMBIENT);
    let mut node = AgentNode::new(&cluster, "static");
    let older = cluster.static_pod(&node.cluster_node, "static", "older");
    let (uid, id) = (&older.uid, container_of(&older));
    let slice = format!("system.slice/kubepods-burstable-pod{uid}.slice:cri-containerd:{id}");
    let process = PodProcess::start(&older, &slice);
    node.start_agent(&[]);
    node.start_proxy();
    node.await_verified(&older);
    await_annotation(&cluster, &older, &json!("enabled"));
    // As a new sandbox of the same pod.
    assert!(node.del(&older).status.success());
    drop(process);
    add_pod(&node, &older);
    node.await_verified(&older);
    assert!(has_rules(&older));
}

/// The process by which a pod was found ends before the pod could join, or while no agent runs.
#[test]
fn a_pod_whose_process_has_ended_is_found_by_another() {
    let cluster = cluster_or_skip!();
    cluster.namespace("ended", AMBIENT);
    let mut node = AgentNode::new(&cluster, "ended");
    let pod = cluster.pod(&node.cluster_node, "ended", "pod");
    let start = |id: &str| PodProcess::start(&pod, &format!("kubepods/pod{}/{id}", pod.uid));
    let first = start("first");
    let agent = node.start_agent(&[]);
    node.await_status("it cannot join without a proxy", &pod, |p| {
        p.reason.contains("UP-AGENT-006")
    });
    drop(first);
    let second = start("second");
    node.start_proxy();
    node.await_verified(&pod);

    // The next agent uses the known process, and the one after that finds another.
    node.processes.kill(agent);
    let agent = node.start_agent(&[]);
    node.await_verified(&pod);
    node.processes.kill(agent);
    drop(second);
    let _third = start("third");
    node.start_agent(&[]);
    node.await_verified(&pod);
    assert!(has_rules(&pod));
    let log = node.processes.log("agent");
    assert_eq!(
        log.matches("event=\"pod_found_by_processes\"").count(),
        3,
        "{log}"
    );
}

/// As CRI-O runs pods without a pause container: no process belongs to the sandbox's id, and none
/// is there while the containers restart.
#[test]
fn a_pod_without_a_pause_container_is_found_kept_and_released() {
    let cluster = cluster_or_skip!();
    cluster.namespace("no-pause", AMBIENT);
    let mut node = AgentNode::new(&cluster, "no-pause");
    let pod = cluster.pod(&node.cluster_node, "no-pause", "pod");
    let start = |container: &str| {
        let id = container.repeat(32);
        PodProcess::start(&pod, &format!("kubepods/pod{}/crio-{id}", pod.uid))
    };
    let first = start("a1");
    let agent = node.start_agent(&[]);
    node.start_proxy();
    node.await_verified(&pod);
    drop(first);
    assert!(collect_garbage(&node, &[&container_of(&pod)]));
    node.await_verified(&pod);
    // The next agent finds it by the process of a restarted container.
    node.processes.kill(agent);
    let _second = start("b2");
    node.start_agent(&[]);
    node.await_verified(&pod);
    assert!(collect_garbage(&node, &[]), "its attachment is not known");
    node.await_verified(&pod);
    assert!(has_rules(&pod));
    assert!(node.del(&pod).status.success());
    until("the agent has released it", || {
        let status = node.status(&pod);
        status
            .is_none_or(|p| p.state != PodState::Enrolled)
            .then_some(())
    });
    assert!(!has_rules(&pod));
}

/// Runs GC, like the runtime, with the ids of the containers that it has.
fn collect_garbage(node: &AgentNode, valid: &[&str]) -> bool {
    let valid: Vec<_> = valid
        .iter()
        .map(|id| json!({ "containerID": id, "ifname": "eth0" }))
        .collect();
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "test",
        "agentSocket": node.processes.agent_socket(),
        "cni.dev/valid-attachments": valid,
    });
    let call = Call::new("GC", "", &config).with("CNI_CONTAINERID", None);
    call.with("CNI_NETNS", None).run().status.success()
}

/// The kubelet creates new sandboxes for the pods that it knows, with the same uids, and deletes
/// the earlier ones only afterwards, when their namespaces may no longer exist.
#[test]
fn a_pod_with_several_sandboxes_after_a_restart_of_the_node_is_served_in_the_newest() {
    let cluster = cluster_or_skip!();
    cluster.namespace("reboot", AMBIENT);
    let mut node = AgentNode::new(&cluster, "reboot");
    let [first, second, third] =
        ["pod", "second", "third"].map(|name| cluster.pod(&node.cluster_node, "reboot", name));
    for spare in [&second, &third] {
        cluster.delete(spare);
    }
    let sandbox = |of: ClusterPod| ClusterPod {
        uid: first.uid.clone(),
        name: first.name.clone(),
        ..of
    };
    let [second, third] = [sandbox(second), sandbox(third)];
    let [a, b, c] = ["a1", "b2", "c3"].map(|id| id.repeat(32));
    let call = |node: &AgentNode, verb: &str, id: &str, pod: &ClusterPod| {
        let call = node.call(verb, pod).with("CNI_CONTAINERID", Some(id));
        let output = call.run();
        assert!(output.status.success(), "{verb}: {output:?}");
    };
    let has_addresses = |pod: &ClusterPod| {
        let ips = pod.ips.map(|ip| json!({ "ip": ip }));
        let status = json!({ "status": { "podIP": pod.ips[0], "podIPs": ips } });
        let path = format!("{}/status", path(&first));
        cluster.kubernetes.api.patch(&path, &status).unwrap();
    };
    let agent = node.start_agent(&[]);
    node.start_proxy();
    call(&node, "ADD", &a, &first);
    node.await_verified(&first);

    node.processes.kill(agent);
    let state = node.processes.file("state/pods.json");
    let text = std::fs::read(&state).unwrap();
    let mut records: serde_json::Value = serde_json::from_slice(&text).unwrap();
    records["bootId"] = json!("another");
    std::fs::write(&state, records.to_string()).unwrap();
    node.start_agent(&[]);
    call(&node, "ADD", &b, &second);
    has_addresses(&second);
    node.await_verified(&first);
    let del = node.call("DEL", &first).with("CNI_CONTAINERID", Some(&a));
    assert!(del.with("CNI_NETNS", None).run().status.success());
    assert!(has_rules(&second));
    // The second sandbox fails, and there is a third before the second is deleted.
    call(&node, "ADD", &c, &third);
    has_addresses(&third);
    call(&node, "DEL", &b, &second);
    call(&node, "DEL", &a, &first);
    assert!(collect_garbage(&node, &[&c]));
    let status = node.await_verified(&third);
    assert_eq!(status.ips, third.ips);
    assert_eq!([&second, &third].map(has_rules), [false, true]);
    assert_eq!(
        node.processes
            .pods()
            .iter()
            .filter(|p| p.uid.as_ref() == Some(&first.uid))
            .count(),
        1
    );
}

/// Processes of an earlier sandbox of the pod remain in its namespace.
#[test]
fn of_several_namespaces_of_a_pod_the_one_with_its_addresses_is_found() {
    let cluster = cluster_or_skip!();
    cluster.namespace("two", AMBIENT);
    let mut node = AgentNode::new(&cluster, "two");
    let earlier = cluster.pod(&node.cluster_node, "two", "earlier");
    cluster.delete(&earlier);
    let pod = cluster.pod(&node.cluster_node, "two", "pod");
    let earlier = ClusterPod {
        uid: pod.uid.clone(),
        ..earlier
    };
    let start = |sandbox: &ClusterPod, id: &str| {
        PodProcess::start(
            sandbox,
            &format!("kubepods/pod{}/{}", pod.uid, id.repeat(32)),
        )
    };
    let _processes = [start(&earlier, "a1"), start(&pod, "b2")];
    node.start_agent(&[]);
    node.start_proxy();
    node.await_verified(&pod);
    assert_eq!([&earlier, &pod].map(has_rules), [false, true]);
}
