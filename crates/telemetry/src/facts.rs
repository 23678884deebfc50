//! What is known of a connection: the input of its metrics, log line and status.

use std::sync::Arc;

use mesh::baggage::Baggage;
use mesh::{ClientAddr, HostPort, Identity, OrigDst, ServerAddr, Service, Text, Workload};

/// The direction of a connection, as seen from the pod that this proxy serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A pod of this node is the client.
    Outbound,
    /// A pod of this node is the server.
    Inbound,
}

/// The source or destination of a connection.
#[derive(Debug, Clone, Default)]
pub struct Side {
    /// What is known of the workload, from the mesh or from the baggage of a tunnel.
    pub attributes: Baggage,
    /// The pod name. The attributes have the name of its owner.
    pub workload: Option<Text>,
    /// The identity authenticated by a certificate.
    pub identity: Option<Identity>,
}

impl Side {
    /// Describes a known workload.
    pub fn workload(workload: &Workload, identity: Option<Identity>) -> Self {
        Self {
            attributes: workload.into(),
            workload: Some(workload.name.clone()),
            identity,
        }
    }
}

/// The endpoints of a connection and what is known about them.
#[derive(Debug, Clone)]
pub struct ConnectionFacts {
    /// The end of the connection that this proxy serves.
    pub direction: Direction,
    /// The address of the client.
    pub client: ClientAddr,
    /// The side that opened the connection.
    pub source: Side,
    /// The address that the client connects to.
    pub requested_addr: OrigDst,
    /// The address that this proxy connects to or accepted the connection on.
    pub destination_addr: ServerAddr,
    /// The destination requested on the tunnel.
    pub authority: Option<HostPort>,
    /// The side that accepts the connection.
    pub destination: Side,
    /// The service that the client connects to; `None` if it connects to a workload's address.
    pub service: Option<Arc<Service>>,
    /// Code of the reason for which the connection was accepted late, if it was.
    pub delayed: Option<&'static str>,
}

impl ConnectionFacts {
    /// Describes a connection that a pod opens to an address, of which nothing else is known yet.
    pub fn outbound(client: ClientAddr, source: &Workload, to: OrigDst) -> Self {
        Self {
            direction: Direction::Outbound,
            client,
            source: Side::workload(source, None),
            requested_addr: to,
            destination_addr: to.into(),
            authority: None,
            destination: Side::default(),
            service: None,
            delayed: None,
        }
    }
}
