//! Network namespaces, file descriptors passed over sockets, and the sockets of a transparent
//! proxy.
//!
//! This is the only crate of Underpass with `unsafe` code; every block documents why it is sound.
//! Each module is a thin layer over one kernel interface, without policy.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod datagram;
mod namespace;
pub mod process;
pub mod seqpacket;
pub mod sockopt;
#[cfg(feature = "tokio")]
pub mod watch;

pub use namespace::{NetNs, NetNsError, NetNsId};
