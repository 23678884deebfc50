//! A mesh on one machine: the sandbox plays the container runtime. It makes network namespaces for nodes and pods, wires
//! them, runs the CNI plugins exactly as a runtime does, and runs an agent and a proxy per node.

mod app;
mod client;
mod cni;
pub(crate) mod delete_rules;
mod keeper;
mod layout;
mod net_plugin;
mod network;
mod node;
mod plan;
mod privilege;
mod report;

pub(crate) use client::{Started, down, exec, repair, repair_and_wait, start, status, stop, up};
pub(crate) use keeper::keep;
pub(crate) use layout::Layout;
pub(crate) use net_plugin::{NET_PLUGIN, run as net_plugin};
pub(crate) use privilege::become_able;
pub(crate) use report::{NodeReport, Report};
