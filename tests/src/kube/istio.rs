//! istiod as a pod, from the manifests that `istioctl` renders, without the node components, which
//! Underpass replaces.

use std::fs;

use serde_json::{Value, json};

use super::images::ISTIOD;
use super::{Kube, condition, until};
use crate::cluster::binary;
use crate::cluster::istiod::NAMESPACE;

/// Kinds that are left out: webhooks for sidecars, and objects that scale istiod.
const LEFT_OUT: [&str; 4] = [
    "DaemonSet",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "MutatingWebhookConfiguration",
];

/// Istio's node components, which Underpass replaces.
const NODE_PARTS: [&str; 2] = ["istio-cni", "ztunnel"];

/// The objects of Istio's control plane.
pub(super) fn objects() -> Vec<Value> {
    let ambient = fs::read_to_string(binary("manifests").join("ambient.yaml")).unwrap();
    let objects = ambient.split("\n---\n").filter(|d| d.contains("kind:"));
    objects
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
        .collect()
}

/// Installs Istio's control plane and waits until istiod is ready.
pub fn install(kube: &Kube) {
    kube.apply(
        &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })
            .to_string(),
    );
    publish_roots(kube);
    let definitions = binary("manifests").join("gateway-api.yaml");
    kube.apply(&fs::read_to_string(definitions).unwrap());
    let wanted = |o: &Value| {
        let part = &o["metadata"]["labels"]["app.kubernetes.io/name"];
        LEFT_OUT.iter().all(|kind| o["kind"] != *kind)
            && NODE_PARTS.iter().all(|name| *part != *name)
    };
    let objects = objects().into_iter().filter(wanted).map(with_local_image);
    // Definitions come first in the manifests, which contain no objects of these kinds.
    kube.apply(&objects.map(|o| format!("---\n{o}\n")).collect::<String>());
    await_istiod(kube);
}

/// Waits until istiod is ready.
pub fn await_istiod(kube: &Kube) {
    until("istiod is available", || {
        let istiod = kube.get("/apis/apps/v1/namespaces/istio-system/deployments/istiod")?;
        condition(&istiod, "Available").then_some(())
    });
}

/// Writes the files of Istio's authority into the secret that istiod reads.
pub fn publish_roots(kube: &Kube) {
    let data: serde_json::Map<_, _> = kube
        .roots
        .files()
        .into_iter()
        .map(|(n, c)| (n, Value::String(c)))
        .collect();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": NAMESPACE },
        "stringData": data,
    });
    kube.apply(&secret.to_string());
}

fn with_local_image(mut object: Value) -> Value {
    if object["kind"] == "Deployment" {
        let pod = &mut object["spec"]["template"]["spec"];
        pod["containers"][0]["image"] = json!(ISTIOD);
        pod["containers"][0]["imagePullPolicy"] = json!("Never");
        pod["containers"][0]["resources"] = json!({});
        let environment = pod["containers"][0]["env"].as_array_mut().unwrap();
        environment.retain(|e| e["name"] != "ISTIO_MULTIROOT_MESH");
        // Allows roots to change.
        environment.push(json!({ "name": "ISTIO_MULTIROOT_MESH", "value": "true" }));
    }
    object
}
