//! Tests under a real istiod, which they share.
#![allow(clippy::unwrap_used)]

mod cluster;
mod istioctl;
mod mesh;
