//! The data path: the life of a connection from `accept` to `close`.

mod accept;
mod budget;
mod connection;
mod dns_client;
mod endpoint_health;
mod error;
mod handshake;
mod inbound;
mod join;
mod options;
mod outbound;
mod passthrough;
mod policy_enforcer;
mod probe;
mod relay;
mod tunnel;
mod turns;
mod upstream;
mod worker;

pub(crate) use accept::ListenerKind;
pub(crate) use budget::{ExhaustedBudget, NodeBudget, PodBudget};
pub(crate) use options::Options;
pub(crate) use worker::{Lifecycle, ProxyState, Workers};
