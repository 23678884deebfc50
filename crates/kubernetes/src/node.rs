//! Nodes.

use std::collections::BTreeMap;

use kube::core::ClusterResourceScope;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metadata::{ObjectMeta, core_object, light};

/// A node: its labels, and what keeps pods away from it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Node {
    /// Name and labels.
    #[serde(deserialize_with = "light")]
    pub metadata: ObjectMeta,
    /// What it should be.
    #[serde(default)]
    pub spec: NodeSpec,
}

/// What a node should be.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NodeSpec {
    /// What keeps pods away from it.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// What keeps pods away from a node that do not tolerate it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Taint {
    /// Its name.
    pub key: String,
    /// Value, effect and time, as they came: a list of taints is written back as a whole.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

core_object!(Node, "Node", "nodes", ClusterResourceScope);
