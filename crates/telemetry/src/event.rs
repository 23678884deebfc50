//! Connection events: metrics and the access log are derived from the same facts.

use std::cell::Cell;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::facts::{ConnectionFacts, Direction, Side};
use crate::labels::{
    DestinationLabels, LocalityLabels, OnDemandDnsLabels, Reporter, SourceLabels, TrafficLabels,
    UNKNOWN,
};
use crate::open_connections::OpenConnection;
use crate::recorder::Recorder;
use crate::traffic_series::Counters;
use mesh::{ClientAddr, Service, Text, TunnelAddr};

/// Maximum length of a label's value, in bytes: longer ones come from a peer.
const MAX_LABEL: usize = 256;

/// Why a connection failed or was closed. Its text is the access log's `error`.
pub trait ConnectionFailure: Display {
    /// The value of Istio's `response_flags` label.
    fn response_flags(&self) -> &'static str;

    /// Whether the cause is a revoked certificate, which is also counted separately.
    fn is_revoked(&self) -> bool;
}

/// An open connection, which is logged and counted when this is finished or dropped.
#[derive(Debug)]
pub struct ConnectionEvent {
    id: usize,
    open: Arc<OpenConnection>,
    recorder: Rc<Recorder>,
    counters: Arc<Counters>,
    /// Whether the last bytes were sent to the side that opened the connection.
    is_answered: Cell<bool>,
    error: Option<(&'static str, String)>,
}

impl ConnectionEvent {
    /// Records that a connection was opened.
    pub fn opened(recorder: &Rc<Recorder>, facts: ConnectionFacts, started: Instant) -> Self {
        let counters = recorder.open(&facts);
        tracing::event!(
            target: "access",
            tracing::Level::DEBUG,
            src.addr = %facts.client,
            dst.addr = %facts.destination_addr,
            "connection opened"
        );
        let (id, open) = recorder.metrics.open.insert(facts, started);
        Self {
            id,
            open,
            recorder: recorder.clone(),
            counters,
            is_answered: Cell::new(true),
            error: None,
        }
    }

    /// Counts bytes received from the side that opened the connection.
    pub fn received(&self, bytes: usize) {
        self.is_answered.set(false);
        self.counters.receive(bytes as u64);
        self.open
            .received
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes sent to the side that opened the connection.
    pub fn sent(&self, bytes: usize) {
        self.is_answered.set(true);
        self.counters.send(bytes as u64);
        self.open.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Records that the sockets of both pods were joined.
    pub fn joined(&self) {
        self.open.is_joined.store(true, Ordering::Relaxed);
        self.recorder.metrics.joined.inc();
    }

    /// The number of bytes that have been relayed.
    pub fn relayed(&self) -> u64 {
        let count = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        count(&self.open.received) + count(&self.open.sent)
    }

    /// Whether the side that opened the connection has sent nothing since the other one has.
    pub fn is_answered(&self) -> bool {
        self.is_answered.get()
    }

    /// Records that the connection was closed.
    pub fn finish(mut self, outcome: &Result<(), impl ConnectionFailure>) {
        if let Err(failure) = outcome {
            if failure.is_revoked() {
                let reporter = self.open.facts.direction.into();
                self.recorder.metrics.count_revoked(reporter);
            }
            self.error = Some((failure.response_flags(), failure.to_string()));
        }
    }
}

impl Drop for ConnectionEvent {
    fn drop(&mut self) {
        let flags = self.error.as_ref().map_or("-", |(flags, _)| flags);
        let is_zero = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed) == 0;
        let has_failed =
            self.error.is_some() && is_zero(&self.open.received) && is_zero(&self.open.sent);
        self.counters.close(flags, has_failed, Instant::now());
        self.recorder.metrics.open.remove(self.id);
        let error = self.error.as_ref().map(|(_, e)| e.as_str());
        log_access(Some(&self.open), &self.open.facts, error);
    }
}

/// Logs an incoming tunnel that failed outside any of its streams. No connection was opened, so
/// this is not counted by any metric.
pub fn log_tunnel_failure(client: ClientAddr, local: TunnelAddr, error: &impl Display) {
    let facts = ConnectionFacts {
        direction: Direction::Inbound,
        client,
        source: Side::default(),
        requested_addr: local.0.into(),
        destination_addr: local.into(),
        authority: None,
        destination: Side::default(),
        service: None,
        delayed: None,
    };
    log_access(None, &facts, Some(&error.to_string()));
}

/// Writes a line of the access log, without the keys of what is unknown: a connection that was
/// closed, or without `open` one that failed before it was opened.
fn log_access(open: Option<&OpenConnection>, f: &ConnectionFacts, error: Option<&str>) {
    let text = |s: &Text| (!s.is_empty()).then(|| s.clone());
    let name = |s: &Side| {
        let owner = || text(&s.attributes.workload_name);
        s.workload.clone().or_else(owner)
    };
    let (src_workload, dst_workload) = (name(&f.source), name(&f.destination));
    let (src_namespace, dst_namespace) = (
        text(&f.source.attributes.namespace),
        text(&f.destination.attributes.namespace),
    );
    let (src_cluster, dst_cluster) = (
        text(&f.source.attributes.cluster_id),
        text(&f.destination.attributes.cluster_id),
    );
    let src_identity = f.source.identity.as_ref().map(ToString::to_string);
    let dst_identity = f.destination.identity.as_ref().map(ToString::to_string);
    let service = f.service.as_ref().map(|s| s.hostname.as_str());
    let hbone_addr = f.authority.as_ref().map(tracing::field::display);
    let received = open.map(|o| o.received.load(Ordering::Relaxed));
    let sent = open.map(|o| o.sent.load(Ordering::Relaxed));
    let joined = open.is_some_and(|o| o.is_joined.load(Ordering::Relaxed));
    let joined = joined.then_some(true);
    let duration = open.map(|o| format!("{}ms", o.started.elapsed().as_millis()));
    let (direction, bytes_sent, bytes_recv) = match f.direction {
        Direction::Outbound => ("outbound", received, sent),
        Direction::Inbound => ("inbound", sent, received),
    };
    macro_rules! log_line {
        ($level:expr, $message:literal) => {
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
                duration = duration.as_deref(),
                joined,
                delayed = f.delayed,
                error,
                $message
            )
        };
    }
    match (open, error) {
        (None, _) => log_line!(tracing::Level::WARN, "connection failed"),
        (Some(_), Some(_)) => log_line!(tracing::Level::ERROR, "connection complete"),
        (Some(_), None) => log_line!(tracing::Level::INFO, "connection complete"),
    }
}

/// The value of a label: `unknown` if the text is empty, or longer than any name in Kubernetes.
fn or_unknown(text: &str) -> String {
    if text.is_empty() || text.len() > MAX_LABEL {
        UNKNOWN.to_owned()
    } else {
        text.to_owned()
    }
}

fn principal(side: &Side) -> String {
    side.identity
        .as_ref()
        .map_or_else(|| or_unknown(""), ToString::to_string)
}

impl SourceLabels {
    fn of(source: &Side) -> Self {
        let s = &source.attributes;
        Self {
            source_workload: or_unknown(&s.workload_name),
            source_canonical_service: or_unknown(&s.canonical_name),
            source_canonical_revision: or_unknown(&s.canonical_revision),
            source_workload_namespace: or_unknown(&s.namespace),
            source_principal: principal(source),
            source_app: or_unknown(&s.canonical_name),
            source_version: or_unknown(&s.canonical_revision),
            source_cluster: or_unknown(&s.cluster_id),
        }
    }
}

impl OnDemandDnsLabels {
    /// Labels of a name lookup on behalf of a connection from `source`.
    pub(crate) fn new(hostname: &str, source: &Side) -> Self {
        Self {
            hostname: hostname.to_owned(),
            source: SourceLabels::of(source),
        }
    }
}

impl From<Direction> for Reporter {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self::source,
            Direction::Inbound => Self::destination,
        }
    }
}

pub(crate) fn labels(f: &ConnectionFacts) -> TrafficLabels {
    let mutual_tls = f.source.identity.is_some() && f.destination.identity.is_some();
    let (s, d) = (&f.source.attributes, &f.destination.attributes);
    let service = |part: fn(&Service) -> &str| {
        f.service
            .as_ref()
            .map_or_else(|| or_unknown(""), |s| or_unknown(part(s)))
    };
    TrafficLabels {
        reporter: f.direction.into(),
        source: SourceLabels::of(&f.source),
        destination: DestinationLabels {
            destination_service: service(|s| &s.hostname),
            destination_service_namespace: service(|s| &s.namespace),
            destination_service_name: service(|s| &s.name),
            destination_workload: or_unknown(&d.workload_name),
            destination_canonical_service: or_unknown(&d.canonical_name),
            destination_canonical_revision: or_unknown(&d.canonical_revision),
            destination_workload_namespace: or_unknown(&d.namespace),
            destination_principal: principal(&f.destination),
            destination_app: or_unknown(&d.canonical_name),
            destination_version: or_unknown(&d.canonical_revision),
            destination_cluster: or_unknown(&d.cluster_id),
        },
        request_protocol: "tcp",
        response_flags: "-",
        connection_security_policy: if mutual_tls { "mutual_tls" } else { UNKNOWN },
        locality: LocalityLabels {
            source_region: or_unknown(&s.region),
            source_zone: or_unknown(&s.zone),
            destination_region: or_unknown(&d.region),
            destination_zone: or_unknown(&d.zone),
        },
    }
}
