//! A mesh on one machine. The sandbox acts as the container runtime: it creates and connects
//! network namespaces for nodes and pods, runs the CNI plugins like a runtime, and runs an agent
//! and a proxy per node.

#![allow(clippy::disallowed_types)] // it acts as a container runtime and starts processes

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
mod protocol;
mod report;

pub(crate) use client::{
    RunningSandbox, down, exec, repair, repair_and_wait, start, status, stop, up,
};
pub(crate) use keeper::keep;
pub(crate) use layout::Layout;
pub(crate) use net_plugin::{NET_PLUGIN, run as net_plugin};
pub(crate) use privilege::acquire_privileges;
pub(crate) use report::{NodeReport, SandboxReport};
