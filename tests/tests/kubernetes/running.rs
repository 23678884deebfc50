//! Running pods join and leave by labels, without losing a connection.

use std::time::Instant;

use agent_status::{EnrolmentReason, PodState, PodStatus};
use serde_json::{Value, json};
use underpass_tests::arrivals::carries_both_ways;
use underpass_tests::cluster::AgentNode;
use underpass_tests::sandbox::until;

use super::fixture::{
    AMBIENT, add_pod, await_annotation, cluster_or_skip, connect_pods, has_rules, label,
    namespace_path, path,
};

#[test]
fn running_pods_join_and_leave_by_namespace_and_pod_labels() {
    let cluster = cluster_or_skip!();
    cluster.namespace("flip", &[]);
    let node = AgentNode::start(&cluster, "flip");
    let [pod, peer] = ["app", "peer"].map(|name| cluster.pod(&node.cluster_node, "flip", name));
    label(&cluster, &path(&peer), Some("none"));
    add_pod(&node, &pod);
    add_pod(&node, &peer);
    assert!(!has_rules(&pod));
    let (mut a, mut b) = connect_pods(&pod, &peer, 8001);
    for (number, path) in [namespace_path("flip"), path(&pod)].into_iter().enumerate() {
        let labelled = Instant::now();
        label(&cluster, &path, Some("ambient"));
        node.await_verified(&pod);
        println!("verified {:?} after the label", labelled.elapsed());
        carries_both_ways(&mut a, &mut b).unwrap();
        await_annotation(&cluster, &pod, &json!("enabled"));
        let (mut c, mut d) = connect_pods(&pod, &peer, 8002 + number as u16);
        carries_both_ways(&mut c, &mut d).unwrap();
        label(&cluster, &path, None);
        node.await_status("the pod leaves", &pod, |p| p.state == PodState::Leaving);
        await_annotation(&cluster, &pod, &Value::Null);
        carries_both_ways(&mut a, &mut b).unwrap();
        carries_both_ways(&mut c, &mut d).unwrap();
        drop((c, d));
        node.await_status("the pod is outside", &pod, |p| p.state == PodState::Skipped);
        assert!(!has_rules(&pod));
        carries_both_ways(&mut a, &mut b).unwrap();
    }
    assert!(!has_rules(&peer), "the pod has opted out");
    assert_eq!(
        node.status(&peer).unwrap().reason_code,
        Some(EnrolmentReason::OptedOut)
    );
}

#[test]
fn selectors_decide_enrolment_instead_of_the_label() {
    let cluster = cluster_or_skip!();
    cluster.namespace("chosen", &[("team", "payments")]);
    cluster.namespace("unchosen", AMBIENT);
    let selectors = "[{ podSelector: { matchExpressions: [{ key: mesh, operator: NotIn, \
                     values: [off] }] }, namespaceSelector: { matchLabels: { team: payments } } }]";
    let mut node = AgentNode::new(&cluster, "chosen");
    node.start_agent(&["--enablement-selectors", selectors]);
    node.start_proxy();
    node.await_ready();
    let pod = |namespace, name| cluster.pod(&node.cluster_node, namespace, name);
    let (new, off, other) = (
        pod("chosen", "new"),
        pod("chosen", "off"),
        pod("unchosen", "other"),
    );
    let set = |path: &str, key: &str, value: Option<&str>| {
        let change = json!({ "metadata": { "labels": { key: value } } });
        cluster.kubernetes.api.patch(path, &change).unwrap();
    };
    let is = |status: &PodStatus, code| status.reason_code == Some(code);
    set(&path(&off), "mesh", Some("off"));
    node.await_status("the label is known", &off, |p| {
        is(p, EnrolmentReason::NotSelected)
    });
    for pod in [&new, &off, &other] {
        add_pod(&node, pod);
    }
    assert!(has_rules(&new) && !has_rules(&off) && !has_rules(&other));
    assert!(is(&node.await_verified(&new), EnrolmentReason::Selected));
    // Running pods follow the labels of the selectors, and of no others.
    set(&path(&off), "mesh", None);
    node.await_verified(&off);
    set(&path(&new), "istio.io/dataplane-mode", Some("none"));
    set(&namespace_path("unchosen"), "team", Some("payments"));
    node.await_verified(&other);
    set(&namespace_path("chosen"), "team", None);
    for pod in [&new, &off] {
        node.await_status("the pod is outside", pod, |p| p.state == PodState::Skipped);
        assert!(!has_rules(pod));
    }
}

#[test]
fn skipped_pods_report_the_reason() {
    let cluster = cluster_or_skip!();
    cluster.namespace("alone", AMBIENT);
    cluster.namespace("excluded", AMBIENT);
    let node = AgentNode::start(&cluster, "alone");
    let sidecar = cluster.pod(&node.cluster_node, "alone", "sidecar");
    let change = json!({ "metadata": { "annotations": { "sidecar.istio.io/status": "{}" } } });
    cluster
        .kubernetes
        .api
        .patch(&path(&sidecar), &change)
        .unwrap();
    let excluded = cluster.pod(&node.cluster_node, "excluded", "alone");
    let elsewhere = cluster.pod(&cluster.node("alone-other"), "alone", "elsewhere");
    let await_reason = |pod, reason: EnrolmentReason| {
        node.await_status(&format!("{reason:?}"), pod, |p| {
            p.reason_code == Some(reason)
        });
    };
    await_reason(&sidecar, EnrolmentReason::Sidecar);
    await_reason(&excluded, EnrolmentReason::NamespaceExcluded);
    let proxy = until("the node's proxy is listed", || {
        node.processes
            .pods()
            .into_iter()
            .find(|p| p.name == node.cluster_node.proxy.name)
    });
    assert_eq!(
        proxy.reason_code,
        Some(EnrolmentReason::HostNetwork),
        "{proxy:?}"
    );
    add_pod(&node, &sidecar);
    assert!(!has_rules(&sidecar));
    assert!(node.status(&elsewhere).is_none());
}

#[test]
fn finished_and_deleted_pods_are_released_without_a_del() {
    let cluster = cluster_or_skip!();
    cluster.namespace("ended", AMBIENT);
    let node = AgentNode::start(&cluster, "ended");
    let [job, deleted] =
        ["job", "deleted"].map(|name| cluster.pod(&node.cluster_node, "ended", name));
    for pod in [&job, &deleted] {
        add_pod(&node, pod);
        node.await_verified(pod);
        await_annotation(&cluster, pod, &json!("enabled"));
    }
    let ended = json!({ "status": { "phase": "Succeeded" } });
    cluster
        .kubernetes
        .api
        .patch(&format!("{}/status", path(&job)), &ended)
        .unwrap();
    let status = node.await_status("the job is released", &job, |p| {
        p.state == PodState::Skipped
    });
    assert_eq!(status.reason_code, Some(EnrolmentReason::Finished));
    await_annotation(&cluster, &job, &Value::Null);
    cluster.delete(&deleted);
    until("the deleted pod is released", || {
        node.status(&deleted).is_none().then_some(())
    });
    assert!(
        has_rules(&deleted),
        "remaining processes of the pod must not send plain text"
    );
}
