//! DaemonSets.

use std::collections::BTreeMap;

use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use crate::metadata::{ObjectMeta, api_object, slim_metadata};

/// A DaemonSet, with what decides on which nodes it runs.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DaemonSet {
    /// Metadata, including the deletion timestamp.
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    /// Desired state.
    #[serde(default)]
    pub spec: DaemonSetSpec,
    /// Current state.
    #[serde(default)]
    pub status: DaemonSetStatus,
}

/// Desired state of a DaemonSet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DaemonSetSpec {
    /// Template of its pods.
    pub template: PodTemplate,
}

/// Template of pods.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodTemplate {
    /// Where the pods run.
    pub spec: Placement,
}

/// What decides on which nodes pods run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Further requirements.
    pub affinity: Option<Affinity>,
    /// Taints that a node may have.
    pub tolerations: Vec<Toleration>,
}

/// Requirements of a pod on its node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// Requirements on the node itself.
    pub node_affinity: Option<NodeAffinity>,
}

/// Requirements on a node; preferences are omitted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// Requirements of which one must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
}

/// Alternative requirements on a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// Terms of which one must hold.
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// Requirements on a node that must all hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Requirements on its labels.
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Requirements on its fields.
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// A requirement on a label or a field of a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    /// Name of the label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Operands.
    pub values: Vec<String>,
}

/// A taint that pods tolerate.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Key of the taint; empty matches all.
    pub key: String,
    /// `Exists`, `Equal`, or empty for `Equal`.
    pub operator: String,
    /// Value of the taint, for `Equal`.
    pub value: String,
    /// Effect of the taint; empty matches all.
    pub effect: String,
}

/// Current state of a DaemonSet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// Number of nodes that run a pod of the DaemonSet.
    #[serde(default)]
    pub current_number_scheduled: u32,
}

api_object!(
    DaemonSet,
    "apps",
    "DaemonSet",
    "daemonsets",
    NamespaceResourceScope
);
