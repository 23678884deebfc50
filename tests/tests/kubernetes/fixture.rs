//! Operations on clusters and pods that these tests share.

use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Output;

use serde_json::{Value, json};
use underpass_tests::cluster::{AgentNode, Cluster, ClusterPod};
use underpass_tests::listener::{accept, connect, plain};
use underpass_tests::sandbox::until;

pub const AMBIENT: &[(&str, &str)] = &[("istio.io/dataplane-mode", "ambient")];
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Skips a test on a machine without the control plane.
macro_rules! cluster_or_skip {
    () => {
        match underpass_tests::cluster::missing() {
            Some(why) => return underpass_tests::skip::skip(&why),
            None => underpass_tests::cluster::Cluster::shared(),
        }
    };
}
pub(crate) use cluster_or_skip;

/// The path of a pod's object.
pub fn path(pod: &ClusterPod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

/// Sets or removes the label of a namespace or pod.
pub fn label(cluster: &Cluster, path: &str, mode: Option<&str>) {
    let change = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
    cluster.kubernetes.api.patch(path, &change).unwrap();
}

pub fn namespace_path(name: &str) -> String {
    format!("/api/v1/namespaces/{name}")
}

/// The value of the pod's annotation.
pub fn annotation(cluster: &Cluster, pod: &ClusterPod) -> Value {
    cluster.kubernetes.api.get(&path(pod)).unwrap()["metadata"]["annotations"][REDIRECTION].clone()
}

pub fn await_annotation(cluster: &Cluster, pod: &ClusterPod, value: &Value) {
    until(&format!("the annotation is {value}"), || {
        (annotation(cluster, pod) == *value).then_some(())
    });
}

/// Events of a pod with this reason and code.
pub fn events_of(cluster: &Cluster, pod: &ClusterPod, reason: &str, code: &str) -> Vec<Value> {
    let list = cluster
        .kubernetes
        .api
        .get(&format!("/api/v1/namespaces/{}/events", pod.namespace))
        .unwrap();
    let has_code = |e: &Value| e["message"].as_str().is_some_and(|m| m.starts_with(code));
    let of_pod =
        |e: &Value| e["involvedObject"]["uid"] == *pod.uid && e["reason"] == reason && has_code(e);
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| of_pod(e))
        .cloned()
        .collect()
}

pub fn has_rules(pod: &ClusterPod) -> bool {
    !pod.netns
        .run(redirect::read_back)
        .unwrap()
        .unwrap()
        .is_empty()
}

/// A connection from one pod to the other: both ends.
pub fn connect_pods(from: &ClusterPod, to: &ClusterPod, port: u16) -> (TcpStream, TcpStream) {
    let at = SocketAddr::new(to.ips[0], port);
    let server = plain(&to.netns, at);
    let client = connect(&from.netns, at).unwrap();
    (client, accept(&server).unwrap().0)
}

/// The error that the plugin printed.
pub fn add_error(output: &Output) -> Value {
    assert!(!output.status.success(), "the ADD succeeded");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub fn add_pod(node: &AgentNode, pod: &ClusterPod) {
    let output = node.add(pod);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
