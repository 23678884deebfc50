//! The effect of the chart's values.

use std::process::Command;

use serde_json::json;
use underpass_tests::binaries::binary;
use underpass_tests::skip::skip;

use crate::helm::{self, object, objects, pod, variable};

/// Values of Istio's charts have the same effect in this chart.
#[test]
fn values_of_istios_charts_have_the_same_effect() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let values = [
        r#"global.hub="registry.example/mesh""#,
        r#"global.tag="1.2""#,
        r#"global.imagePullSecrets=["pull"]"#,
        r#"global.logAsJson=true"#,
        r#"cni.cniBinDir="/home/kubernetes/bin""#,
        r#"cni.excludeNamespaces=["kube-system","infra"]"#,
        r#"cni.ambient.dnsCapture=false"#,
        r#"cni.logging.level="debug""#,
        r#"cni.env={"UNDERPASS_CAPTURE":"nat"}"#,
        r#"ztunnel.image="other.example/proxy@sha256:00""#,
        r#"ztunnel.revision="canary""#,
        r#"ztunnel.caAddress="https://ca.example:443""#,
        r#"ztunnel.multiCluster.clusterName="east""#,
        r#"ztunnel.network="n1""#,
        concat!(
            "ztunnel.meshConfig.defaultConfig.proxyMetadata=",
            r#"{"XDS_ON_DEMAND":true,"RUST_LOG":"warn"}"#
        ),
        r#"ztunnel.terminationGracePeriodSeconds=3"#,
        r#"ztunnel.peerCaCrl.enabled=true"#,
        r#"ztunnel.resourceQuotas.enabled=true"#,
    ];
    let objects = objects(&[], &values);
    let agent = pod(&objects, "underpass-cni-node");
    assert_eq!(
        agent["containers"][0]["image"],
        "registry.example/mesh/underpass:1.2"
    );
    assert_eq!(agent["imagePullSecrets"], json!([{ "name": "pull" }]));
    assert_eq!(
        agent["volumes"][0]["hostPath"]["path"],
        "/home/kubernetes/bin"
    );
    assert_eq!(
        variable(agent, "EXCLUDE_NAMESPACES"),
        Some("kube-system,infra,istio-system")
    );
    assert_eq!(variable(agent, "AMBIENT_DNS_CAPTURE"), Some("false"));
    assert_eq!(variable(agent, "RUST_LOG"), Some("debug"));
    assert_eq!(
        variable(agent, "UNDERPASS_CAPTURE"),
        Some("nat"),
        "env takes precedence over the chart's variables"
    );
    let proxy = pod(&objects, "ztunnel");
    assert_eq!(
        proxy["containers"][0]["image"],
        "other.example/proxy@sha256:00"
    );
    for (name, value) in [
        (
            "XDS_ADDRESS",
            "https://istiod-canary.istio-system.svc:15012",
        ),
        ("CA_ADDRESS", "https://ca.example:443"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("NETWORK", "n1"),
        ("XDS_ON_DEMAND", "true"),
        ("RUST_LOG", "warn"),
        ("LOG_FORMAT", "json"),
        ("CONNECTION_TERMINATION_DEADLINE", "1s"),
        ("CRL_PATH", "/var/run/secrets/crl"),
    ] {
        assert_eq!(variable(proxy, name), Some(value), "{name}");
    }
    object(&objects, "ResourceQuota", "ztunnel-resource-quota");
}

#[test]
fn unknown_and_invalid_values_are_rejected() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    for bad in [
        r#"cni.excludeNamespace=["a"]"#,
        r#"cni.excludeNamespaces=["A_B"]"#,
        r#"cni.cniBinDir="opt/cni/bin""#,
        r#"cni.capture="iptables""#,
        r#"cni.ambient.dnsCapture="no""#,
        r#"global.platform="openshift4""#,
        r#"global.hub="""#,
        r#"ztunnel.terminationGracePeriodSeconds=0"#,
        r#"ztunnel.logLevl="info""#,
        r#"replicas=3"#,
    ] {
        let output = helm::run("template", &[], &[bad]);
        assert!(!output.status.success(), "{bad}");
    }
}

#[test]
fn an_api_server_without_the_profile_field_gets_the_annotation() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let annotation = "container.apparmor.security.beta.kubernetes.io/agent";
    for (version, is_annotated) in [("1.29.4", true), ("1.30.0", false)] {
        let objects = objects(&["--kube-version", version], &[]);
        let set = object(&objects, "DaemonSet", "underpass-cni-node");
        let context = &set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(
            set["spec"]["template"]["metadata"]["annotations"][annotation] == "unconfined",
            is_annotated
        );
        assert_eq!(
            context["appArmorProfile"]["type"] == "Unconfined",
            !is_annotated
        );
    }
}

/// Every variable that the chart sets is read by the program.
#[test]
fn programs_accept_the_variables_that_the_chart_sets() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    // Variables without an option: log, allocator, Istio's metadata, and the namespace of Events.
    let otherwise = [
        "RUST_LOG",
        "_RJEM_MALLOC_CONF",
        "LOG_FORMAT",
        "ISTIO_META_CLUSTER_ID",
        "ISTIO_META_NETWORK",
        "POD_NAME",
        "POD_NAMESPACE",
    ];
    let values = [
        r#"ztunnel.network="n""#,
        "ztunnel.peerCaCrl.enabled=true",
        "cni.istioOwnedCNIConfig=true",
        r#"cni.istioOwnedCNIConfigFileName="01-mesh.conflist""#,
        r#"cni.ambient.enablementSelectors=[{"podSelector":{}}]"#,
    ];
    let objects = objects(&[], &values);
    for (set, program) in [
        ("underpass-cni-node", "underpass-agent"),
        ("ztunnel", "underpass-proxy"),
    ] {
        let help = Command::new(binary(program))
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for variable in pod(&objects, set)["containers"][0]["env"]
            .as_array()
            .unwrap()
        {
            let name = variable["name"].as_str().unwrap();
            let is_option = ["=", "]"]
                .iter()
                .any(|end| help.contains(&format!("[env: {name}{end}")));
            assert!(
                is_option || otherwise.contains(&name),
                "{program} does not know {name}"
            );
        }
    }
}
