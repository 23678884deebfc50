//! Nodes.

use std::collections::BTreeMap;

use kube::core::ClusterResourceScope;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metadata::{ObjectMeta, api_object, slim_metadata};

/// A node, with its labels and taints.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Node {
    /// Name and labels.
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    /// Desired state.
    #[serde(default)]
    pub spec: NodeSpec,
}

/// Desired state of a node.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeSpec {
    /// Taints of the node.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// Networks of the node's pods, one of each family; empty if the cluster's network does not use
    /// them.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<String>,
}

/// A taint, which keeps away pods that do not tolerate it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Taint {
    /// Key of the taint.
    pub key: String,
    /// Value, effect and time, unchanged: the list of taints can only be written as a whole.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl Taint {
    /// The effect, e.g. `NoSchedule`.
    pub fn effect(&self) -> &str {
        self.rest
            .get("effect")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The value; empty if there is none.
    pub fn value(&self) -> &str {
        self.rest
            .get("value")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

api_object!(Node, "", "Node", "nodes", ClusterResourceScope);
