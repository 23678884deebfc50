//! ZDS, the protocol between a node agent and its proxies (`istio.workload.zds`): messages and codec here, and the state
//! machine of each end without I/O.
//!
//! One protobuf message is one packet of a `SOCK_SEQPACKET` socket. The proxy connects and says hello; the agent sends
//! requests, of which only `Add` carries a file descriptor (the pod's network namespace); the proxy answers each, in order.

#![forbid(unsafe_code)]

pub mod agent;
pub mod codec;
pub mod message;
pub mod proxy;

pub use agent::Request;
pub use message::WorkloadInfo;
