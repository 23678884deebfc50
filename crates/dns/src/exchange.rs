//! How a query is answered: what UDP and TCP have in common.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use tokio::sync::OwnedSemaphorePermit;

use crate::Client;
use crate::answer::{self, IfUnknown, QueryContext, Resolution};
use crate::answer_cache::{AnswerKey, Upstreams};
use crate::known_answer::{Reply, UpstreamAnswer};
use crate::lookup_cache::Origin;
use crate::message::{clear_nxdomain, response_code};
use crate::query::{Query, encode};
use crate::query_event::{Protocol, QueryEvent};

/// What the server does with a query.
pub(super) enum Action {
    /// Sends this answer.
    Answer(Vec<u8>),
    /// Forwards the query to a name server.
    Forward(Box<ForwardedQuery>),
}

/// A query that only a name server can answer.
struct UnansweredQuery {
    event: QueryEvent,
    protocol: Protocol,
    if_unknown: IfUnknown,
}

/// A query that is being forwarded. It counts towards the pod's limit until its result is recorded.
pub(super) struct ForwardedQuery {
    query: UnansweredQuery,
    /// The key of its answer in the cache; `None` if the answer is not for others.
    pub(super) key: Option<AnswerKey>,
    _permit: OwnedSemaphorePermit,
}

/// Records a query and decides how to answer it; `None` if DNS is not served.
pub(super) fn handle(
    client: &impl Client,
    query: &Query,
    protocol: Protocol,
    peer: SocketAddr,
    upstreams: Upstreams,
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
    let unanswered = UnansweredQuery {
        event,
        protocol,
        if_unknown,
    };
    let key = AnswerKey::new(query, protocol, upstreams);
    if let Some(cached) = key.as_ref().and_then(|key| client.cache().0.valid(key)) {
        let answer = unanswered.answered(query, cached, Some(Origin::Cache));
        return Some(Action::Answer(answer));
    }
    let Ok(permit) = client.limits().forwarded.clone().try_acquire_owned() else {
        let reason = "too many pending queries";
        unanswered.event.record_failure(query, reason);
        return Some(Action::Answer(query.failure()));
    };
    Some(Action::Forward(Box::new(ForwardedQuery {
        query: unanswered,
        key,
        _permit: permit,
    })))
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

/// Forwards a query, or shares the answer to an equal one. `look_up` is called unless one is known
/// or being looked up.
pub(super) async fn forward<F>(
    client: &impl Client,
    query: &Query,
    forwarded: ForwardedQuery,
    look_up: impl FnOnce() -> F,
) -> Vec<u8>
where
    F: Future<Output = Result<UpstreamAnswer, String>> + 'static,
{
    let look_up = || {
        forwarded.record_forwarded();
        look_up()
    };
    let Some(key) = &forwarded.key else {
        let answer = look_up().await;
        return forwarded.answered_alone(query, answer);
    };
    let (result, origin) = client.cache().0.get(key, look_up).await;
    let result = result.unwrap_or_else(|| Err("the lookup was cancelled".to_owned()));
    forwarded.answered(query, result, origin)
}

impl ForwardedQuery {
    /// Records the result of a query that is not shared, and returns the answer for the client.
    pub(super) fn answered_alone(
        self,
        query: &Query,
        answer: Result<UpstreamAnswer, String>,
    ) -> Vec<u8> {
        let reply = answer.map(|answer| Reply::new(answer.into()));
        self.answered(query, reply, Origin::OwnLookup)
    }

    /// Records that the query is sent to a name server.
    pub(super) fn record_forwarded(&self) {
        self.query.event.record_forwarded();
    }

    /// Records the result of the query, and returns the answer for the client.
    fn answered(self, query: &Query, result: Result<Reply, String>, origin: Origin) -> Vec<u8> {
        let origin = self.key.is_some().then_some(origin);
        self.query.answered(query, result, origin)
    }
}

impl UnansweredQuery {
    /// Records the result of the query, and returns the answer for the client. `origin` is `None`
    /// for a query that is not cached.
    fn answered(
        self,
        query: &Query,
        result: Result<Reply, String>,
        origin: Option<Origin>,
    ) -> Vec<u8> {
        if let Some(origin) = origin {
            self.event.record_cache_use(result.as_ref().ok(), origin);
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(reason) => {
                self.event.record_failure(query, &reason);
                return query.failure();
            }
        };
        let origin = origin.unwrap_or(Origin::OwnLookup);
        let mut answer = match origin {
            Origin::OwnLookup if !reply.is_stale() => reply.to(query),
            _ => reply.rotated(query, rand::random_range(0..=usize::MAX)),
        };
        match self.if_unknown {
            IfUnknown::Mesh(addresses) if response_code(&answer) == ResponseCode::NXDomain => {
                answer = mesh_answer(query, addresses, self.protocol);
            }
            IfUnknown::NoRecords => clear_nxdomain(&mut answer),
            IfUnknown::Mesh(_) | IfUnknown::Unknown => {}
        }
        let event = self.event;
        event.record_upstream_answer(query, &reply, origin, &answer);
        answer
    }
}
