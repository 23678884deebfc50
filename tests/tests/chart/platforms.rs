//! The platforms of `docs/platforms.md`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use underpass_tests::skip::skip;

use crate::helm::{self, object, objects, pod, variable};

/// The platforms that the chart knows, the default among them.
pub fn platforms() -> Vec<String> {
    let schema = helm::repository().join("deploy/helm/underpass/values.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let names = &schema["properties"]["global"]["properties"]["platform"]["enum"];
    serde_json::from_value(names.clone()).unwrap()
}

/// The value that selects a platform.
pub fn value(platform: &str) -> String {
    format!("global.platform={}", json!(platform))
}

fn role<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Vec<Value> {
    object(objects, kind, name)["rules"].as_array().unwrap()
}

#[test]
fn every_platform_passes_lint_and_is_documented() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let document = fs::read_to_string(helm::repository().join("docs/platforms.md")).unwrap();
    let documented: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    for platform in platforms() {
        let output = helm::run("lint", &["--strict"], &[&value(&platform)]);
        assert!(
            output.status.success(),
            "{platform}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(
            platform.is_empty() || documented.contains(&*platform),
            "{platform} is missing in docs/platforms.md"
        );
    }
}

#[test]
fn a_platform_sets_its_folders() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let folders = |values: &[&str]| {
        let objects = objects(&[], values);
        let agent = pod(&objects, "underpass-cni-node").clone();
        let path = |index: usize| {
            agent["volumes"][index]["hostPath"]["path"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            agent["containers"][0]["volumeMounts"][2]["mountPath"],
            path(2),
            "namespaces have the node's paths"
        );
        [path(0), path(1), path(2)]
    };
    let usual = ["/opt/cni/bin", "/etc/cni/net.d", "/var/run/netns"];
    for platform in ["", "aks", "bottlerocket", "eks", "rke2", "talos"] {
        assert_eq!(folders(&[&value(platform)]), usual, "{platform}");
    }
    let k3s = "/var/lib/rancher/k3s";
    let k3s_conf = format!("{k3s}/agent/etc/cni/net.d");
    let microk8s = "/var/snap/microk8s/current";
    for (platform, bin, conf) in [
        ("gke", "/home/kubernetes/bin", usual[1]),
        ("k3d", "/bin", &k3s_conf),
        ("k3s", &format!("{k3s}/data/cni"), &k3s_conf),
        (
            "microk8s",
            &format!("{microk8s}/opt/cni/bin"),
            &format!("{microk8s}/args/cni-network"),
        ),
        ("openshift", "/var/lib/cni/bin", "/etc/kubernetes/cni/net.d"),
    ] {
        assert_eq!(
            folders(&[&value(platform)]),
            [bin, conf, usual[2]],
            "{platform}"
        );
    }
    assert_eq!(folders(&[&value("minikube")])[2], "/var/run/docker/netns");
    let own = folders(&[&value("k3s"), r#"cni.cniBinDir="/bin""#]);
    assert_eq!(own, ["/bin", &k3s_conf, usual[2]]);
}

/// Both DaemonSets have the SELinux type of the platform, unless a value sets another one.
#[test]
fn a_platform_sets_the_selinux_type() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let types = |values: &[&str]| {
        let objects = objects(&[], values);
        ["underpass-cni-node", "ztunnel"].map(|set| {
            let context = &pod(&objects, set)["containers"][0]["securityContext"];
            assert_eq!(context["privileged"], false);
            context["seLinuxOptions"]["type"].clone()
        })
    };
    let with_type = ["bottlerocket", "k3s", "openshift", "rke2"];
    for platform in platforms() {
        let has_type = with_type.contains(&&*platform);
        let expected = if has_type {
            json!("spc_t")
        } else {
            Value::Null
        };
        assert_eq!(
            types(&[&value(&platform)]),
            [&expected; 2].map(Value::clone),
            "{platform}"
        );
    }
    let own = [
        &*value("openshift"),
        r#"cni.seLinuxOptions={"type":"own_t"}"#,
    ];
    assert_eq!(types(&own), [json!("own_t"), json!("spc_t")]);
}

/// OpenShift's permission to use the node, and nothing else, is added to the accounts of all pods.
#[test]
fn only_openshift_adds_permissions_and_keeps_the_plugin_for_cri_o() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let privileged = json!({
        "apiGroups": ["security.openshift.io"],
        "resources": ["securitycontextconstraints"],
        "resourceNames": ["privileged"],
        "verbs": ["use"],
    });
    let usual = objects(&[], &[]);
    for platform in platforms() {
        let objects = objects(&[], &[&value(&platform)]);
        let is_openshift = platform == "openshift";
        for (kind, name) in [
            ("ClusterRole", "underpass-cni"),
            ("Role", "underpass-cni-retirement"),
        ] {
            let mut expected = role(&usual, kind, name).clone();
            expected.extend(is_openshift.then(|| privileged.clone()));
            assert_eq!(*role(&objects, kind, name), expected, "{platform}");
        }
        let has_proxy_role = objects
            .iter()
            .any(|o| o["kind"] == "Role" && o["metadata"]["name"] == "ztunnel");
        assert_eq!(has_proxy_role, is_openshift, "{platform}");
        if is_openshift {
            let rules = std::slice::from_ref(&privileged);
            assert_eq!(*role(&objects, "Role", "ztunnel"), *rules);
            let binding = object(&objects, "RoleBinding", "ztunnel");
            assert_eq!(binding["subjects"][0]["name"], "ztunnel");
        }
        let agent = pod(&objects, "underpass-cni-node");
        let keeps = variable(agent, "UNDERPASS_KEEP_PLUGIN");
        assert_eq!(
            keeps,
            Some(if is_openshift { "true" } else { "false" }),
            "{platform}"
        );
    }
}

#[test]
fn gke_gets_quotas_outside_kube_system() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let quotas = |more: &[&str], values: &[&str]| {
        let objects = objects(more, values);
        let quotas = objects.iter().filter(|o| o["kind"] == "ResourceQuota");
        quotas.count()
    };
    for platform in platforms() {
        let expected = if platform == "gke" { 2 } else { 0 };
        assert_eq!(quotas(&[], &[&value(&platform)]), expected, "{platform}");
    }
    let elsewhere = ["--namespace", "kube-system"];
    assert_eq!(quotas(&elsewhere, &[&value("gke")]), 0);
}
