//! Under a real istiod, which all of these tests share.
#![allow(clippy::unwrap_used)]

mod cluster;
mod istioctl;
mod mesh;
