//! The mesh: identities, addresses, workloads, services, policies, and decisions based on them.
//!
//! This crate contains only data and pure functions. A [`Mesh`] is an immutable snapshot that
//! readers hold by `Arc`. The [`Store`] turns each update into a new snapshot; the cost depends on
//! the size of the update, not of the mesh.

#![forbid(unsafe_code)]

pub mod address;
pub mod admit;
pub mod authorize;
pub mod baggage;
mod compiled;
mod connection;
pub mod decision;
mod endpoints;
pub mod enrol;
pub mod explain;
pub mod file;
pub mod gateway;
mod host;
pub mod identity;
mod intern;
mod membership;
mod one_or_many;
pub mod policy;
mod policy_set;
mod ports;
pub mod probe;
pub mod proxy_protocol;
pub mod route;
pub mod service;
mod settling;
mod shared_host;
mod snapshot;
mod store;
mod table;
mod text;
mod trust_domains;
mod waypoint;
mod weighted;
pub mod workload;

pub use address::{ClientAddr, OrigDst, PodAddr, ServerAddr, TunnelAddr};
pub use decision::Decision;
pub use endpoints::Endpoint;
pub use file::{MeshFileError, parse_mesh_file};
pub use host::{Host, HostPort};
pub use identity::Identity;
pub use membership::Memberships;
pub use policy::Policy;
pub use policy_set::PolicySet;
pub use ports::Ports;
pub use service::Service;
pub use settling::SettlingStore;
pub use snapshot::{Mesh, MeshSettings, Namespace};
pub use store::{Placeholder, Removal, Resource, Store};
pub use text::Text;
pub use trust_domains::TrustDomains;
pub use waypoint::is_gateway_of_network;
pub use workload::Workload;
