//! The agent under a real API server and a real istiod, which all of these tests share. Nodes and pods are objects; the pods
//! have network namespaces, and the plugin is called as a runtime calls it.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

mod add;
mod flags;
mod lists;
mod older;
mod ready;
mod retirement;
mod running;
mod scene;
mod told;
