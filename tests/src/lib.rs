//! What the black-box tests share. Every test acts in network namespaces of its own, which vanish with the process.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a harness that cannot go on stops the test

pub mod agent_bench;
pub mod binaries;
pub mod certificates;
pub mod cgroup;
pub mod churn_bench;
pub mod cluster;
pub mod cni;
pub mod containerd;
pub mod control_plane;
pub mod folder;
pub mod foreign_agent;
pub mod frames;
pub mod image;
pub mod iptables;
pub mod kube;
pub mod listener;
pub mod machine;
pub mod measure;
pub mod name_server;
pub mod network;
pub mod node;
pub mod peer;
pub mod places;
pub mod played_proxy;
pub mod players;
pub mod recorder;
pub mod sandbox;
pub mod scene;
pub mod skip;
pub mod sniffer;
pub mod state_bench;
pub mod traffic;
pub mod wire;
