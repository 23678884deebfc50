//! What a mesh is: identities, addresses, workloads, services, policies, and the decisions made from them.
//!
//! Everything here is data and pure functions. A [`Mesh`] is an immutable snapshot: whoever needs it holds an `Arc` of it,
//! and a change is a new snapshot, made by the [`Store`] at the cost of what changed.

#![forbid(unsafe_code)]

pub mod address;
pub mod admit;
pub mod authorize;
pub mod baggage;
mod compiled;
pub mod decision;
mod endpoints;
pub mod enrol;
pub mod explain;
mod few;
pub mod file;
pub mod gateway;
mod host;
pub mod identity;
mod intern;
mod membership;
pub mod policy;
mod ports;
pub mod probe;
pub mod route;
pub mod service;
mod snapshot;
mod store;
mod table;
mod text;
mod waypoint;
mod weighted;
pub mod workload;

pub use address::{ClientAddr, OrigDst, PodAddr, TunnelAddr};
pub use decision::Decision;
pub use endpoints::Endpoint;
pub use file::{MeshFileError, parse_mesh_file};
pub use host::{Host, HostPort};
pub use identity::Identity;
pub use membership::Memberships;
pub use policy::Policy;
pub use ports::Ports;
pub use service::Service;
pub use snapshot::{Mesh, Namespace};
pub use store::{Removed, Resource, Store};
pub use text::Text;
pub use workload::Workload;
