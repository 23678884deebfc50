//! istiod as a pod, from the manifests that `istioctl` renders, with the node parts left out: those are ours.

use std::fs;

use serde_json::{Value, json};

use super::images::ISTIOD;
use super::{Kube, await_within, condition};
use crate::cluster::binary;
use crate::cluster::istiod::NAMESPACE;

/// Objects of these kinds are not for these tests: webhooks for sidecars, and what would scale istiod.
const LEFT_OUT: [&str; 4] =
    ["DaemonSet", "HorizontalPodAutoscaler", "PodDisruptionBudget", "MutatingWebhookConfiguration"];

/// Istio's own node parts, whose places are ours.
const NODE_PARTS: [&str; 2] = ["istio-cni", "ztunnel"];

/// Installs Istio's control plane, and waits until istiod is ready.
pub fn install(kube: &Kube) {
    kube.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }).to_string());
    tell_roots(kube);
    let text = |file: &str| fs::read_to_string(binary("manifests").join(file)).unwrap();
    kube.apply(&text("gateway-api.yaml"));
    let ambient = text("ambient.yaml");
    let objects = ambient.split("\n---\n").filter(|d| d.contains("kind:"));
    let objects = objects.map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let wanted = |o: &Value| {
        let part = &o["metadata"]["labels"]["app.kubernetes.io/name"];
        LEFT_OUT.iter().all(|kind| o["kind"] != *kind) && NODE_PARTS.iter().all(|name| *part != *name)
    };
    let objects = objects.filter(wanted).map(with_our_image);
    // Definitions come first in the manifests; objects of their kinds are not among them.
    kube.apply(&objects.map(|o| format!("---\n{o}\n")).collect::<String>());
    await_istiod(kube);
}

/// Waits until istiod is ready.
pub fn await_istiod(kube: &Kube) {
    await_within(60, "istiod is available", || {
        let istiod = kube.get("/apis/apps/v1/namespaces/istio-system/deployments/istiod")?;
        condition(&istiod, "Available").then_some(())
    });
}

/// Puts the files of Istio's authority where istiod reads them.
pub fn tell_roots(kube: &Kube) {
    let data: serde_json::Map<_, _> = kube.roots.files().into_iter().map(|(n, c)| (n, Value::String(c))).collect();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": NAMESPACE },
        "stringData": data,
    });
    kube.apply(&secret.to_string());
}

fn with_our_image(mut object: Value) -> Value {
    if object["kind"] == "Deployment" {
        let pod = &mut object["spec"]["template"]["spec"];
        pod["containers"][0]["image"] = json!(ISTIOD);
        pod["containers"][0]["imagePullPolicy"] = json!("Never");
        pod["containers"][0]["resources"] = json!({});
        let environment = pod["containers"][0]["env"].as_array_mut().unwrap();
        environment.retain(|e| e["name"] != "ISTIO_MULTIROOT_MESH");
        environment.push(json!({ "name": "ISTIO_MULTIROOT_MESH", "value": "true" })); // so that roots can change
    }
    object
}
