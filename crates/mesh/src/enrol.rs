//! Who belongs to the mesh, by Istio's labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decision::Decision;
use crate::snapshot::{Mesh, Namespace};
use crate::workload::Workload;

/// The label of namespaces and pods that says whether they belong to the mesh.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The annotation that a pod with a sidecar carries.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// The annotation that an enrolled pod carries, with `enabled`: nothing else tells istiod.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolment {
    /// It joins.
    Enrol(Arc<Workload>),
    /// It stays outside.
    Skip,
    /// It would join, but what is known about it does not suffice.
    Unknown,
}

/// Decides by labels and properties of a pod whether it belongs to the mesh.
pub fn belongs(
    namespace_labels: Option<&BTreeMap<String, String>>,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    host_network: bool,
) -> Decision<bool> {
    let of_namespace = namespace_labels.and_then(|l| l.get(DATAPLANE_MODE)).map(String::as_str);
    let of_pod = labels.get(DATAPLANE_MODE).map(String::as_str);
    if host_network {
        return Decision::new(false, "the pod has the node's network namespace (hostNetwork)");
    }
    if annotations.contains_key(SIDECAR_STATUS) {
        return Decision::new(false, format!("the pod has a sidecar (annotation {SIDECAR_STATUS})"));
    }
    match (of_namespace, of_pod) {
        (_, Some("none")) => Decision::new(false, format!("the pod opted out (label {DATAPLANE_MODE}=none)")),
        (_, Some("ambient")) => Decision::new(true, format!("label {DATAPLANE_MODE}=ambient on the pod")),
        (Some("ambient"), _) => Decision::new(true, format!("label {DATAPLANE_MODE}=ambient on the namespace")),
        _ => Decision::new(false, format!("no label {DATAPLANE_MODE}=ambient on the pod or its namespace")),
    }
}

/// Decides whether a pod that a runtime is about to start on `node` belongs to the mesh.
pub fn decide(mesh: &Mesh, node: &str, namespace: &str, name: &str) -> Decision<Enrolment> {
    let labels = mesh.namespace(namespace).map(|n: &Arc<Namespace>| &n.labels);
    let Some(workload) = mesh.workload_by_name(namespace, name) else {
        let nothing = BTreeMap::new();
        return if belongs(labels, &nothing, &nothing, false).outcome {
            let reason = format!("pod {namespace}/{name} is unknown, and its namespace belongs to the mesh");
            Decision::new(Enrolment::Unknown, reason)
        } else {
            let reason = format!("pod {namespace}/{name} is unknown, and its namespace does not belong to the mesh");
            Decision::new(Enrolment::Skip, reason)
        };
    };
    decide_known(labels, workload, node)
}

/// The same about a pod that is known, wherever that is from.
pub fn decide_known(
    namespace_labels: Option<&BTreeMap<String, String>>,
    workload: &Arc<Workload>,
    node: &str,
) -> Decision<Enrolment> {
    let belongs = belongs(namespace_labels, &workload.labels, &workload.annotations, workload.host_network);
    if !belongs.outcome {
        return Decision::new(Enrolment::Skip, belongs.reason);
    }
    if !workload.node.is_empty() && workload.node != node {
        let pod = workload.namespaced_name();
        let reason = format!("pod {pod} is assigned to node {}, and this is {node}", workload.node);
        return Decision::new(Enrolment::Unknown, reason).after(vec![belongs.reason]);
    }
    Decision::new(Enrolment::Enrol(workload.clone()), belongs.reason)
}
