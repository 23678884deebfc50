//! A real Envoy as waypoint under a real istiod, on a real cluster of two nodes, which the tests
//! share; and one without a cluster while proxies are replaced.
#![allow(clippy::unwrap_used)]

mod replaced_proxy;
mod shop;
mod waypoint;
mod waypoint_bindings;
mod waypoint_changes;
