//! Metrics under Istio's names.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::control_metrics::ControlMetrics;
use super::log_format::DroppedLines;
use super::open::OpenConnections;
use super::process_metrics::{ProcessMetrics, Threads};

/// Who counts: the client's proxy or the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // these are the label values
pub(crate) enum Reporter {
    source,
    destination,
}

/// Who connects, in Istio's words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabels {
    pub(crate) source_workload: String,
    pub(crate) source_canonical_service: String,
    pub(crate) source_canonical_revision: String,
    pub(crate) source_workload_namespace: String,
    pub(crate) source_principal: String,
    pub(crate) source_app: String,
    pub(crate) source_version: String,
    pub(crate) source_cluster: String,
}

/// The labels of every connection metric, in Istio's words; `unknown` where nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TrafficLabels {
    pub(crate) reporter: Reporter,
    #[prometheus(flatten)]
    pub(crate) source: SourceLabels,
    pub(crate) destination_service: String,
    pub(crate) destination_service_namespace: String,
    pub(crate) destination_service_name: String,
    pub(crate) destination_workload: String,
    pub(crate) destination_canonical_service: String,
    pub(crate) destination_canonical_revision: String,
    pub(crate) destination_workload_namespace: String,
    pub(crate) destination_principal: String,
    pub(crate) destination_app: String,
    pub(crate) destination_version: String,
    pub(crate) destination_cluster: String,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_flags: &'static str,
    pub(crate) connection_security_policy: &'static str,
    pub(crate) source_region: String,
    pub(crate) source_zone: String,
    pub(crate) destination_region: String,
    pub(crate) destination_zone: String,
}

/// The label of the metrics of revocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReporterLabel {
    pub(crate) reporter: Reporter,
}

/// The labels of every DNS metric, in Istio's words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DnsLabels {
    pub(crate) request_query_type: &'static str,
    pub(crate) request_protocol: &'static str,
    pub(crate) source_canonical_service: String,
    pub(crate) source_canonical_revision: String,
}

/// The labels of what is looked up on behalf of connections, in Istio's words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OnDemandDnsLabels {
    pub(crate) hostname: String,
    #[prometheus(flatten)]
    pub(crate) source: SourceLabels,
}

/// Upper bounds of the buckets of istio_dns_upstream_request_duration_seconds, as ztunnel's.
const DNS_SECONDS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// All metrics of the proxy.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) opened: Family<TrafficLabels, Counter>,
    pub(crate) closed: Family<TrafficLabels, Counter>,
    pub(crate) received: Family<TrafficLabels, Counter>,
    pub(crate) sent: Family<TrafficLabels, Counter>,
    pub(crate) dns_requests: Family<DnsLabels, Counter>,
    pub(crate) dns_upstream_requests: Family<DnsLabels, Counter>,
    pub(crate) dns_upstream_failures: Family<DnsLabels, Counter>,
    pub(crate) dns_upstream_seconds: Family<DnsLabels, Histogram>,
    pub(crate) on_demand_dns: Family<OnDemandDnsLabels, Counter>,
    crl_rejections: Family<ReporterLabel, Counter>,
    pub(crate) control: ControlMetrics,
    /// Not a metric, but kept by the same events.
    pub(crate) open: Arc<OpenConnections>,
    /// The threads of the proxy.
    pub(crate) threads: Threads,
    pub(crate) failed: Family<TrafficLabels, Counter>,
    pub(crate) active_pods: Gauge,
    pub(crate) pending_pods: Gauge,
    pub(crate) pods_started: Counter,
    pub(crate) pods_stopped: Counter,
}

impl Metrics {
    pub(crate) fn new(dropped: DroppedLines) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            opened: Family::default(),
            closed: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            dns_requests: Family::default(),
            dns_upstream_requests: Family::default(),
            dns_upstream_failures: Family::default(),
            dns_upstream_seconds: Family::new_with_constructor(|| Histogram::new(DNS_SECONDS)),
            on_demand_dns: Family::default(),
            crl_rejections: Family::default(),
            control: ControlMetrics::default(),
            open: Arc::default(),
            threads: Threads::default(),
            failed: Family::default(),
            active_pods: Gauge::default(),
            pending_pods: Gauge::default(),
            pods_started: Counter::default(),
            pods_stopped: Counter::default(),
        };
        let r = &mut metrics.registry;
        r.register("istio_tcp_connections_opened", "TCP connections opened", metrics.opened.clone());
        r.register("istio_tcp_connections_closed", "TCP connections closed", metrics.closed.clone());
        let failed = "TCP connections that were not established, or ended before any byte";
        r.register("istio_tcp_connections_failed", failed, metrics.failed.clone());
        let received = "Bytes received from the side that opened the connection";
        r.register("istio_tcp_received_bytes", received, metrics.received.clone());
        let sent = "Bytes sent to the side that opened the connection";
        r.register("istio_tcp_sent_bytes", sent, metrics.sent.clone());
        let rejections = "Connections refused or cut because a certificate is revoked";
        r.register("istio_crl_policy_rejections", rejections, metrics.crl_rejections.clone());
        let untracked = Family::<ReporterLabel, Counter>::default();
        for reporter in [Reporter::source, Reporter::destination] {
            let _ = metrics.crl_rejections.get_or_create(&ReporterLabel { reporter });
            let _ = untracked.get_or_create(&ReporterLabel { reporter }); // every connection is tracked
        }
        r.register("istio_crl_untracked_connections", "Connections that a revocation would not cut", untracked);
        r.register("istio_dns_requests", "DNS requests of pods", metrics.dns_requests.clone());
        let forwarded = "DNS requests that were forwarded to a name server";
        r.register("istio_dns_upstream_requests", forwarded, metrics.dns_upstream_requests.clone());
        let failed = "DNS requests that no name server answered";
        r.register("istio_dns_upstream_failures", failed, metrics.dns_upstream_failures.clone());
        let took = "How long name servers took to answer";
        r.register_with_unit(
            "istio_dns_upstream_request_duration",
            took,
            Unit::Seconds,
            metrics.dns_upstream_seconds.clone(),
        );
        let on_demand = "Connections whose endpoint has a name and no address";
        r.register("istio_on_demand_dns", on_demand, metrics.on_demand_dns.clone());
        metrics.control.register(r);
        r.register("workload_manager_active_proxy_count", "Pods that are served", metrics.active_pods.clone());
        r.register(
            "workload_manager_proxies_started",
            "Pods that were begun to be served",
            metrics.pods_started.clone(),
        );
        let pending = "Pods that cannot be served yet";
        r.register("workload_manager_pending_proxy_count", pending, metrics.pending_pods.clone());
        r.register("workload_manager_proxies_stopped", "Pods that were given up", metrics.pods_stopped.clone());
        let build = vec![("component", "ztunnel"), ("tag", concat!("underpass-", env!("CARGO_PKG_VERSION")))];
        let process = ProcessMetrics { threads: metrics.threads.clone(), open: metrics.open.clone(), dropped };
        r.register_collector(Box::new(process));
        r.register("istio_build", "Istio component build info", Info::new(build));
        metrics
    }

    /// A connection was refused or cut because a certificate is revoked.
    pub(crate) fn revoked(&self, reporter: Reporter) {
        self.crl_rejections.get_or_create(&ReporterLabel { reporter }).inc();
    }

    /// The text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.clear(); // writing to a string does not fail
        }
        text
    }
}
