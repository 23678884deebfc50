//! Namespaces.

use kube::core::ClusterResourceScope;
use serde::Deserialize;

use crate::metadata::{ObjectMeta, api_object, slim_metadata};

/// A namespace, of which only metadata is fetched.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Namespace {
    /// Name, labels and deletion timestamp.
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
}

api_object!(
    Namespace,
    "",
    "Namespace",
    "namespaces",
    ClusterResourceScope,
    metadata_only
);
