//! One connection, told once: from its facts come the metrics' labels and the access log's line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mesh::baggage::Baggage;
use mesh::{ClientAddr, HostPort, Identity, Service, Text, Workload};
use prometheus_client::metrics::counter::Counter;

use super::metrics::{Metrics, OnDemandDnsLabels, Reporter, SourceLabels, TrafficLabels};
use super::open::Open;
use crate::data::ConnectionError;

/// Which side of the mesh this proxy is on for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// A pod of ours connects.
    Outbound,
    /// Somebody connects to a pod of ours.
    Inbound,
}

/// What is known about one end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    pub(crate) attributes: Baggage,
    /// Pod name; the owner's name stands in the attributes.
    pub(crate) workload: Option<Text>,
    /// Proved by a certificate.
    pub(crate) identity: Option<Identity>,
}

impl Side {
    /// An end that is a known workload.
    pub(crate) fn workload(workload: &Workload, identity: Option<Identity>) -> Self {
        Self { attributes: workload.into(), workload: Some(workload.name.clone()), identity }
    }
}

/// What a connection is between.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) direction: Direction,
    pub(crate) client: ClientAddr,
    pub(crate) source: Side,
    /// Where the client wanted to go.
    pub(crate) asked_for: SocketAddr,
    /// Where this proxy's part of the connection leads.
    pub(crate) destination_addr: SocketAddr,
    /// What a tunnel leads to.
    pub(crate) authority: Option<HostPort>,
    pub(crate) destination: Side,
    pub(crate) service: Option<Arc<Service>>,
}

/// A connection that is going on. Finishing, or dropping, logs and counts it.
#[derive(Debug)]
pub(crate) struct Event {
    id: usize,
    open: Arc<Open>,
    metrics: Arc<Metrics>,
    labels: TrafficLabels,
    received: Counter,
    sent: Counter,
    error: Option<(&'static str, String)>,
}

impl Event {
    /// The connection begins.
    pub(crate) fn opened(metrics: &Arc<Metrics>, facts: Facts, started: Instant) -> Self {
        let labels = labels(&facts);
        metrics.opened.get_or_create(&labels).inc();
        tracing::event!(target: "access", tracing::Level::DEBUG, src.addr = %facts.client, dst.addr = %facts.destination_addr, "connection opened");
        let (id, open) = metrics.open.begins(facts, started);
        Self {
            id,
            open,
            received: metrics.received.get_or_create(&labels).clone(),
            sent: metrics.sent.get_or_create(&labels).clone(),
            metrics: metrics.clone(),
            labels,
            error: None,
        }
    }

    /// Bytes came from the side that opened the connection.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
        self.open.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes went to the side that opened the connection.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
        self.open.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The connection ends.
    pub(crate) fn finish(mut self, outcome: &Result<(), ConnectionError>) {
        if let Err(ConnectionError::Revoked(_)) = outcome {
            self.metrics.revoked(self.labels.reporter);
        }
        self.error = outcome.as_ref().err().map(|e| (e.response_flags(), e.to_string()));
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let flags = self.error.as_ref().map_or("-", |(flags, _)| flags);
        let labels = TrafficLabels { response_flags: flags, ..self.labels.clone() };
        self.metrics.closed.get_or_create(&labels).inc();
        let silent = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed) == 0;
        if self.error.is_some() && silent(&self.open.received) && silent(&self.open.sent) {
            self.metrics.failed.get_or_create(&labels).inc();
        }
        self.metrics.open.ends(self.id);
        self.log();
    }
}

impl Event {
    fn log(&self) {
        let f = &self.open.facts;
        let text = |s: &Text| (!s.is_empty()).then(|| s.clone());
        let src_workload = f.source.workload.clone().or_else(|| text(&f.source.attributes.workload_name));
        let dst_workload = f.destination.workload.clone().or_else(|| text(&f.destination.attributes.workload_name));
        let (src_namespace, dst_namespace) =
            (text(&f.source.attributes.namespace), text(&f.destination.attributes.namespace));
        let (src_cluster, dst_cluster) =
            (text(&f.source.attributes.cluster_id), text(&f.destination.attributes.cluster_id));
        let src_identity = f.source.identity.as_ref().map(ToString::to_string);
        let dst_identity = f.destination.identity.as_ref().map(ToString::to_string);
        let service = f.service.as_ref().map(|s| s.hostname.as_str());
        let (received, sent) = (self.open.received.load(Ordering::Relaxed), self.open.sent.load(Ordering::Relaxed));
        let (direction, bytes_sent, bytes_recv) = match f.direction {
            Direction::Outbound => ("outbound", received, sent),
            Direction::Inbound => ("inbound", sent, received),
        };
        let duration = format!("{}ms", self.open.started.elapsed().as_millis());
        let hbone_addr = f.authority.as_ref().map(tracing::field::display);
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "access", $level,
                    src.addr = %f.client,
                    src.workload = src_workload.as_deref(),
                    src.namespace = src_namespace.as_deref(),
                    src.identity = src_identity.as_deref(),
                    src.cluster = src_cluster.as_deref(),
                    dst.addr = %f.destination_addr,
                    dst.hbone_addr = hbone_addr,
                    dst.service = service,
                    dst.workload = dst_workload.as_deref(),
                    dst.namespace = dst_namespace.as_deref(),
                    dst.identity = dst_identity.as_deref(),
                    dst.cluster = dst_cluster.as_deref(),
                    direction,
                    bytes_sent,
                    bytes_recv,
                    duration = duration.as_str(),
                    error = self.error.as_ref().map(|(_, e)| e.as_str()),
                    "connection complete"
                )
            };
        }
        if self.error.is_some() { line!(tracing::Level::ERROR) } else { line!(tracing::Level::INFO) }
    }
}

/// The value of a label.
fn or(text: &str) -> String {
    if text.is_empty() { "unknown".to_owned() } else { text.to_owned() }
}

fn principal(side: &Side) -> String {
    side.identity.as_ref().map_or_else(|| or(""), ToString::to_string)
}

impl SourceLabels {
    fn of(source: &Side) -> Self {
        let s = &source.attributes;
        Self {
            source_workload: or(&s.workload_name),
            source_canonical_service: or(&s.canonical_name),
            source_canonical_revision: or(&s.canonical_revision),
            source_workload_namespace: or(&s.namespace),
            source_principal: principal(source),
            source_app: or(&s.canonical_name),
            source_version: or(&s.canonical_revision),
            source_cluster: or(&s.cluster_id),
        }
    }
}

impl OnDemandDnsLabels {
    /// A connection of `source` needs the addresses of a name.
    pub(crate) fn new(hostname: &str, source: &Side) -> Self {
        Self { hostname: hostname.to_owned(), source: SourceLabels::of(source) }
    }
}

fn labels(f: &Facts) -> TrafficLabels {
    let mutual_tls = f.source.identity.is_some() && f.destination.identity.is_some();
    let (s, d) = (&f.source.attributes, &f.destination.attributes);
    let service = |part: fn(&Service) -> &str| f.service.as_ref().map_or_else(|| or(""), |s| or(part(s)));
    TrafficLabels {
        reporter: match f.direction {
            Direction::Outbound => Reporter::source,
            Direction::Inbound => Reporter::destination,
        },
        source: SourceLabels::of(&f.source),
        destination_service: service(|s| &s.hostname),
        destination_service_namespace: service(|s| &s.namespace),
        destination_service_name: service(|s| &s.name),
        destination_workload: or(&d.workload_name),
        destination_canonical_service: or(&d.canonical_name),
        destination_canonical_revision: or(&d.canonical_revision),
        destination_workload_namespace: or(&d.namespace),
        destination_principal: principal(&f.destination),
        destination_app: or(&d.canonical_name),
        destination_version: or(&d.canonical_revision),
        destination_cluster: or(&d.cluster_id),
        request_protocol: "tcp",
        response_flags: "-",
        connection_security_policy: if mutual_tls { "mutual_tls" } else { "unknown" },
        source_region: or(&s.region),
        source_zone: or(&s.zone),
        destination_region: or(&d.region),
        destination_zone: or(&d.zone),
    }
}
