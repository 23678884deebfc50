//! The answers to the queries that are forwarded for one pod.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::bounded_map::{CacheBudget, CacheLimits};
use crate::known_answer::KnownAnswer;
use crate::lookup_cache::LookupCache;
use crate::query::Query;
use crate::query_event::Protocol;
use crate::settings::Settings;
use crate::validity::MAX_TTL;

/// Limits on the answers of one pod.
const LIMITS: CacheLimits = CacheLimits {
    entries: 1000,
    bytes: 256 << 10,
};
/// How long it is known that a name of the cluster domain does not exist, at most: the names of new
/// services and pods are often queried before they exist. NodeLocal DNSCache has the same limit.
const MAX_NEGATIVE_IN_CLUSTER: Duration = Duration::from_secs(5);

/// A cache of the answers to the queries that are forwarded for one pod. It is not shared: name
/// servers may answer each pod differently, network policies may keep a pod from asking one, and
/// a pod may be able to forge the answers to queries from its own namespace.
#[derive(Debug)]
pub struct AnswerCache(pub(super) Arc<LookupCache<KnownAnswer>>);

impl AnswerCache {
    /// Creates an empty cache.
    pub fn new(budget: Arc<CacheBudget>) -> Self {
        Self(Arc::new(LookupCache::new(LIMITS, budget)))
    }
}

/// How long the answer that there are no such records is used, at most.
pub(super) fn max_negative(query: &Query, settings: &Settings) -> Duration {
    let name = query.question.as_ref().map(|q| q.name().to_ascii());
    let name = name.unwrap_or_default().to_ascii_lowercase();
    let host = name
        .trim_end_matches('.')
        .strip_suffix(&settings.cluster_domain);
    if host.is_some_and(|host| host.is_empty() || host.ends_with('.')) {
        MAX_NEGATIVE_IN_CLUSTER
    } else {
        MAX_TTL
    }
}

/// The name servers that a query is forwarded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Upstreams {
    /// The one that the application queried.
    Queried(SocketAddr),
    /// Those of the settings, because the queried one is unknown.
    Configured,
}

impl Upstreams {
    /// Their addresses, in the order in which they are queried.
    pub(super) fn addresses<'a>(&'a self, settings: &'a Settings) -> &'a [SocketAddr] {
        match self {
            Self::Queried(address) => std::slice::from_ref(address),
            Self::Configured => settings.upstreams(),
        }
    }
}

/// What the answer to a forwarded query depends on. TCP is separate, because a connection to a name
/// server in the mesh is authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AnswerKey {
    upstreams: Upstreams,
    protocol: Protocol,
    query: Arc<[u8]>,
}

impl AnswerKey {
    /// The key of a query; `None` if its answer must not be used for others.
    pub(super) fn new(query: &Query, protocol: Protocol, upstreams: Upstreams) -> Option<Self> {
        let query = query.cache_key()?.into();
        Some(Self {
            upstreams,
            protocol,
            query,
        })
    }

    /// Its memory, in bytes.
    pub(super) fn size(&self) -> usize {
        self.query.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
    use hickory_proto::rr::{Name, RecordType};

    fn query(name: &str) -> Query {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Question::query(name, RecordType::A));
        Query::parse(&message.to_vec().unwrap()).unwrap()
    }

    #[test]
    fn names_of_the_cluster_are_unknown_for_five_seconds_at_most() {
        let settings = Settings::new("cluster.local", vec![([10, 96, 0, 10], 53).into()]);
        for (name, seconds) in [
            ("db-0.db.default.svc.Cluster.LOCAL.", 5),
            ("cluster.local.", 5),
            ("notcluster.local.", 300),
            ("cluster.local.example.", 300),
            (".", 300),
        ] {
            let limit = max_negative(&query(name), &settings);
            assert_eq!(limit, Duration::from_secs(seconds), "{name}");
        }
    }

    #[test]
    fn answers_of_other_name_servers_and_protocols_have_other_keys() {
        let server = |last| Upstreams::Queried(([10, 96, 0, last], 53).into());
        let key = |protocol, upstreams| AnswerKey::new(&query("a.example."), protocol, upstreams);
        let keys = [
            key(Protocol::Udp, server(1)),
            key(Protocol::Udp, server(2)),
            key(Protocol::Tcp, server(1)),
            key(Protocol::Udp, Upstreams::Configured),
        ];
        let different: std::collections::HashSet<_> = keys.iter().flatten().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(key(Protocol::Udp, server(1)), keys[0]);
    }
}
