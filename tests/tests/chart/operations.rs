//! Liveness, metrics, NetworkPolicy, and how the plugin is chained.

use serde_json::{Value, json};
use underpass_tests::skip::skip;

use crate::helm::{self, object, objects, pod, variable};

/// A hang ends a container only after a minute; readiness never does.
#[test]
fn liveness_probes_tolerate_a_minute_of_slowness() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let objects = objects(&[], &[]);
    for (set, path) in [
        ("underpass-cni-node", "/healthz"),
        ("ztunnel", "/healthz/live"),
    ] {
        let container = &pod(&objects, set)["containers"][0];
        let probe = &container["livenessProbe"];
        assert_eq!(probe["httpGet"]["path"], path);
        assert_eq!(
            probe["httpGet"]["host"],
            container["readinessProbe"]["httpGet"]["host"]
        );
        let number = |key: &str| probe[key].as_u64().unwrap();
        assert!(
            number("periodSeconds") * number("failureThreshold") >= 60,
            "{probe}"
        );
        assert!(number("timeoutSeconds") >= 10, "{probe}");
    }
}

#[test]
fn agents_serve_their_metrics_on_the_nodes_address_unless_disabled() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let agent = |values: &[&str]| {
        let objects = objects(&[], values);
        object(&objects, "DaemonSet", "underpass-cni-node")["spec"]["template"].clone()
    };
    let address = |template: &Value| {
        let variables = template["spec"]["containers"][0]["env"]
            .as_array()
            .unwrap()
            .clone();
        let mut named = variables
            .into_iter()
            .filter(|v| v["name"] == "UNDERPASS_AGENT_METRICS");
        named
            .next()
            .map(|v| v["valueFrom"]["fieldRef"]["fieldPath"].clone())
    };
    let serving = agent(&[]);
    assert_eq!(address(&serving), Some(json!("status.hostIP")));
    assert_eq!(
        serving["metadata"]["annotations"]["prometheus.io/port"],
        "15014"
    );
    let silent = agent(&["cni.metrics.enabled=false"]);
    assert_eq!(address(&silent), None);
    assert_eq!(silent["spec"]["containers"][0]["ports"], Value::Null);
    assert_eq!(
        silent["metadata"]["annotations"]["prometheus.io/port"],
        Value::Null
    );
}

#[test]
fn pod_monitors_and_the_network_policy_are_optional() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let kinds = ["PodMonitor", "NetworkPolicy"];
    let optional = |values: &[&str]| {
        let mut objects = objects(&[], values);
        objects.retain(|o| kinds.iter().any(|kind| o["kind"] == *kind));
        objects
    };
    assert_eq!(optional(&[]), [Value::Null; 0]);
    let enabled = [
        "global.networkPolicy.enabled=true",
        "global.podMonitor.enabled=true",
        r#"global.podMonitor.labels={"release":"prometheus"}"#,
        r#"global.podMonitor.interval="30s""#,
    ];
    let found = optional(&enabled);
    let every = helm::objects(&[], &enabled);
    for (set, label) in [("ztunnel", "app"), ("underpass-cni-node", "k8s-app")] {
        let monitor = object(&found, "PodMonitor", set);
        assert_eq!(
            monitor["spec"]["selector"]["matchLabels"],
            json!({ label: set })
        );
        assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(endpoint["interval"], "30s");
        let ports = pod(&every, set)["containers"][0]["ports"]
            .as_array()
            .unwrap()
            .clone();
        assert!(
            ports.iter().any(|port| port["name"] == endpoint["port"]),
            "{endpoint}"
        );
    }
    let policy = &object(&found, "NetworkPolicy", "ztunnel")["spec"];
    assert_eq!(
        policy["podSelector"]["matchLabels"],
        json!({ "app": "ztunnel" })
    );
    let ports = policy["ingress"][0]["ports"].as_array().unwrap();
    let ports: Vec<_> = ports.iter().map(|p| p["port"].as_u64().unwrap()).collect();
    assert_eq!(ports, [15020, 15021]);
    assert_eq!(policy["egress"], json!([{}]));
    let without_metrics = [&enabled[..], &["cni.metrics.enabled=false"]].concat();
    assert_eq!(optional(&without_metrics).len(), 2);
}

#[test]
fn the_agent_learns_how_to_chain_and_whom_to_enrol() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let names = [
        "CHAINED_CNI_PLUGIN",
        "ISTIO_OWNED_CNI_CONFIG",
        "ISTIO_OWNED_CNI_CONFIG_FILENAME",
        "AMBIENT_ENABLEMENT_SELECTOR",
    ];
    let variables = |values: &[&str]| {
        let objects = objects(&[], values);
        let agent = pod(&objects, "underpass-cni-node").clone();
        names.map(|name| variable(&agent, name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(variables(&[]), [some("true"), None, None, None]);
    let selectors = r#"[{"podSelector":{"matchLabels":{"team":"a"}}}]"#;
    assert_eq!(
        variables(&[
            "cni.chained=false",
            "cni.istioOwnedCNIConfig=true",
            r#"cni.istioOwnedCNIConfigFileName="01-mesh.conflist""#,
            &format!("cni.ambient.enablementSelectors={selectors}"),
        ]),
        [
            some("false"),
            some("true"),
            some("01-mesh.conflist"),
            some(selectors)
        ]
    );
    let misspelt = r#"cni.ambient.enablementSelectors=[{"podSelector":{"matchLabel":{"a":"b"}}}]"#;
    for bad in [
        misspelt,
        r#"cni.istioOwnedCNIConfigFileName="a/b.conflist""#,
    ] {
        assert!(
            !helm::run("template", &[], &[bad]).status.success(),
            "{bad}"
        );
    }
}
