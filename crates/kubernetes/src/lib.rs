//! The Kubernetes API as Underpass needs it: a client, objects with only the fields that are looked at, and watches.
//!
//! A pod as the API server sends it takes 46 KB in memory with all of its fields, and 1 to 3 KB as it is here. Whoever
//! needs another kind has all of the `kube` crate at hand; what follows the cluster for a long time belongs here.

#![forbid(unsafe_code)]

mod client;
mod daemon_set;
mod event;
mod metadata;
mod namespace;
mod node;
mod pod;
mod watch;

pub use client::{ConnectError, connect, connect_as_person};
pub use daemon_set::{DaemonSet, DaemonSetStatus};
pub use event::{Event, EventSource, ObjectReference, now};
pub use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
pub use kube::{Api, Client, Error, ResourceExt};
pub use metadata::ObjectMeta;
pub use namespace::Namespace;
pub use node::{Node, NodeSpec, Taint};
pub use pod::{Address, Pod, PodSpec, PodStatus};
pub use watch::{Change, Selection, follow};

/// What the API server said when it refused: its HTTP status. None when it was not reached, or its answer not understood.
pub fn status_of(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}
