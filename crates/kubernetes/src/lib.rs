//! A Kubernetes API client for Underpass: connections, objects with only the fields in use, and
//! watches.
//!
//! A pod with all fields takes 46 KB of memory; with the fields defined here, 1 to 3 KB. Types of
//! objects that are watched belong here; for occasional requests, use the `kube` crate directly.

#![forbid(unsafe_code)]

mod client;
mod daemon_set;
mod event;
mod metadata;
mod namespace;
mod node;
mod pod;
mod retry;
mod selector;
mod streaming;
mod watch;

pub use client::{ConnectError, connect, connect_as_user};
pub use daemon_set::{
    Affinity, DaemonSet, DaemonSetSpec, DaemonSetStatus, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Placement, PodTemplate, Toleration,
};
pub use event::{Event, EventSource, ObjectReference, now};
pub use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
pub use kube::{Api, Client, Error, ResourceExt};
pub use metadata::ObjectMeta;
pub use namespace::Namespace;
pub use node::{Node, NodeSpec, Taint};
pub use pod::{
    Capabilities, Container, ContainerPort, Pod, PodIp, PodSpec, PodStatus, Probe, ProbePort,
    ProbeTarget, SecurityContext,
};
pub use selector::{EnablementSelectors, LabelMatch, Labels, SelectorError};
pub use watch::{Selector, WatchEvent, watch};

/// The HTTP status of an error response; `None` if the API server was not reached or its response
/// could not be decoded.
pub fn status_of(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}
