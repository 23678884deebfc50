//! `underpass check` and `underpass status --cluster`, with only a kubeconfig.

use serde_json::{Value, json};
use underpass_tests::kube::app::{App, spec};
use underpass_tests::kube::underpass::AGENTS;
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::skip::skip;

/// The result of a check, and its finding or error.
fn result(report: &Value, id: &str) -> (String, String) {
    let categories = report["categories"].as_array().unwrap();
    let check = categories
        .iter()
        .flat_map(|c| c["checks"].as_array().unwrap())
        .find(|c| c["id"] == *id);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    check.map_or_else(Default::default, |c| {
        (
            text(&c["result"]),
            text(c.get("error").unwrap_or(&c["found"])),
        )
    })
}

/// Asserts that a check succeeded and that its finding contains these parts.
#[track_caller]
fn assert_success(report: &Value, id: &str, parts: &[&str]) {
    let (outcome, found) = result(report, id);
    assert!(
        outcome == "success" && parts.iter().all(|part| found.contains(part)),
        "{id}: {outcome}: {found}"
    );
}

fn check(kube: &Kube, more: &[&str]) -> (i32, Value) {
    let (code, out, err) =
        kube.with_kubeconfig(&kube.kubeconfig, &[&["check", "--json"], more].concat());
    (
        code,
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}")),
    )
}

/// Waits until a check has failed with such an error.
#[track_caller]
fn await_failure(kube: &Kube, id: &str, found: impl Fn(&str) -> bool) {
    until(&format!("{id} has failed"), || {
        let (outcome, error) = result(&check(kube, &[]).1, id);
        (outcome == "error" && found(&error)).then_some(())
    });
}

#[test]
fn check_and_status_need_only_a_kubeconfig() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("checked", true);
    let app = |name, node| App {
        namespace: "checked",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    ["one", "two"]
        .iter()
        .for_each(|name| kube.await_enrolled("checked", name, true));

    let (code, report) = check(&kube, &["--wait", "60"]);
    assert_eq!((code, &report["success"]), (0, &json!(true)), "{report}");
    for (id, parts) in [
        ("api-reachable", &["v1."][..]),
        ("agents-ready", &["2 of 2"]),
        ("proxies-ready", &["2 of 2"]),
        ("istiod-trusts-proxies", &["istio-system/ztunnel"]),
        (
            "istiod-connected",
            &["2 of 2", "https://istiod.istio-system.svc:15012"],
        ),
        ("agent-permissions", &[]),
        ("pods-verified", &["2 enrolled · 2 verified"]),
        ("pods-joined", &["2"]),
        ("clock", &[]),
    ] {
        assert_success(&report, id, parts);
    }
    let (code, out, err) = kube.with_kubeconfig(&kube.kubeconfig, &["check"]);
    assert_eq!(code, 0, "{out}{err}");
    let checks = report["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["checks"].as_array().unwrap().len());
    assert_eq!(
        out.lines().filter(|l| l.starts_with("√ ")).count(),
        checks.sum::<usize>(),
        "{out}"
    );
    assert!(!out.contains('×') && !out.contains('?'), "{out}");

    let (code, out, err) =
        kube.with_kubeconfig(&kube.kubeconfig, &["status", "--cluster", "--all"]);
    assert_eq!(code, 0, "{out}{err}");
    for (node, pod) in [("node-1", "checked/one"), ("node-2", "checked/two")] {
        let line = out.lines().find(|l| l.starts_with(node)).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[3..7], ["connected", "routed", "1", "1"], "{out}");
        assert!(
            out.lines()
                .any(|l| l.starts_with(pod) && l.contains(" verified ")),
            "{out}"
        );
    }
    assert!(out.contains("2 enrolled · 2 verified"), "{out}");

    // A user without rights gets the list of missing ones.
    kube.kubectl(&["create", "serviceaccount", "stranger", "-n", "checked"]);
    let token = kube.kubectl(&["create", "token", "stranger", "-n", "checked"]);
    let stranger = kube.kubernetes.kubeconfig("stranger", token.trim());
    let (code, out, err) = kube.with_kubeconfig(&stranger, &["check"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("\n    list nodes\n"), "{out}");
    assert!(
        out.contains("create pods/portforward\n    Next step: "),
        "{out}"
    );
    assert!(out.contains("see docs/check.md#api-permissions"), "{out}");
    let (code, out, err) = kube.with_kubeconfig(&stranger, &["status", "--cluster"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(
        err.contains("UP-CLI-005") && err.contains("Next step"),
        "{err}"
    );
    kube.kubectl(&["delete", "namespace", "checked", "--timeout=60s"]);
}

#[test]
fn check_names_network_policies_that_cut_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("policed", true);
    let app = |name| App {
        namespace: "policed",
        name,
        node: Some("node-1"),
        labels: Value::Null,
    };
    kube.launch(&[app("server"), app("client")]);
    kube.await_enrolled("policed", "server", true);
    kube.await_enrolled("policed", "client", true);
    let policy = |ports: Value, probes: Value| {
        let client = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
        let rules = [json!([{ "from": client, "ports": ports }]), probes].map(|rules| {
            let rules: Vec<Value> = serde_json::from_value(rules).unwrap();
            rules
        });
        kube.apply(
            &json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "name": "server", "namespace": "policed" },
                "spec": {
                    "podSelector": { "matchLabels": { "app": "server" } },
                    "policyTypes": ["Ingress"],
                    "ingress": rules.concat(),
                },
            })
            .to_string(),
        );
        let (code, report) = check(&kube, &[]);
        let outcome = |id| result(&report, id);
        (
            code,
            outcome("policies-allow-hbone"),
            outcome("policies-allow-probes"),
        )
    };
    let application = json!({ "port": 8080 });
    assert_eq!(
        check(&kube, &["--wait", "60"]).0,
        0,
        "nothing else is wrong"
    );
    let (code, hbone, probes) = policy(json!([application]), json!([]));
    assert_eq!((code, &*hbone.0, &*probes.0), (1, "error", "warning"));
    for part in [
        "policed/server: policed/client may connect to port 8080",
        "- port: 15008\n",
    ] {
        assert!(hbone.1.contains(part), "{hbone:?}");
    }
    assert!(probes.1.contains("cidr: 169.254.7.127/32"), "{probes:?}");
    let (_, out, _) = kube.with_kubeconfig(&kube.kubeconfig, &["check"]);
    assert!(
        out.contains("\n      - port: 15008\n        protocol: TCP\n"),
        "{out}"
    );

    let sources = [
        "169.254.7.127/32",
        "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128",
    ];
    let blocks = sources.map(|cidr| json!({ "ipBlock": { "cidr": cidr } }));
    let (code, hbone, probes) = policy(
        json!([application, { "port": 15008 }]),
        json!([{ "from": blocks, "ports": [application] }]),
    );
    assert_eq!((code, &*hbone.0, &*probes.0), (0, "success", "success"));
    kube.kubectl(&["delete", "namespace", "policed", "--timeout=60s"]);
}

#[test]
fn check_reports_the_faults_of_a_cluster() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace("wrong", true);
    let app = |name, node| App {
        namespace: "wrong",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    ["one", "two"]
        .iter()
        .for_each(|name| kube.await_enrolled("wrong", name, true));
    assert_eq!(check(&kube, &["--wait", "60"]).0, 0);

    // One node loses its agent, all agents a right, and another mesh's DaemonSet is added.
    let patch = json!({
        "spec": {
            "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": "node-1" } } },
        },
    });
    kube.kubectl(&[
        "patch",
        "daemonset",
        AGENTS,
        "-n",
        "istio-system",
        "-p",
        &patch.to_string(),
    ]);
    let role = kube.kubectl(&["get", "clusterrole", "underpass-cni", "-o", "json"]);
    let mut less: Value = serde_json::from_str(&role).unwrap();
    less["rules"]
        .as_array_mut()
        .unwrap()
        .retain(|rule| rule["resources"] != json!(["events"]));
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
    let report = until("the missing agent is reported", || {
        let report = check(&kube, &[]).1;
        let (joined, pods) = result(&report, "pods-joined");
        let (answers, nodes) = result(&report, "agent-answers");
        let is_missing =
            joined == "error" && pods.starts_with("node-2: wrong/two: ") && !pods.contains("; ");
        (is_missing && answers == "warning" && nodes.starts_with("node-2: ")).then_some(report)
    });
    let code = kube
        .with_kubeconfig(&kube.kubeconfig, &["check", "--json"])
        .0;
    assert_eq!((code, &report["success"]), (1, &json!(false)));
    let of = |id: &str| result(&report, id);
    assert_eq!(
        of("agent-permissions"),
        ("error".to_owned(), "create events; patch events".to_owned())
    );
    assert_eq!(
        of("nothing-else-redirects"),
        (
            "error".to_owned(),
            "DaemonSet wrong/istio-cni-node".to_owned()
        )
    );
    assert_eq!(of("istiod-running").0, "success");
    let (code, out, _) = kube.with_kubeconfig(&kube.kubeconfig, &["check"]);
    assert_eq!(code, 1);
    assert!(
        out.contains("see docs/check.md#nothing-else-redirects") && out.ends_with(" ×\n"),
        "{out}"
    );
    let (_, out, _) = kube.with_kubeconfig(&kube.kubeconfig, &["status", "--cluster"]);
    assert!(out.lines().any(|l| l.starts_with("node-2  none ")), "{out}");

    // istiod is stopped.
    kube.kubectl(&["delete", "daemonset", "istio-cni-node", "-n", "wrong"]);
    kube.kubectl(&[
        "scale",
        "deployment/istiod",
        "-n",
        "istio-system",
        "--replicas=0",
    ]);
    await_failure(&kube, "istiod-running", |found| {
        found.starts_with("istio-system/istiod: 0 of 0")
    });
    await_failure(&kube, "istiod-connected", |found| {
        found.contains("node-1: ") && found.contains("node-2: ")
    });
    kube.kubectl(&[
        "scale",
        "deployment/istiod",
        "-n",
        "istio-system",
        "--replicas=1",
    ]);

    // An upgrade repairs all of this.
    let patch = json!({
        "spec": { "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": null } } } },
    });
    kube.kubectl(&[
        "patch",
        "daemonset",
        AGENTS,
        "-n",
        "istio-system",
        "-p",
        &patch.to_string(),
    ]);
    kube.kubectl(&["delete", "clusterrole", "underpass-cni"]);
    kube.install_underpass(&[]);
    let (code, report) = check(&kube, &["--wait", "90"]);
    assert_eq!(code, 0, "{report}");

    // Checks before an installation, in a namespace whose proxies istiod would not trust.
    assert_eq!(check(&kube, &["--pre"]).0, 0);
    let (code, report) = check(&kube, &["--pre", "--namespace", "elsewhere"]);
    assert_eq!(
        (code, result(&report, "may-install").0.as_str()),
        (0, "success"),
        "{report}"
    );
    kube.kubectl(&["delete", "namespace", "wrong", "--timeout=60s"]);
}
