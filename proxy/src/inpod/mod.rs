//! The served pods, with their sockets and certificates, and the connection to the node agent.

mod handover;
mod pod;
mod pods;
mod zds_client;

pub(crate) use handover::hand_over;
pub(crate) use pod::{LocalNode, Pod, PodId};
pub(crate) use pods::{Pods, ServedPodStatus};
pub(crate) use zds_client::follow_agent;
