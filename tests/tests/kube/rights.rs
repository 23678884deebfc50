//! What the tokens of agents are good for.

use serde_json::{Value, json};
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::cluster::{Api, ApiError};
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, chart};
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::skip::skip;

const ACCOUNT: &str = "underpass-cni";
const TAINT: &str = "cni.istio.io/not-ready";

#[test]
fn an_agents_token_is_worth_nothing_on_other_nodes() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("rights", true);
    let app = |name, node| App {
        namespace: "rights",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("own", "node-1"), app("other", "node-2")]);
    // With these policies, each agent announces the pod of its node.
    for pod in ["own", "other"] {
        kube.await_enrolled("rights", pod, true);
    }
    let agent = Agent::of(&kube, "node-1");
    let redirection = annotation("ambient.istio.io/redirection");
    agent.patch_pod("own", &redirection).unwrap();
    assert_rejected(
        agent.patch_pod("other", &redirection),
        "pods of its own node (node-1)",
    );
    for (change, reason) in [
        (
            annotation("sidecar.istio.io/status"),
            "may only change the annotation",
        ),
        (
            json!({ "metadata": { "labels": { "a": "b" } } }),
            "nothing but an annotation",
        ),
        (
            json!({ "status": { "podIP": "10.0.0.1" } }),
            "nothing but an annotation",
        ),
        (
            json!({ "status": { "phase": "Failed" } }),
            "nothing but an annotation",
        ),
    ] {
        assert_rejected(agent.patch_pod("own", &change), reason);
    }
    agent.reports_only_events_of_its_node();
    agent.has_no_other_right();
    let nothing = json!({ "spec": { "unschedulable": true } });
    assert_rejected(agent.patch_node("node-1", &nothing), "forbidden");
    assert_rejected(agent.patch_node("node-2", &nothing), "forbidden");

    // With the right to remove the taint of its node.
    let templates = ["agent-rbac", "agent-admission"].map(|t| format!("templates/{t}.yaml"));
    let folder = chart();
    kube.apply(&kube.run(
        "helm",
        &[
            "template",
            "underpass",
            folder.to_str().unwrap(),
            "--namespace",
            NAMESPACE,
            "--kube-version",
            "1.34.0",
            "--set",
            "cni.removeTaint=true",
            "--show-only",
            &templates[0],
            "--show-only",
            &templates[1],
        ],
    ));
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    // The API server applies a policy some time after it has stored it.
    until("the policy on nodes is active", || {
        let rejected = agent
            .try_node("node-1", &label)
            .is_err_and(|error| error.message.contains("nothing but a taint"));
        rejected.then_some(())
    });
    for node in ["node-1", "node-2"] {
        let taint = format!("{TAINT}=:PreferNoSchedule");
        kube.kubectl(&["taint", "node", node, &taint, "other=:PreferNoSchedule"]);
    }
    let others =
        json!({ "spec": { "taints": [{ "key": "other", "effect": "PreferNoSchedule" }] } });
    let all = json!({ "spec": { "taints": null } });
    let only = "may only remove the taint cni.istio.io/not-ready";
    assert_rejected(agent.patch_node("node-1", &all), only);
    assert_rejected(agent.patch_node("node-2", &others), "its own node (node-1)");
    assert_rejected(agent.patch_node("node-1", &nothing), "");
    assert_rejected(agent.patch_node("node-1", &label), "nothing but a taint");
    agent.patch_node("node-1", &others).unwrap();
    for node in ["node-1", "node-2"] {
        until("the node's own agent has removed the taint", || {
            let node = kube.get(&format!("/api/v1/nodes/{node}"))?;
            (node["spec"]["taints"] == others["spec"]["taints"]).then_some(())
        });
        kube.kubectl(&["taint", "node", node, "other-"]);
    }
    for kind in [
        "validatingadmissionpolicybinding",
        "validatingadmissionpolicy",
    ] {
        kube.kubectl(&["delete", kind, "underpass-cni-nodes"]);
    }
    kube.kubectl(&["delete", "namespace", "rights", "--wait=false"]);
}

fn annotation(key: &str) -> Value {
    json!({ "metadata": { "annotations": { key: "enabled" } } })
}

/// A client with the token of a node's agent.
struct Agent(Api);

impl Agent {
    /// With a token that is bound to the agent's pod, like the one that kubelet mounts.
    fn of(kube: &Kube, node: &str) -> Self {
        let path = format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=k8s-app%3D{AGENTS}\
             &fieldSelector=spec.nodeName%3D{node}"
        );
        let pod = kube.get(&path).unwrap()["items"][0]["metadata"].take();
        let bound = (pod["name"].as_str().unwrap(), pod["uid"].as_str().unwrap());
        let api = &kube.kubernetes.api;
        let token = api.token(NAMESPACE, ACCOUNT, None, Some(bound)).unwrap();
        Self(api.with_token(&token))
    }

    /// Events name the node whose agent has reported them, and no agent can write in the name of
    /// another.
    fn reports_only_events_of_its_node(&self) {
        const EVENTS: &str = "/api/v1/namespaces/rights/events";
        let event = |name: &str, host: &str, component: &str, kind: &str| {
            let source = json!({ "host": host, "component": component });
            let pod = json!({ "kind": kind, "namespace": "rights", "name": "own" });
            json!({
                "metadata": { "name": name }, "involvedObject": pod, "source": source,
                "reason": "Test", "message": "of a test", "type": "Normal",
            })
        };
        let create = |event| self.0.create(EVENTS, &event);
        create(event("a", "node-1", "underpass-agent", "Pod")).unwrap();
        let own_node = "events of its own node (node-1)";
        for host in ["node-2", ""] {
            let other = event("b", host, "underpass-agent", "Pod");
            assert_rejected(create(other), own_node);
        }
        for (component, kind) in [("kubelet", "Pod"), ("underpass-agent", "Node")] {
            let other = event("b", "node-1", component, kind);
            assert_rejected(create(other), "its own events, of pods");
        }
        let path = format!("{EVENTS}/a");
        self.0.patch(&path, &json!({ "count": 2 })).unwrap();
        let forged = json!({ "source": { "host": "node-2" } });
        assert_rejected(self.0.patch(&path, &forged), own_node);
    }

    /// What the agent's roles do not name is forbidden, on every node.
    fn has_no_other_right(&self) {
        let own = "/api/v1/namespaces/rights/pods/own";
        let label = json!({ "metadata": { "labels": { "a": "b" } } });
        for path in [
            own,
            "/api/v1/namespaces/rights/pods/own/ephemeralcontainers",
            "/api/v1/namespaces/rights/pods/own/resize",
            "/api/v1/namespaces/rights",
            "/api/v1/nodes/node-1",
            "/api/v1/nodes/node-1/status",
            "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert",
            "/apis/apps/v1/namespaces/istio-system/daemonsets/underpass-cni-node",
            "/apis/apps/v1/namespaces/istio-system/daemonsets/ztunnel",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/underpass-cni",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/underpass-cni-pods",
        ] {
            assert_rejected(self.0.patch(path, &label), "forbidden");
            assert_rejected(self.0.delete(path), "forbidden");
        }
        for path in [
            "/api/v1/namespaces/rights/pods",
            "/api/v1/namespaces/rights/pods/own/eviction",
            "/api/v1/namespaces/rights/pods/own/binding",
            "/api/v1/namespaces/rights/pods/own/exec",
            "/api/v1/namespaces/rights/secrets",
            "/api/v1/namespaces/istio-system/serviceaccounts/ztunnel/token",
            "/api/v1/namespaces",
            "/api/v1/nodes",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases",
        ] {
            assert_rejected(self.0.create(path, &json!({})), "forbidden");
        }
    }

    fn patch_pod(&self, name: &str, change: &Value) -> Result<Value, ApiError> {
        let path = format!("/api/v1/namespaces/rights/pods/{name}/status");
        self.0.patch(&path, change)
    }

    fn patch_node(&self, name: &str, change: &Value) -> Result<Value, ApiError> {
        self.0.patch(&format!("/api/v1/nodes/{name}"), change)
    }

    /// Like [`Agent::patch_node`], but the API server stores nothing.
    fn try_node(&self, name: &str, change: &Value) -> Result<Value, ApiError> {
        let path = format!("/api/v1/nodes/{name}?dryRun=All");
        self.0.patch(&path, change)
    }
}

/// The server answered 403, or 422 from an admission policy, with these words.
#[track_caller]
fn assert_rejected(answer: Result<Value, ApiError>, reason: &str) {
    let error = answer.expect_err(reason);
    assert!(
        [403, 422].contains(&error.status) && error.message.contains(reason),
        "{reason}: {error:?}"
    );
}
