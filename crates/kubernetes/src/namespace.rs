//! Namespaces.

use kube::core::ClusterResourceScope;
use serde::Deserialize;

use crate::metadata::{ObjectMeta, core_object, light};

/// A namespace: its name, its labels.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Namespace {
    /// Name and labels.
    #[serde(deserialize_with = "light")]
    pub metadata: ObjectMeta,
}

core_object!(Namespace, "Namespace", "namespaces", ClusterResourceScope);
