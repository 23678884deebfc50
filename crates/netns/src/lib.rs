//! Network namespaces, file descriptors passed over sockets, and the sockets of a transparent proxy.
//!
//! This is the only crate of Underpass with `unsafe` code; every block says why it is sound. Everything here is a thin
//! layer over one kernel interface and decides nothing.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod datagram;
mod namespace;
pub mod process;
pub mod seqpacket;
pub mod sockopt;
#[cfg(feature = "tokio")]
pub mod watch;

pub use namespace::{NetNs, NetNsError, NetNsId};
