//! ZDS, the protocol between a node agent and its proxies (`istio.workload.zds`): messages and codec here, and the state
//! machine of each end without I/O.

#![forbid(unsafe_code)]

pub mod message;
