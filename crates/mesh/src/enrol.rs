//! Decides which pods belong to the mesh, by Istio's labels.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use istio::annotation::SIDECAR_STATUS;
use istio::label::DATAPLANE_MODE;

use crate::decision::Decision;
use crate::snapshot::{Mesh, Namespace};
use crate::workload::Workload;

pub use crate::decision::EnrolmentReason;

/// The enrolment decision for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolment {
    /// The pod joins the mesh.
    Enrol(Arc<Workload>),
    /// The pod stays outside the mesh.
    Skip,
    /// The pod belongs to the mesh, but too little is known about it.
    Unknown,
}

/// Decides whether a pod belongs to the mesh, by its labels and properties.
pub fn belongs_to_mesh(
    namespace_labels: Option<&BTreeMap<String, String>>,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    host_network: bool,
) -> Decision<bool> {
    let of_namespace = namespace_labels
        .and_then(|l| l.get(DATAPLANE_MODE))
        .map(String::as_str);
    let of_pod = labels.get(DATAPLANE_MODE).map(String::as_str);
    if let Some(ineligible) = ineligible(annotations, host_network) {
        return ineligible;
    }
    let (belongs, code, reason) = match (of_namespace, of_pod) {
        (_, Some("none")) => (
            false,
            EnrolmentReason::OptedOut,
            format!("the pod opted out (label {DATAPLANE_MODE}=none)"),
        ),
        (_, Some("ambient")) => (
            true,
            EnrolmentReason::PodLabel,
            format!("label {DATAPLANE_MODE}=ambient on the pod"),
        ),
        (Some("ambient"), _) => (
            true,
            EnrolmentReason::NamespaceLabel,
            format!("label {DATAPLANE_MODE}=ambient on the namespace"),
        ),
        _ => (
            false,
            EnrolmentReason::NoLabel,
            format!("no label {DATAPLANE_MODE}=ambient on the pod or its namespace"),
        ),
    };
    Decision::new(belongs, reason).with_code(code)
}

/// Like [`belongs_to_mesh`], if an administrator's enablement selectors replace the label:
/// `selected` is the index of the one that matches.
pub fn belongs_by_selectors(
    selected: Option<usize>,
    annotations: &BTreeMap<String, String>,
    host_network: bool,
) -> Decision<bool> {
    if let Some(ineligible) = ineligible(annotations, host_network) {
        return ineligible;
    }
    match selected {
        Some(index) => {
            let reason = format!("enablement selector {} matches the pod", index + 1);
            Decision::new(true, reason).with_code(EnrolmentReason::Selected)
        }
        None => {
            let reason = "no enablement selector matches the pod and its namespace";
            Decision::new(false, reason).with_code(EnrolmentReason::NotSelected)
        }
    }
}

/// Why a pod cannot belong to the mesh, whatever selects it.
fn ineligible(
    annotations: &BTreeMap<String, String>,
    host_network: bool,
) -> Option<Decision<bool>> {
    let (code, reason) = if host_network {
        let reason = "the pod uses the node's network namespace (hostNetwork)".to_owned();
        (EnrolmentReason::HostNetwork, reason)
    } else if annotations.contains_key(SIDECAR_STATUS) {
        let reason = format!("the pod has a sidecar (annotation {SIDECAR_STATUS})");
        (EnrolmentReason::Sidecar, reason)
    } else {
        return None;
    };
    Some(Decision::new(false, reason).with_code(code))
}

/// Decides whether a pod that the runtime starts on `node` belongs to the mesh. Pods of other
/// clusters may have the same name: the one on this node and with these addresses is meant.
pub fn decide(
    mesh: &Mesh,
    node: &str,
    namespace: &str,
    name: &str,
    addresses: &[IpAddr],
) -> Decision<Enrolment> {
    let labels = mesh
        .namespace(namespace)
        .map(|n: &Arc<Namespace>| &n.labels);
    let own = mesh
        .workloads_by_name(namespace, name)
        .iter()
        .min_by_key(|w| {
            let is_elsewhere = !w.node.is_empty() && w.node != node;
            let is_other = addresses.iter().any(|a| !w.workload_ips.contains(a));
            (is_elsewhere, is_other, &w.uid)
        });
    let Some(workload) = own else {
        let nothing = BTreeMap::new();
        return if belongs_to_mesh(labels, &nothing, &nothing, false).outcome {
            let reason =
                format!("pod {namespace}/{name} is unknown, but its namespace belongs to the mesh");
            Decision::new(Enrolment::Unknown, reason).with_code(EnrolmentReason::Unknown)
        } else {
            let reason =
                format!("pod {namespace}/{name} is unknown, and its namespace is not in the mesh");
            Decision::new(Enrolment::Skip, reason).with_code(EnrolmentReason::NoLabel)
        };
    };
    let belongs = belongs_to_mesh(
        labels,
        &workload.labels,
        &workload.annotations,
        workload.host_network,
    );
    decide_belonging(belongs, workload, node)
}

/// Like [`decide`], for a pod whose workload is known, and of which it is known whether it
/// `belongs` to the mesh.
pub fn decide_belonging(
    belongs: Decision<bool>,
    workload: &Arc<Workload>,
    node: &str,
) -> Decision<Enrolment> {
    if !belongs.outcome {
        return Decision::new(Enrolment::Skip, belongs.reason).with_code(belongs.code);
    }
    if !workload.node.is_empty() && workload.node != node {
        let pod = workload.namespaced_name();
        let reason = format!(
            "pod {pod} is assigned to node {}, not to {node}",
            workload.node
        );
        return Decision::new(Enrolment::Unknown, reason)
            .with_code(EnrolmentReason::OtherNode)
            .after(vec![belongs.reason]);
    }
    Decision::new(Enrolment::Enrol(workload.clone()), belongs.reason).with_code(belongs.code)
}
