//! Nodes without an agent or without a proxy.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, PROXIES};
use underpass_tests::kube::{Kube, condition, missing, until};
use underpass_tests::skip::skip;

/// The image of a DaemonSet that no node has.
const ABSENT: &str = "localhost/absent:1";

/// Ends the pods of a DaemonSet, and starts them again with this image. A node selector would not
/// do: an agent leaves a node that its DaemonSet no longer selects. Returns the image before.
fn restart_with(kube: &Kube, daemon_set: &str, image: &str) -> String {
    let resource = format!("daemonset/{daemon_set}");
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    let before = kube.kubectl(&["get", "-n", NAMESPACE, &resource, "-o", path]);
    let all = format!("*={image}");
    kube.kubectl(&["set", "image", "-n", NAMESPACE, &resource, &all]);
    let label = if daemon_set == AGENTS {
        "k8s-app"
    } else {
        "app"
    };
    let pods = format!("{label}={daemon_set}");
    // Waits: terminating pods still enrol pods.
    kube.kubectl(&["delete", "pods", "-n", NAMESPACE, "-l", &pods]);
    before
}

/// The events of a pod, as text.
fn events_of(kube: &Kube, pod: &str) -> String {
    let path =
        format!("/api/v1/namespaces/absence/events?fieldSelector=involvedObject.name%3D{pod}");
    kube.get(&path).unwrap_or_default().to_string()
}

#[test]
fn pods_wait_for_agent_and_proxy_and_then_start_in_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("absence", true);
    // From CNI 1.1.0 on, the runtime calls STATUS as well.
    for node in &kube.nodes {
        let file = node.path("/etc/cni/net.d/10-network.conflist");
        let list = fs::read_to_string(&file).unwrap();
        assert!(list.contains("underpass-cni"), "{list}");
        let mut list: Value = serde_json::from_str(&list).unwrap();
        list["cniVersion"] = json!("1.1.0");
        fs::write(file, list.to_string()).unwrap();
    }
    let proxy = restart_with(&kube, PROXIES, ABSENT);
    let waiting = |name: &str, code: &str| {
        let app = App {
            namespace: "absence",
            name,
            node: Some("node-1"),
            labels: Value::Null,
        };
        kube.apply_all(
            [
                json!({ "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": "absence" } }),
                app.object(),
            ]
            .into_iter(),
        );
        until("the reason is an event of the pod", || {
            events_of(&kube, name).contains(code).then_some(())
        });
    };
    waiting("no-proxy", "UP-AGENT-006");
    kube.namespace("absence-outside", false);
    kube.launch(&[App {
        namespace: "absence-outside",
        name: "outside",
        node: Some("node-1"),
        labels: Value::Null,
    }]);
    let agent = restart_with(&kube, AGENTS, ABSENT);
    waiting("no-agent", "UP-CNI-007");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(15) {
        let nodes = kube.get("/api/v1/nodes").unwrap();
        assert!(
            nodes["items"]
                .as_array()
                .unwrap()
                .iter()
                .all(|node| condition(node, "Ready")),
            "{nodes}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    for pod in ["no-proxy", "no-agent"] {
        assert!(!condition(&kube.pod("absence", pod).unwrap(), "Ready"));
    }
    // Agents, proxies and the waiting pods start without help, all through the plugin.
    restart_with(&kube, AGENTS, &agent);
    restart_with(&kube, PROXIES, &proxy);
    for pod in ["no-proxy", "no-agent"] {
        kube.await_pod("absence", pod);
        kube.await_enrolled("absence", pod, true);
    }
    kube.kubectl(&[
        "delete",
        "namespace",
        "absence",
        "absence-outside",
        "--wait=false",
    ]);
}
