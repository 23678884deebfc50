//! A real Envoy as waypoint under a real istiod, on a real cluster of two nodes, which the tests
//! share.
#![allow(clippy::unwrap_used)]

mod shop;
mod waypoint;
mod waypoint_bindings;
mod waypoint_changes;
