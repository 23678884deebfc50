//! How a query is answered: what UDP and TCP have in common.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use tokio::sync::OwnedSemaphorePermit;

use crate::Client;
use crate::answer::{self, IfUnknown, QueryContext, Resolution};
use crate::query::{Query, clear_nxdomain, encode, response_code};
use crate::query_event::{Protocol, QueryEvent};

/// What the server does with a query.
pub(super) enum Action {
    /// Sends this answer.
    Answer(Vec<u8>),
    /// Forwards the query to a name server.
    Forward(ForwardedQuery),
}

/// A query that is being forwarded. It counts towards the pod's limit until its result is recorded.
pub(super) struct ForwardedQuery {
    event: QueryEvent,
    protocol: Protocol,
    if_unknown: IfUnknown,
    _permit: OwnedSemaphorePermit,
}

/// Records a query and decides how to answer it; `None` if DNS is not served.
pub(super) fn handle(
    client: &impl Client,
    query: &Query,
    protocol: Protocol,
    peer: SocketAddr,
) -> Option<Action> {
    let settings = client.settings()?;
    let mesh = client.mesh();
    let workload = client.workload(&mesh);
    let event = QueryEvent::begin(client.metrics(), &workload, query, protocol, peer);
    let context = QueryContext {
        mesh: &mesh,
        workload: &workload,
        cluster_domain: &settings.cluster_domain,
    };
    let if_unknown = match answer::decide(query, &context) {
        Resolution::Forward(if_unknown) => if_unknown,
        Resolution::Mesh { service, addresses } => {
            let bytes = mesh_answer(query, addresses, protocol);
            event.record_mesh_answer(query, &service.hostname, &bytes);
            return Some(Action::Answer(bytes));
        }
    };
    let Ok(permit) = client.limits().forwarded.clone().try_acquire_owned() else {
        event.record_failure(query, "too many pending queries");
        return Some(Action::Answer(query.failure()));
    };
    event.record_forwarded();
    Some(Action::Forward(ForwardedQuery {
        event,
        protocol,
        if_unknown,
        _permit: permit,
    }))
}

/// Encodes the answer with these addresses in random order.
fn mesh_answer(query: &Query, addresses: Vec<IpAddr>, protocol: Protocol) -> Vec<u8> {
    let message = answer::message(query, addresses, rand::random_range(0..=usize::MAX));
    let limit = match protocol {
        Protocol::Udp => query.udp_size(),
        Protocol::Tcp => usize::from(u16::MAX),
    };
    encode(&message, limit).unwrap_or_else(|| query.failure())
}

impl ForwardedQuery {
    /// Records the name server's answer, and returns it as it is sent to the client.
    pub(super) fn answered(
        self,
        query: &Query,
        upstream: SocketAddr,
        mut answer: Vec<u8>,
    ) -> Vec<u8> {
        match self.if_unknown {
            IfUnknown::Mesh(addresses) if response_code(&answer) == ResponseCode::NXDomain => {
                answer = mesh_answer(query, addresses, self.protocol);
            }
            IfUnknown::NoRecords => clear_nxdomain(&mut answer),
            IfUnknown::Mesh(_) | IfUnknown::Unknown => {}
        }
        self.event.record_upstream_answer(query, upstream, &answer);
        answer
    }

    /// Records that no name server answered, and returns the answer for the client.
    pub(super) fn failed(self, query: &Query, reason: &str) -> Vec<u8> {
        self.event.record_failure(query, reason);
        query.failure()
    }
}
