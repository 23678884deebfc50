//! Tests on a real cluster of two nodes, which they share.
#![allow(clippy::unwrap_used)]

mod absence;
mod agents;
mod chaining;
mod check;
mod cluster;
mod control_plane;
mod demo;
mod nodes;
mod pods;
mod releases;
mod rights;
