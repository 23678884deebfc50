//! Events, as shown by `kubectl describe`.

use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use crate::metadata::{ObjectMeta, api_object, slim_metadata};

/// An event of an object. Repeated events increment the count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// Name of the event, and the object's namespace.
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    /// The object that the event is about.
    pub involved_object: ObjectReference,
    /// CamelCase reason, e.g. `NotEnrolled`.
    pub reason: String,
    /// Human-readable message of at most 1,024 bytes.
    pub message: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Origin of the event.
    pub source: EventSource,
    /// First occurrence, in RFC 3339 format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_timestamp: Option<String>,
    /// Last occurrence, in RFC 3339 format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_timestamp: Option<String>,
    /// Number of occurrences.
    pub count: u32,
}

/// Origin of an event.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventSource {
    /// Name of the program.
    pub component: String,
    /// Name of its node.
    pub host: String,
}

/// A reference to an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// API version, e.g. `v1`.
    pub api_version: String,
    /// Kind, e.g. `Pod`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The current time in the format of Kubernetes objects.
pub fn now() -> String {
    k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

api_object!(Event, "", "Event", "events", NamespaceResourceScope);
