//! On a real cluster of two nodes, which all of these tests share.
#![allow(clippy::unwrap_used)]

mod absence;
mod agents;
mod check;
mod cluster;
mod control_plane;
mod nodes;
mod pods;
mod releases;
mod story;
