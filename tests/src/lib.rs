//! What the black-box tests share. Every test acts in network namespaces of its own, which vanish with the process.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a harness that cannot go on stops the test

pub mod binaries;
pub mod cgroup;
pub mod cni;
pub mod containerd;
pub mod folder;
pub mod image;
pub mod iptables;
pub mod listener;
pub mod machine;
pub mod network;
pub mod node;
pub mod recorder;
pub mod sandbox;
pub mod skip;
pub mod sniffer;
pub mod wire;
