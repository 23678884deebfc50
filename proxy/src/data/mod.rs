//! The data path: from an accepted connection to its end.

mod connection;
mod error;
mod inbound;
mod options;
mod outbound;
mod passthrough;
mod policed;
mod probe;
mod proxy_protocol;
mod relay;
pub(crate) mod sockets;
mod tunnel;
mod upstream;
mod worker;

pub(crate) use connection::{Accepted, cut_short};
pub(crate) use error::ConnectionError;
pub(crate) use options::Options;
pub(crate) use worker::{Listener, Node, Phase, Worker, Workers};
