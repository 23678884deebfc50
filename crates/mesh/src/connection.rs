//! A connection, as policies see it.

use crate::address::{ClientAddr, PodAddr};
use crate::identity::Identity;

/// The properties of a connection that policies can match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The client's address.
    pub client: ClientAddr,
    /// The client's identity, if it presented a valid certificate.
    pub identity: Option<Identity>,
    /// The destination in the pod.
    pub destination: PodAddr,
}
