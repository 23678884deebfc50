//! How the plugin is chained for containerd.

use std::fs;

use serde_json::Value;
use underpass_tests::kube::app::App;
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::skip::skip;

const ORIGINAL: &str = "10-network.conflist";
const COPY: &str = "02-underpass-cni.conflist";
const SPACE: &str = "chaining";

/// Starts a pod, which joins the mesh with its ADD: it was never outside.
fn start_in_mesh(kube: &Kube, name: &str) {
    kube.launch(&[App {
        namespace: SPACE,
        name,
        node: Some("node-1"),
        labels: Value::Null,
    }]);
    kube.await_enrolled(SPACE, name, true);
    let (_, status) = kube.underpass("node-1", &["status", "--json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let pods = status["pods"].as_array().unwrap();
    let pod = pods.iter().find(|p| p["name"] == *name).unwrap();
    assert!(pod["startedOutside"].is_null(), "{pod}");
}

/// The configurations of a node that contain the plugin, by name.
fn chained(kube: &Kube, node: usize) -> Vec<String> {
    let folder = kube.nodes[node].path("/etc/cni/net.d");
    let has_plugin = |name: &&str| {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.contains("underpass-cni")
    };
    let names = [COPY, ORIGINAL].into_iter().filter(has_plugin);
    names.map(str::to_owned).collect()
}

#[test]
fn containerd_calls_the_plugin_in_the_agents_own_copy() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::mesh_exclusive();
    kube.namespace(SPACE, true);
    for (name, values, expected) in [
        ("copied", &["cni.istioOwnedCNIConfig=true"][..], COPY),
        ("chained", &[], ORIGINAL),
    ] {
        kube.install_underpass(values);
        for node in [0, 1] {
            until(&format!("the plugin is only in {expected}"), || {
                (chained(&kube, node) == [expected]).then_some(())
            });
        }
        start_in_mesh(&kube, name);
    }
    // The next test counts the pods of the mesh.
    kube.kubectl(&["delete", "namespace", SPACE, "--timeout=60s"]);
}
