//! The event of one query, which updates metrics and the log together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh::Workload;
use telemetry::{CacheResult, DnsLabels, Metrics};
use tracing::Level;

use crate::known_answer::Reply;
use crate::lookup_cache::Origin;
use crate::message::response_code;
use crate::query::Query;

/// Transport protocol of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Udp,
    Tcp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A received query. Its result is recorded once.
#[derive(Debug)]
pub(super) struct QueryEvent {
    metrics: Arc<Metrics>,
    labels: DnsLabels,
    client: SocketAddr,
    started: Instant,
}

impl QueryEvent {
    /// Records a received query.
    pub(super) fn begin(
        metrics: &Arc<Metrics>,
        workload: &Workload,
        query: &Query,
        protocol: Protocol,
        client: SocketAddr,
    ) -> Self {
        let labels = DnsLabels {
            // All types without a name become "Unknown", so that a pod cannot create unlimited
            // series.
            request_query_type: query
                .question
                .as_ref()
                .map_or("-", |q| q.query_type().into()),
            request_protocol: protocol.as_str(),
            source_canonical_service: workload.canonical_name.to_string(),
            source_canonical_revision: workload.canonical_revision.to_string(),
        };
        metrics.count_dns_request(&labels);
        Self {
            metrics: metrics.clone(),
            labels,
            client,
            started: Instant::now(),
        }
    }

    /// Records that the query is forwarded.
    pub(super) fn record_forwarded(&self) {
        self.metrics.count_dns_upstream_request(&self.labels);
    }

    /// Records an answer from the mesh.
    pub(super) fn record_mesh_answer(self, query: &Query, service: &str, answer: &[u8]) {
        self.log(query, service, &format!("{:?}", response_code(answer)));
    }

    /// Records how the cache was used for the query.
    pub(super) fn record_cache_use(&self, reply: Option<&Reply>, origin: Origin) {
        let result = match origin {
            _ if reply.is_some_and(Reply::is_stale) => CacheResult::stale,
            Origin::Cache => CacheResult::hit,
            Origin::SharedLookup => CacheResult::shared,
            Origin::OwnLookup => CacheResult::miss,
        };
        self.metrics.count_dns_cache_use(result);
    }

    /// Records an answer of a name server: `answer` as it is sent to the client.
    pub(super) fn record_upstream_answer(
        self,
        query: &Query,
        reply: &Reply,
        origin: Origin,
        answer: &[u8],
    ) {
        let mut by = reply.answer.from.to_string();
        if reply.is_stale() {
            by += " (expired)";
        } else if origin == Origin::Cache {
            by += " (cached)";
        } else if origin == Origin::OwnLookup {
            let time = self.started.elapsed();
            self.metrics.record_dns_upstream_time(&self.labels, time);
        }
        self.log(query, &by, &format!("{:?}", response_code(answer)));
    }

    /// Records that the query was not answered.
    pub(super) fn record_failure(self, query: &Query, reason: &str) {
        self.metrics.count_dns_upstream_failure(&self.labels);
        self.log(query, "-", reason);
    }

    fn log(&self, query: &Query, by: &str, outcome: &str) {
        if !tracing::enabled!(target: "dns", Level::DEBUG) {
            return;
        }
        let name = query
            .question
            .as_ref()
            .map(|q| q.name().to_ascii())
            .unwrap_or_default();
        let duration = format!("{}ms", self.started.elapsed().as_millis());
        tracing::event!(
            target: "dns",
            Level::DEBUG,
            src.addr = %self.client,
            src.workload = self.labels.source_canonical_service,
            protocol = self.labels.request_protocol,
            r#type = self.labels.request_query_type,
            name = name.as_str(),
            by,
            duration = duration.as_str(),
            "query: {outcome}"
        );
    }
}
