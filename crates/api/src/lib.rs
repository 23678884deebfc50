//! Messages of the Istio control plane, and clients for the two services that a node proxy uses.
//!
//! The message definitions are hand-written, like those of `zds`: they are few, contain only the
//! fields that the proxy uses (the decoder skips others), and need no protobuf compiler. The field
//! numbers are the contract.

#![forbid(unsafe_code)]

pub mod authorization;
pub mod certificate;
mod client;
pub mod discovery;
pub mod grpc;
pub mod protobuf;
pub mod to_mesh;
mod unknown_fields;
pub mod workload;

pub use client::{DeltaResponses, GrpcConnection, MAX_MESSAGE_SIZE};

/// Type URL of workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of authorization policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
