//! Events: what people see of an object with `kubectl describe`.

use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use crate::metadata::{ObjectMeta, core_object, light};

/// Something that happened to an object. The same again raises its count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// Its own name, in the object's namespace.
    #[serde(deserialize_with = "light")]
    pub metadata: ObjectMeta,
    /// The object.
    pub involved_object: ObjectReference,
    /// In a word, such as `NotEnrolled`.
    pub reason: String,
    /// For people; at most 1,024 bytes.
    pub message: String,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who tells.
    pub source: EventSource,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_timestamp: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_timestamp: Option<String>,
    /// How often it happened.
    pub count: u32,
}

/// Who tells.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventSource {
    /// The program.
    pub component: String,
    /// Its node.
    pub host: String,
}

/// An object that an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// Such as v1.
    pub api_version: String,
    /// Such as Pod.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Now, as Kubernetes writes it.
pub fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

core_object!(Event, "Event", "events", NamespaceResourceScope);
