//! `underpass check` and `underpass status --cluster`, with a kubeconfig and nothing else.

use serde_json::{Value, json};
use underpass_tests::kube::app::{App, spec};
use underpass_tests::kube::underpass::AGENTS;
use underpass_tests::kube::{Kube, await_within, missing};
use underpass_tests::skip::skip;

/// The result of a check, and what was found.
fn result(report: &Value, id: &str) -> (String, String) {
    let categories = report["categories"].as_array().unwrap();
    let check = categories.iter().flat_map(|c| c["checks"].as_array().unwrap()).find(|c| c["id"] == *id);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    check.map_or_else(Default::default, |c| (text(&c["result"]), text(c.get("error").unwrap_or(&c["found"]))))
}

fn check(kube: &Kube, more: &[&str]) -> (i32, Value) {
    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &[&["check", "--json"], more].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}")))
}

/// Waits until a check has failed, and has found this.
#[track_caller]
fn await_failure(kube: &Kube, id: &str, found: impl Fn(&str) -> bool) {
    await_within(60, &format!("{id} has failed"), || {
        let (ended, what) = result(&check(kube, &[]).1, id);
        (ended == "error" && found(&what)).then_some(())
    });
}

#[test]
fn a_kubeconfig_is_enough_to_tell_that_all_is_well() {
    if let Some(why) = missing() {
        return skip("a_kubeconfig_is_enough_to_tell_that_all_is_well", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("checked", true);
    let app = |name, node| App { namespace: "checked", name, node: Some(node), labels: Value::Null };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    ["one", "two"].iter().for_each(|name| kube.await_enrolled("checked", name, true));

    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["check", "--wait", "60"]);
    assert_eq!(code, 0, "{out}{err}");
    for line in [
        "√ the Kubernetes API answers: v1.",
        "√ the agent is ready on every node: 2 of 2 ready, 2 of 2 up to date",
        "√ the proxy is ready on every node: 2 of 2 ready",
        "√ istiod lets the proxies ask for certificates of pods: istio-system/ztunnel",
        "√ every proxy is connected to istiod and up to date: 2 of 2, https://istiod.istio-system.svc:15012",
        "√ the agents may do what they need",
        "√ every pod in the mesh has been measured to be in it: 2 enrolled · 2 verified",
        "√ every pod with the label is in the mesh: 2 pods",
        "√ the clocks of the nodes agree with this one",
        "Status check results are √",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(!out.contains('×') && !out.contains('?'), "{out}");

    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["status", "--cluster", "--all"]);
    assert_eq!(code, 0, "{out}{err}");
    for (node, pod) in [("node-1", "checked/one"), ("node-2", "checked/two")] {
        let line = out.lines().find(|l| l.starts_with(node)).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[3..7], ["connected", "routed", "1", "1"], "{out}");
        assert!(out.lines().any(|l| l.starts_with(pod) && l.contains(" verified ")), "{out}");
    }
    assert!(out.contains("2 enrolled · 2 verified"), "{out}");

    // Somebody without rights is told which are missing.
    kube.kubectl(&["create", "serviceaccount", "stranger", "-n", "checked"]);
    let token = kube.kubectl(&["create", "token", "stranger", "-n", "checked"]);
    let stranger = kube.kubernetes.kubeconfig("stranger", token.trim());
    let (code, out, err) = kube.with_kubeconfig(&stranger, &["check"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("× this user may look at everything that is checked\n    list nodes\n"), "{out}");
    assert!(out.contains("create pods/portforward\n    Next step: "), "{out}");
    let (code, out, err) = kube.with_kubeconfig(&stranger, &["status", "--cluster"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.contains("UP-CLI-005") && err.contains("Next step"), "{err}");
    kube.kubectl(&["delete", "namespace", "checked", "--timeout=60s"]);
}

#[test]
fn check_names_what_is_wrong_with_a_cluster() {
    if let Some(why) = missing() {
        return skip("check_names_what_is_wrong_with_a_cluster", &why);
    }
    let kube = Kube::mesh_alone();
    kube.namespace("wrong", true);
    let app = |name, node| App { namespace: "wrong", name, node: Some(node), labels: Value::Null };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    ["one", "two"].iter().for_each(|name| kube.await_enrolled("wrong", name, true));
    assert_eq!(check(&kube, &["--wait", "60"]).0, 0);

    // An agent is taken off one node, a right off all of them, and another mesh's DaemonSet is there.
    let patch =
        json!({ "spec": { "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": "node-1" } } } } });
    kube.kubectl(&["patch", "daemonset", AGENTS, "-n", "istio-system", "-p", &patch.to_string()]);
    let role = kube.kubectl(&["get", "clusterrole", "underpass-cni", "-o", "json"]);
    let mut less: Value = serde_json::from_str(&role).unwrap();
    less["rules"].as_array_mut().unwrap().retain(|rule| rule["resources"] != json!(["events"]));
    kube.apply(&less.to_string());
    let mut pod = spec(None, None);
    pod["nodeSelector"] = json!({ "kubernetes.io/hostname": "nowhere" });
    kube.apply(
        &json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": { "name": "istio-cni-node", "namespace": "wrong" },
            "spec": {
                "selector": { "matchLabels": { "app": "other" } },
                "template": { "metadata": { "labels": { "app": "other" } }, "spec": pod },
            },
        })
        .to_string(),
    );
    await_failure(&kube, "pods-joined", |found| found == "node-2: wrong/two: there is no agent on its node");
    let (code, report) = check(&kube, &[]);
    assert_eq!((code, &report["success"]), (1, &json!(false)));
    let of = |id: &str| result(&report, id);
    assert_eq!(of("agent-permissions"), ("error".to_owned(), "create events; patch events".to_owned()));
    assert_eq!(of("nothing-else-redirects"), ("error".to_owned(), "DaemonSet wrong/istio-cni-node".to_owned()));
    assert_eq!(of("istiod-running").0, "success");
    assert_eq!(of("agent-answers"), ("warning".to_owned(), "node-2: there is none".to_owned()));
    let (code, out, _) = kube.with_kubeconfig(&kube.kubeconfig, &["check"]);
    assert_eq!(code, 1);
    assert!(out.contains("see docs/check.md#nothing-else-redirects") && out.ends_with("results are ×\n"), "{out}");
    let (_, out, _) = kube.with_kubeconfig(&kube.kubeconfig, &["status", "--cluster"]);
    assert!(out.lines().any(|l| l.starts_with("node-2  none ")), "{out}");

    // istiod goes.
    kube.kubectl(&["delete", "daemonset", "istio-cni-node", "-n", "wrong"]);
    kube.kubectl(&["scale", "deployment/istiod", "-n", "istio-system", "--replicas=0"]);
    await_failure(&kube, "istiod-running", |found| found == "istio-system/istiod: 0 of 0 ready");
    await_failure(&kube, "istiod-connected", |found| found.contains("node-1: ") && found.contains("node-2: "));
    kube.kubectl(&["scale", "deployment/istiod", "-n", "istio-system", "--replicas=1"]);

    // All of it is put right by an upgrade.
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": null } } } } });
    kube.kubectl(&["patch", "daemonset", AGENTS, "-n", "istio-system", "-p", &patch.to_string()]);
    kube.kubectl(&["delete", "clusterrole", "underpass-cni"]);
    kube.install_underpass(&[]);
    let (code, report) = check(&kube, &["--wait", "90"]);
    assert_eq!(code, 0, "{report}");

    // Before an installation, in a namespace whose proxies istiod would not trust.
    assert_eq!(check(&kube, &["--pre"]).0, 0);
    let (code, report) = check(&kube, &["--pre", "--namespace", "elsewhere"]);
    assert_eq!((code, result(&report, "may-install").0.as_str()), (0, "success"), "{report}");
    kube.kubectl(&["delete", "namespace", "wrong", "--timeout=60s"]);
}
