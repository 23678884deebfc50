//! ZDS, the protocol between a node agent and its proxies (`istio.workload.zds`): messages, codec,
//! and a state machine for each end, without I/O.
//!
//! Each packet on a `SOCK_SEQPACKET` socket is one protobuf message. The proxy connects and sends a
//! hello. The agent sends requests; only `Add` carries a file descriptor, the pod's network
//! namespace. The proxy answers the requests in order.

#![forbid(unsafe_code)]

pub mod agent;
pub mod codec;
pub mod message;
pub mod proxy;

pub use agent::Request;
pub use message::WorkloadInfo;
