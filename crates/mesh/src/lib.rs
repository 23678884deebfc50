//! What a mesh is: identities, addresses, workloads, services, policies, and the decisions made from them.
//!
//! Everything here is data and pure functions. A [`Mesh`] is an immutable snapshot: whoever needs it holds an `Arc` of it,
//! and a change is a new snapshot.

#![forbid(unsafe_code)]

pub mod address;
pub mod authorize;
pub mod baggage;
mod balance;
pub mod decision;
pub mod enrol;
pub mod file;
pub mod identity;
pub mod policy;
pub mod probe;
pub mod route;
pub mod service;
mod snapshot;
pub mod workload;

pub use address::{ClientAddr, OrigDst, PodAddr, TunnelAddr};
pub use decision::Decision;
pub use file::{MeshFileError, parse_mesh_file};
pub use identity::Identity;
pub use policy::Policy;
pub use service::Service;
pub use snapshot::{Mesh, Namespace};
pub use workload::Workload;
