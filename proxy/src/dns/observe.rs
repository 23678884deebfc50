//! One query, told once: its metrics and its line in the log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh::Workload;
use tracing::Level;

use super::query::{Query, response_code};
use crate::telemetry::{DnsLabels, Metrics};

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// A query that has been taken.
#[derive(Debug)]
pub(super) struct Asked {
    metrics: Arc<Metrics>,
    labels: DnsLabels,
    client: SocketAddr,
    started: Instant,
}

impl Asked {
    /// A query is taken.
    pub(super) fn begin(
        metrics: &Arc<Metrics>,
        workload: &Workload,
        query: &Query,
        protocol: Protocol,
        client: SocketAddr,
    ) -> Self {
        let labels = DnsLabels {
            // "Unknown" for all types without a name, so that a pod cannot make any number of series.
            request_query_type: query.question.as_ref().map_or("-", |q| q.query_type().into()),
            request_protocol: protocol.as_str(),
            source_canonical_service: workload.canonical_name.to_string(),
            source_canonical_revision: workload.canonical_revision.to_string(),
        };
        metrics.dns_requests.get_or_create(&labels).inc();
        Self { metrics: metrics.clone(), labels, client, started: Instant::now() }
    }

    /// It is forwarded.
    pub(super) fn forwarded(&self) {
        self.metrics.dns_upstream_requests.get_or_create(&self.labels).inc();
    }

    /// It was answered from the mesh.
    pub(super) fn answered(self, query: &Query, service: &str, answer: &[u8]) {
        self.log(query, service, &format!("{:?}", response_code(answer)));
    }

    /// A name server has answered it.
    pub(super) fn answered_by(self, query: &Query, upstream: SocketAddr, answer: &[u8]) {
        let took = self.started.elapsed().as_secs_f64();
        self.metrics.dns_upstream_seconds.get_or_create(&self.labels).observe(took);
        self.log(query, &upstream.to_string(), &format!("{:?}", response_code(answer)));
    }

    /// Nobody has answered it.
    pub(super) fn failed(self, query: &Query, why: &str) {
        self.metrics.dns_upstream_failures.get_or_create(&self.labels).inc();
        self.log(query, "-", why);
    }

    fn log(&self, query: &Query, by: &str, outcome: &str) {
        if !tracing::enabled!(target: "dns", Level::DEBUG) {
            return;
        }
        let name = query.question.as_ref().map(|q| q.name().to_ascii()).unwrap_or_default();
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
