//! The pods that are served: their sockets, their credentials, and the agent that names them.

mod pod;
mod pods;
mod zds_client;

pub(crate) use pod::{PORTS, Pod};
pub(crate) use pods::{PodStatus, Pods};
pub(crate) use zds_client::follow;
