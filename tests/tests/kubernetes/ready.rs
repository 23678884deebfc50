//! The agent is ready when pods can join, and then removes the node's start-up taint.

use agent_status::UnreadyReason;
use serde_json::{Value, json};
use underpass_tests::cluster::{AgentNode, Cluster};
use underpass_tests::sandbox::until;

use super::fixture::cluster_or_skip;

fn taints(cluster: &Cluster, node: &str) -> Vec<Value> {
    let node = cluster
        .kubernetes
        .api
        .get(&format!("/api/v1/nodes/{node}"))
        .unwrap();
    node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

#[test]
fn readiness_requires_plugin_proxy_and_api_server_and_removes_the_taint() {
    let cluster = cluster_or_skip!();
    let mut node = AgentNode::new(&cluster, "ready");
    let not_ready = json!({ "key": "cni.istio.io/not-ready", "effect": "NoSchedule" });
    let other = json!({ "key": "example.com/other", "value": "x", "effect": "PreferNoSchedule" });
    let path = "/api/v1/nodes/ready";
    cluster
        .kubernetes
        .api
        .patch(path, &json!({ "spec": { "taints": [not_ready, other] } }))
        .unwrap();
    let [conf, bin] = ["net.d", "bin"].map(|f| node.processes.file(f).to_str().unwrap().to_owned());
    let await_unready = |node: &AgentNode, reason: UnreadyReason| {
        until(&format!("not ready: {reason:?}"), || {
            (node.readiness() == (503, Some(reason))).then_some(())
        });
    };
    node.block_api_server(true);
    node.start_agent(&["--install-cni", "--conf-dir", &conf, "--bin-dir", &bin]);
    await_unready(&node, UnreadyReason::PluginMissing);
    assert!(
        node.processes
            .status()
            .unready
            .unwrap()
            .contains("UP-AGENT-013")
    );
    let main = json!({ "cniVersion": "1.0.0", "name": "main", "plugins": [{ "type": "ptp" }] });
    std::fs::write(format!("{conf}/10-main.conflist"), main.to_string()).unwrap();
    await_unready(&node, UnreadyReason::ApiServerUnsynced);
    let chained = std::fs::read_to_string(format!("{conf}/10-main.conflist")).unwrap();
    let chained: Value = serde_json::from_str(&chained).unwrap();
    assert_eq!(
        chained["plugins"][1]["excludeNamespaces"],
        json!(["kube-system", "excluded"])
    );
    node.block_api_server(false);
    await_unready(&node, UnreadyReason::ProxyUnsynced);
    assert_eq!(taints(&cluster, "ready").len(), 2);
    node.start_proxy();
    node.await_ready();
    until("only the other taint is left", || {
        (taints(&cluster, "ready") == [other.clone()]).then_some(())
    });
}
