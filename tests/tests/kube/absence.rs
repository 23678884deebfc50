//! Nodes on which nobody is there who could take a pod into the mesh.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, PROXIES};
use underpass_tests::kube::{Kube, await_within, condition, missing};
use underpass_tests::skip::skip;

/// Sends the pods of a DaemonSet away, and waits until they have gone.
fn send_away(kube: &Kube, daemon_set: &str) {
    select(kube, daemon_set, true);
    // Also those that are ending: until then they take pods.
    let label = if daemon_set == AGENTS { "k8s-app" } else { "app" };
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={label}%3D{daemon_set}");
    await_within(60, "the pods have gone", || {
        kube.get(&path)?["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
}

/// Has the pods of a DaemonSet on no node, or on all.
fn select(kube: &Kube, daemon_set: &str, is_away: bool) {
    let selector = json!({ "kubernetes.io/os": "linux", "nobody/is-here": is_away.then_some("yes") });
    let change = json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } }).to_string();
    kube.kubectl(&["patch", "-n", NAMESPACE, "daemonset", daemon_set, "--type=merge", "-p", &change]);
}

fn reason(kube: &Kube, pod: &str) -> String {
    let path = format!("/api/v1/namespaces/absence/events?fieldSelector=involvedObject.name%3D{pod}");
    kube.get(&path).unwrap_or_default().to_string()
}

#[test]
fn without_agent_and_proxy_pods_wait_and_then_start_in_the_mesh() {
    if let Some(why) = missing() {
        return skip("without_agent_and_proxy_pods_wait_and_then_start_in_the_mesh", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("absence", true);
    // Since CNI 1.1.0 the runtime asks by STATUS, too.
    for node in &kube.nodes {
        let file = node.path("/etc/cni/net.d/10-network.conflist");
        let list = fs::read_to_string(&file).unwrap();
        assert!(list.contains("underpass-cni"), "{list}");
        let mut list: Value = serde_json::from_str(&list).unwrap();
        list["cniVersion"] = json!("1.1.0");
        fs::write(file, list.to_string()).unwrap();
    }
    send_away(&kube, PROXIES);
    let waiting = |name: &str, code: &str| {
        let app = App { namespace: "absence", name, node: Some("node-1"), labels: Value::Null };
        kube.apply_all(
            [
                json!({ "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": "absence" } }),
                app.object(),
            ]
            .into_iter(),
        );
        await_within(30, "the reason is told as an event of the pod", || {
            reason(&kube, name).contains(code).then_some(())
        });
    };
    waiting("no-proxy", "UP-AGENT-006");
    kube.namespace("absence-outside", false);
    kube.launch(&[App { namespace: "absence-outside", name: "outside", node: Some("node-1"), labels: Value::Null }]);
    send_away(&kube, AGENTS);
    waiting("no-agent", "UP-CNI-007");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(15) {
        let nodes = kube.get("/api/v1/nodes").unwrap();
        assert!(nodes["items"].as_array().unwrap().iter().all(|node| condition(node, "Ready")), "{nodes}");
        std::thread::sleep(Duration::from_millis(500));
    }
    for pod in ["no-proxy", "no-agent"] {
        assert!(!condition(&kube.pod("absence", pod).unwrap(), "Ready"));
    }
    // Both come back by themselves, the proxy's pods through the plugin, and so do the pods that wait.
    select(&kube, AGENTS, false);
    select(&kube, PROXIES, false);
    for pod in ["no-proxy", "no-agent"] {
        kube.await_pod("absence", pod);
        kube.await_enrolled("absence", pod, true);
    }
    kube.kubectl(&["delete", "namespace", "absence", "absence-outside", "--wait=false"]);
}
