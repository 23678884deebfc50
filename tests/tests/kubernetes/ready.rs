//! The agent is ready when pods can join, and only then does the node lose its start-up taint.

use serde_json::{Value, json};
use underpass_tests::cluster::{AgentNode, Cluster};
use underpass_tests::sandbox::until;

use super::scene::cluster_or_skip;

fn taints(cluster: &Cluster, node: &str) -> Vec<Value> {
    let node = cluster.kubernetes.api.get(&format!("/api/v1/nodes/{node}")).unwrap();
    node["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

#[test]
fn readiness_needs_plugin_proxy_and_api_server_and_then_the_taint_goes() {
    let cluster = cluster_or_skip!("readiness_needs_plugin_proxy_and_api_server_and_then_the_taint_goes");
    let mut node = AgentNode::new(&cluster, "ready");
    let ours = json!({ "key": "cni.istio.io/not-ready", "effect": "NoSchedule" });
    let other = json!({ "key": "example.com/other", "value": "x", "effect": "PreferNoSchedule" });
    let path = "/api/v1/nodes/ready";
    cluster.kubernetes.api.patch(path, &json!({ "spec": { "taints": [ours, other] } })).unwrap();
    let [conf, bin] = ["net.d", "bin"].map(|f| node.processes.file(f).to_str().unwrap().to_owned());
    let says = |node: &AgentNode, words: &str| {
        until(words, || Some(node.readiness()).filter(|(status, why)| *status == 503 && why.contains(words)));
    };
    node.cut_off(true);
    node.start_agent(&["--install-cni", "--conf-dir", &conf, "--bin-dir", &bin]);
    says(&node, "UP-AGENT-013");
    let main = json!({ "cniVersion": "1.0.0", "name": "main", "plugins": [{ "type": "ptp" }] });
    std::fs::write(format!("{conf}/10-main.conflist"), main.to_string()).unwrap();
    says(&node, "the API server has not told");
    let chained = std::fs::read_to_string(format!("{conf}/10-main.conflist")).unwrap();
    let chained: Value = serde_json::from_str(&chained).unwrap();
    assert_eq!(chained["plugins"][1]["excludeNamespaces"], json!(["kube-system", "excluded"]));
    node.cut_off(false);
    says(&node, "no proxy");
    assert_eq!(taints(&cluster, "ready").len(), 2);
    node.start_proxy();
    node.await_ready();
    until("only the taint that is not ours is left", || (taints(&cluster, "ready") == [other.clone()]).then_some(()));
}
