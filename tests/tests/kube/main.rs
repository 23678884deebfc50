//! On a real cluster of two nodes, which all of these tests share.
#![allow(clippy::unwrap_used)]

mod cluster;
mod releases;
