//! The agent with a real API server and a real istiod, which these tests share. Nodes and pods are
//! objects; pods have network namespaces, and the tests call the plugin like a runtime.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

mod add;
mod events;
mod fixture;
mod flags;
mod late_starts;
mod lists;
mod pod_process;
mod preexisting;
mod ready;
mod retirement;
mod running;
