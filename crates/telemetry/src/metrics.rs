//! Metrics under Istio's names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::expiring_family::ExpiringFamily;
use crate::facts::Side;
use crate::labels::{
    CacheLabel, CacheResult, DnsLabels, OnDemandDnsLabels, ReasonLabel, Reporter, ReporterLabel,
    UrlLabel,
};
use crate::log_format::DroppedLines;
use crate::open_connections::OpenConnections;
use crate::process_metrics::{ProcessMetrics, Threads};
use crate::traffic_series::{SeriesOptions, ThreadNumber, TrafficCollector, TrafficSeries};

/// Upper bounds of the buckets of `istio_dns_upstream_request_duration_seconds`, like ztunnel's.
const DNS_SECONDS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// Declares [`Metrics`]: for each metric its field, type, initial value, name without unit, help
/// text, and unit if it has one.
macro_rules! metrics {
    ($(
        $visibility:vis $field:ident: $type:ty = $value:expr,
            $name:literal, $help:literal $(, $unit:ident)?;
    )*) => {
        /// All metrics of the proxy.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// The open connections: not a metric, but updated by the same events.
            pub open: Arc<OpenConnections>,
            /// The threads that report runtime metrics: not a metric, but read on each scrape.
            pub threads: Threads,
            /// The label sets of connection metrics.
            pub(crate) traffic: Arc<TrafficSeries>,
            /// Number of threads that record connections.
            recorders: AtomicUsize,
            $( #[doc = concat!($help, ".")] $visibility $field: $type, )*
        }

        impl Metrics {
            fn registered(traffic: TrafficSeries) -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $type = $value;
                    metrics!(@register registry, $field, $name, $help $(, $unit)?);
                )*
                Self {
                    registry,
                    open: Arc::default(),
                    threads: Threads::default(),
                    traffic: Arc::new(traffic),
                    recorders: AtomicUsize::default(),
                    $( $field ),*
                }
            }
        }
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal, $unit:ident) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
}

metrics! {
    crl_rejections: Family<ReporterLabel, Counter> = Family::default(),
        "istio_crl_policy_rejections",
        "Connections rejected or closed because a certificate is revoked";
    crl_untracked: Family<ReporterLabel, Counter> = Family::default(), // all are tracked
        "istio_crl_untracked_connections", "Connections that a revocation would not close";
    dns_requests: ExpiringFamily<DnsLabels, Counter> =
        ExpiringFamily::new(Counter::default),
        "istio_dns_requests", "DNS requests received from pods";
    dns_upstream_requests: ExpiringFamily<DnsLabels, Counter> =
        ExpiringFamily::new(Counter::default),
        "istio_dns_upstream_requests", "DNS requests forwarded to a name server";
    dns_upstream_failures: ExpiringFamily<DnsLabels, Counter> =
        ExpiringFamily::new(Counter::default),
        "istio_dns_upstream_failures", "DNS requests that no name server answered";
    dns_upstream_seconds: ExpiringFamily<DnsLabels, Histogram> =
        ExpiringFamily::new(|| Histogram::new(DNS_SECONDS)),
        "istio_dns_upstream_request_duration", "Response time of name servers", Seconds;
    dns_cache_uses: Family<CacheLabel, Counter> = Family::default(),
        "underpass_dns_cache_uses", "Forwarded DNS requests that may be cached, by result";
    pub dns_cache_entries: Gauge = Gauge::default(),
        "underpass_dns_cache_entries", "Cached answers of name servers, and resolved host names";
    pub dns_cache_bytes: Gauge = Gauge::default(),
        "underpass_dns_cache", "Memory of the DNS caches of all pods", Bytes;
    on_demand_dns: ExpiringFamily<OnDemandDnsLabels, Counter> =
        ExpiringFamily::new(Counter::default),
        "istio_on_demand_dns", "Name lookups for endpoints without an address";
    xds_terminations: Family<ReasonLabel, Counter> = Family::default(),
        "istio_xds_connection_terminations", "Terminated discovery connections, by reason";
    xds_messages: Family<UrlLabel, Counter> = Family::default(),
        "istio_xds_message", "Discovery messages received";
    xds_bytes: Family<UrlLabel, Counter> = Family::default(),
        "istio_xds_message_bytes", "Bytes of discovery messages received";
    pub state_age: Gauge = Gauge::default(),
        "underpass_state_age", "Age of the mesh state: time since it was last known to be current",
        Seconds;
    pub delayed_over_budget: Counter = Counter::default(),
        "underpass_connections_delayed_over_budget",
        "Connections accepted later because their pod has too many new ones";
    pub refused_over_budget: Counter = Counter::default(),
        "underpass_connections_refused_over_budget",
        "Connections refused because their pod has too many open ones";
    pub closed_over_budget: Counter = Counter::default(),
        "underpass_connections_closed_over_budget",
        "Connections closed because too many bytes wait for applications that do not read";
    pub(crate) joined: Counter = Counter::default(),
        "underpass_connections_joined",
        "Connections within the node whose sockets were joined, at each end";
    pub active_pods: Gauge = Gauge::default(),
        "workload_manager_active_proxy_count", "Pods being served";
    pub pods_started: Counter = Counter::default(),
        "workload_manager_proxies_started", "Pods whose serving was started";
    pub pending_pods: Gauge = Gauge::default(),
        "workload_manager_pending_proxy_count", "Pods that cannot be served yet";
    pub pods_stopped: Counter = Counter::default(),
        "workload_manager_proxies_stopped", "Pods whose serving was stopped";
}

impl Metrics {
    /// Creates and registers all metrics, all zero.
    pub fn new(dropped: DroppedLines, connections: SeriesOptions) -> Self {
        let mut metrics = Self::registered(TrafficSeries::new(connections));
        for reporter in [Reporter::source, Reporter::destination] {
            for family in [&metrics.crl_rejections, &metrics.crl_untracked] {
                let _ = family.get_or_create(&ReporterLabel { reporter });
            }
        }
        for result in CacheResult::ALL {
            let _ = metrics.dns_cache_uses.get_or_create(&CacheLabel { result });
        }
        let process = ProcessMetrics {
            threads: metrics.threads.clone(),
            open: metrics.open.clone(),
            dropped,
        };
        metrics.registry.register_collector(Box::new(process));
        let traffic = TrafficCollector(metrics.traffic.clone());
        metrics.registry.register_collector(Box::new(traffic));
        let tag = concat!("underpass-", env!("CARGO_PKG_VERSION"));
        let build = Info::new(vec![("component", "ztunnel"), ("tag", tag)]);
        let help = "Istio component build info";
        metrics.registry.register("istio_build", help, build);
        metrics
    }

    /// A number for another thread that records connections.
    pub(crate) fn next_thread(&self) -> ThreadNumber {
        self.recorders.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts the end of a discovery stream; `reason` is one of Istio's label values.
    pub fn count_discovery_end(&self, reason: &'static str) {
        let label = ReasonLabel { reason };
        self.xds_terminations.get_or_create(&label).inc();
    }

    /// Counts a discovery message of `length` bytes. A type that was not requested is counted as
    /// `unknown`: labels must not come from the peer.
    pub fn count_discovery_message(&self, type_url: Option<&'static str>, length: usize) {
        let url = type_url.unwrap_or("unknown");
        let label = UrlLabel { url };
        self.xds_messages.get_or_create(&label).inc();
        self.xds_bytes.get_or_create(&label).inc_by(length as u64);
    }

    /// Counts a forwarded DNS request that may be cached.
    pub fn count_dns_cache_use(&self, result: CacheResult) {
        let label = CacheLabel { result };
        self.dns_cache_uses.get_or_create(&label).inc();
    }

    /// Counts a DNS request that was received from a pod.
    pub fn count_dns_request(&self, labels: &DnsLabels) {
        self.dns_requests
            .update(labels, Instant::now(), Counter::inc);
    }

    /// Counts a DNS request that is forwarded to a name server.
    pub fn count_dns_upstream_request(&self, labels: &DnsLabels) {
        self.dns_upstream_requests
            .update(labels, Instant::now(), Counter::inc);
    }

    /// Counts a DNS request that no name server answered.
    pub fn count_dns_upstream_failure(&self, labels: &DnsLabels) {
        self.dns_upstream_failures
            .update(labels, Instant::now(), Counter::inc);
    }

    /// Records the response time of a name server.
    pub fn record_dns_upstream_time(&self, labels: &DnsLabels, time: Duration) {
        let observe = |times: &Histogram| times.observe(time.as_secs_f64());
        self.dns_upstream_seconds
            .update(labels, Instant::now(), observe);
    }

    /// Counts the lookup of a host name on behalf of a connection from `source`.
    pub fn count_on_demand_dns(&self, hostname: &str, source: &Side) {
        let mut labels = OnDemandDnsLabels::new(hostname, source);
        labels.source.exclude(&self.traffic.options().excluded);
        self.on_demand_dns
            .update(&labels, Instant::now(), Counter::inc);
    }

    /// Counts a connection rejected or closed because a certificate is revoked.
    pub fn count_revoked(&self, reporter: Reporter) {
        self.crl_rejections
            .get_or_create(&ReporterLabel { reporter })
            .inc();
    }

    /// Removes the series that were last used longer ago than they are kept.
    pub fn remove_ended(&self) {
        let (now, expiry) = (Instant::now(), self.traffic.options().expiry);
        self.traffic.remove_ended(now);
        for family in [
            &self.dns_requests,
            &self.dns_upstream_requests,
            &self.dns_upstream_failures,
        ] {
            family.remove_ended(now, expiry);
        }
        self.dns_upstream_seconds.remove_ended(now, expiry);
        self.on_demand_dns.remove_ended(now, expiry);
    }

    /// Encodes all metrics in the OpenMetrics text format, without the series that have ended.
    pub fn encode(&self) -> String {
        self.remove_ended();
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.clear(); // writing to a string does not fail
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::TrafficLabels;
    use crate::log_buffer::LogBuffer;

    /// Every series with its labels, without values and help texts. `UPDATE_GOLDEN=1` rewrites the
    /// golden file; only lines may be added to it.
    #[tokio::test]
    async fn metrics_and_labels_remain() {
        let metrics = Metrics::new(DroppedLines(LogBuffer::default()), Default::default());
        metrics.threads.add_current();
        let none = String::new;
        let traffic = TrafficLabels::unknown();
        let (counters, _) = metrics.traffic.open(traffic, 0);
        counters.close("", true, Instant::now());
        let dns = DnsLabels {
            request_query_type: "",
            request_protocol: "",
            source_canonical_service: none(),
            source_canonical_revision: none(),
        };
        metrics.count_dns_request(&dns);
        metrics.count_dns_upstream_request(&dns);
        metrics.count_dns_upstream_failure(&dns);
        metrics.record_dns_upstream_time(&dns, Duration::ZERO);
        metrics.count_on_demand_dns("", &Side::default());
        metrics.count_discovery_end("");
        metrics.count_discovery_message(None, 0);

        let text = metrics.encode();
        let series = text.lines().filter(|line| !line.starts_with("# HELP"));
        let series = series.map(|line| match line.rsplit_once(' ') {
            Some((series, _value)) if !line.starts_with('#') => series,
            _ => line,
        });
        let mut series: Vec<_> = series.collect();
        series.sort_unstable(); // the order of labels is random
        let series = series.join("\n") + "\n";
        let series = series.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics.golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &series).unwrap();
        }
        assert_eq!(series, std::fs::read_to_string(golden).unwrap());
    }

    #[test]
    fn series_of_names_and_of_dns_end_after_their_last_use_and_have_no_excluded_labels() {
        let series = |text: &str, name: &str| {
            let of_it = text.lines().filter(|line| line.starts_with(name));
            of_it.map(str::to_owned).collect::<Vec<_>>()
        };
        for (expiry, count) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 0)] {
            let options = SeriesOptions {
                excluded: "source_workload,source_app".parse().unwrap(),
                expiry,
            };
            let metrics = Metrics::new(DroppedLines(LogBuffer::default()), options);
            metrics.count_on_demand_dns("db.example", &Side::default());
            let labels = DnsLabels {
                request_query_type: "A",
                request_protocol: "udp",
                source_canonical_service: "shop".to_owned(),
                source_canonical_revision: "v1".to_owned(),
            };
            metrics.count_dns_request(&labels);
            metrics.count_dns_upstream_request(&labels);
            metrics.count_dns_upstream_failure(&labels);
            metrics.record_dns_upstream_time(&labels, Duration::from_millis(1));
            let text = metrics.encode();
            for name in [
                "istio_on_demand_dns_total{",
                "istio_dns_requests_total{",
                "istio_dns_upstream_requests_total{",
                "istio_dns_upstream_failures_total{",
                "istio_dns_upstream_request_duration_seconds_count{",
            ] {
                assert_eq!(series(&text, name).len(), count, "{name}: {text}");
            }
            let lookups = series(&text, "istio_on_demand_dns_total{").concat();
            assert!(!lookups.contains("source_workload=") && !lookups.contains("source_app="));
            assert_eq!(
                lookups.contains("source_principal="),
                count == 1,
                "{lookups}"
            );
        }
    }
}
