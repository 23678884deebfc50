//! What an Istio control plane speaks: its messages, and a client for each of the two services that a node proxy uses.
//!
//! The messages are written out by hand, as those of `zds`: they are few, only the fields that mean something to us are
//! there (the decoder skips the others), and no compiler is needed to build them. The field numbers are the contract.

#![forbid(unsafe_code)]

pub mod authorization;
pub mod certificate;
mod client;
pub mod discovery;
pub mod protobuf;
pub mod to_mesh;
pub mod workload;

pub use client::{Connection, LARGEST_MESSAGE, Responses};

/// Workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Authorization policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
