//! Metrics of the process, under ztunnel's names. They are collected on each scrape.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::facts::Direction;
use crate::labels::{Reporter, ReporterLabel};
use crate::log_format::DroppedLines;
use crate::open_connections::OpenConnections;

/// The threads with a tokio runtime, which report its metrics.
#[derive(Debug, Clone, Default)]
pub struct Threads(Arc<Mutex<Vec<Handle>>>);

impl Threads {
    /// Adds the calling thread.
    pub fn add_current(&self) {
        if let Ok(handle) = Handle::try_current() {
            self.0.lock().push(handle);
        }
    }

    /// The time that all of them together were busy.
    pub fn busy_time(&self) -> Duration {
        let all = self.all();
        all.iter().map(|m| m.worker_total_busy_duration(0)).sum()
    }

    fn all(&self) -> Vec<RuntimeMetrics> {
        self.0.lock().iter().map(Handle::metrics).collect()
    }
}

/// The collector of process metrics.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    pub(super) threads: Threads,
    pub(super) open: Arc<OpenConnections>,
    pub(super) dropped: DroppedLines,
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: usize| {
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        let threads = self.threads.all();
        gauge(
            "tokio_num_workers",
            "Threads with a tokio runtime",
            threads.len(),
        )?;
        let sum = |of: fn(&RuntimeMetrics) -> usize| threads.iter().map(of).sum();
        gauge(
            "tokio_global_queue_depth",
            "Tasks in the global queues",
            sum(RuntimeMetrics::global_queue_depth),
        )?;
        gauge(
            "tokio_num_alive_tasks",
            "Tasks that have not ended",
            sum(RuntimeMetrics::num_alive_tasks),
        )?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        )?;
        let limit = getrlimit(Resource::RLIMIT_NOFILE)
            .map_or(0, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors",
            limit,
        )?;

        let open = self.open.all();
        let help = "Open TCP connections";
        let mut sockets =
            encoder.encode_descriptor("istio_tcp_sockets_open", help, None, MetricType::Gauge)?;
        for (reporter, direction) in [
            (Reporter::source, Direction::Outbound),
            (Reporter::destination, Direction::Inbound),
        ] {
            let count = open
                .iter()
                .filter(|o| o.facts.direction == direction)
                .count();
            let value = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            value.encode(sockets.encode_family(&ReporterLabel { reporter })?)?;
        }

        let help = "Log lines dropped because standard output was read too slowly";
        let dropped = encoder.encode_descriptor(
            "underpass_log_lines_dropped",
            help,
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.dropped.count() as u64).encode(dropped)?;

        type Read = fn(&RuntimeMetrics) -> f64;
        let counters: [(&str, &str, Option<&Unit>, Read); 3] = [
            (
                "tokio_worker_total_busy_duration",
                "Time a thread was busy",
                Some(&Unit::Seconds),
                |m| m.worker_total_busy_duration(0).as_secs_f64(),
            ),
            (
                "tokio_worker_park_count",
                "How often a thread parked",
                None,
                |m| m.worker_park_count(0) as f64,
            ),
            (
                "tokio_worker_park_unpark_count",
                "How often a thread parked or was unparked",
                None,
                |m| m.worker_park_unpark_count(0) as f64,
            ),
        ];
        for (name, help, unit, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            for (worker, metrics) in threads.iter().enumerate() {
                ConstCounter::new(read(metrics))
                    .encode(family.encode_family(&[("worker", worker.to_string())])?)?;
            }
        }
        Ok(())
    }
}
