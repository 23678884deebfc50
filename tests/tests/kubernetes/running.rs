//! Pods that run: they join and leave by their labels, and no connection is lost.

use std::time::Instant;

use serde_json::{Value, json};
use underpass_tests::cluster::AgentNode;
use underpass_tests::places::carries;
use underpass_tests::sandbox::until;

use super::scene::{AMBIENT, added, await_annotation, cluster_or_skip, in_place, label, namespace_path, open, path};

#[test]
fn a_label_on_a_namespace_or_a_pod_takes_running_pods_in_and_out() {
    let cluster = cluster_or_skip!("a_label_on_a_namespace_or_a_pod_takes_running_pods_in_and_out");
    cluster.namespace("flip", &[]);
    let node = AgentNode::start(&cluster, "flip");
    let [pod, peer] = ["app", "peer"].map(|name| cluster.pod(&node.place, "flip", name));
    label(&cluster, &path(&peer), Some("none"));
    added(&node, &pod);
    added(&node, &peer);
    assert!(!in_place(&pod));
    let (mut a, mut b) = open(&pod, &peer, 8001);
    for (number, path) in [namespace_path("flip"), path(&pod)].into_iter().enumerate() {
        let labelled = Instant::now();
        label(&cluster, &path, Some("ambient"));
        node.await_verified(&pod);
        println!("verified {:?} after the label", labelled.elapsed());
        carries(&mut a, &mut b).unwrap();
        await_annotation(&cluster, &pod, &json!("enabled"));
        let (mut c, mut d) = open(&pod, &peer, 8002 + number as u16);
        carries(&mut c, &mut d).unwrap();
        label(&cluster, &path, None);
        node.await_status("the pod leaves", &pod, |p| p["state"] == "leaving");
        await_annotation(&cluster, &pod, &Value::Null);
        carries(&mut a, &mut b).unwrap();
        carries(&mut c, &mut d).unwrap();
        drop((c, d));
        node.await_status("the pod is outside", &pod, |p| p["state"] == "skipped");
        assert!(!in_place(&pod));
        carries(&mut a, &mut b).unwrap();
    }
    assert!(!in_place(&peer), "it had opted out");
    let reason = node.status(&peer).unwrap()["reason"].clone();
    assert!(reason.as_str().unwrap().contains("opted out"), "{reason}");
}

#[test]
fn pods_that_are_left_alone_say_why() {
    let cluster = cluster_or_skip!("pods_that_are_left_alone_say_why");
    cluster.namespace("alone", AMBIENT);
    cluster.namespace("excluded", AMBIENT);
    let node = AgentNode::start(&cluster, "alone");
    let sidecar = cluster.pod(&node.place, "alone", "sidecar");
    let change = json!({ "metadata": { "annotations": { "sidecar.istio.io/status": "{}" } } });
    cluster.kubernetes.api.patch(&path(&sidecar), &change).unwrap();
    let excluded = cluster.pod(&node.place, "excluded", "alone");
    let elsewhere = cluster.pod(&cluster.node("alone-other"), "alone", "elsewhere");
    let says = |pod, words: &'static str| {
        node.await_status(words, pod, |p| p["reason"].as_str().is_some_and(|r| r.contains(words)));
    };
    says(&sidecar, "sidecar");
    says(&excluded, "excluded");
    let proxy = until("the node's proxy is listed", || {
        node.processes.pods().into_iter().find(|p| p["name"] == *node.place.proxy.name)
    });
    assert!(proxy["reason"].as_str().unwrap().contains("hostNetwork"), "{proxy}");
    added(&node, &sidecar);
    assert!(!in_place(&sidecar));
    assert!(node.status(&elsewhere).is_none());
}

#[test]
fn finished_and_deleted_pods_are_released_without_a_del() {
    let cluster = cluster_or_skip!("finished_and_deleted_pods_are_released_without_a_del");
    cluster.namespace("ended", AMBIENT);
    let node = AgentNode::start(&cluster, "ended");
    let [job, gone] = ["job", "gone"].map(|name| cluster.pod(&node.place, "ended", name));
    for pod in [&job, &gone] {
        added(&node, pod);
        node.await_verified(pod);
        await_annotation(&cluster, pod, &json!("enabled"));
    }
    let ended = json!({ "status": { "phase": "Succeeded" } });
    cluster.kubernetes.api.patch(&format!("{}/status", path(&job)), &ended).unwrap();
    let status = node.await_status("the job is released", &job, |p| p["state"] == "skipped");
    assert_eq!(status["reason"], "the pod has finished");
    await_annotation(&cluster, &job, &Value::Null);
    cluster.delete(&gone);
    until("the deleted pod is released", || node.status(&gone).is_none().then_some(()));
    assert!(in_place(&gone), "what may still run there is cut off, and does not pass in plain");
}
