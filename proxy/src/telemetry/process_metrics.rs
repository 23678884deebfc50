//! What the process itself is at the moment, under ztunnel's names: read when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::event::Direction;
use super::log_format::DroppedLines;
use super::metrics::{Reporter, ReporterLabel};
use super::open::OpenConnections;

/// The threads whose runtimes are looked at; each has one of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads(Arc<Mutex<Vec<Handle>>>);

impl Threads {
    /// Looks at the runtime of the calling thread from now on.
    pub(crate) fn add_this(&self) {
        if let Ok(handle) = Handle::try_current() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
    }

    fn all(&self) -> Vec<RuntimeMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Handle::metrics).collect()
    }
}

/// Reads all of it.
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
        gauge("tokio_num_workers", "Threads", threads.len())?;
        let sum = |of: fn(&RuntimeMetrics) -> usize| threads.iter().map(of).sum();
        gauge("tokio_global_queue_depth", "Tasks that wait for a thread", sum(RuntimeMetrics::global_queue_depth))?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        )?;
        let most =
            getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
        gauge("process_max_fds", "File descriptors that may be open", most)?;

        let open = self.open.all();
        let help = "TCP connections that are open now";
        let mut sockets = encoder.encode_descriptor("istio_tcp_sockets_open", help, None, MetricType::Gauge)?;
        for (reporter, direction) in
            [(Reporter::source, Direction::Outbound), (Reporter::destination, Direction::Inbound)]
        {
            let count = open.iter().filter(|o| o.facts.direction == direction).count();
            let value = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            value.encode(sockets.encode_family(&ReporterLabel { reporter })?)?;
        }

        let help = "Lines of the log that were dropped, because nobody read them as fast as they were written";
        let dropped = encoder.encode_descriptor("underpass_log_lines_dropped", help, None, MetricType::Counter)?;
        ConstCounter::new(self.dropped.count() as u64).encode(dropped)?;

        type Of = fn(&RuntimeMetrics) -> f64;
        let counters: [(&str, &str, Option<&Unit>, Of); 3] = [
            ("tokio_worker_total_busy_duration", "Time in which a thread has worked", Some(&Unit::Seconds), |m| {
                m.worker_total_busy_duration(0).as_secs_f64()
            }),
            ("tokio_worker_park_count", "How often a thread has gone to sleep", None, |m| {
                m.worker_park_count(0) as f64
            }),
            ("tokio_worker_park_unpark_count", "How often a thread has gone to sleep or was woken", None, |m| {
                m.worker_park_unpark_count(0) as f64
            }),
        ];
        for (name, help, unit, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            for (worker, metrics) in threads.iter().enumerate() {
                ConstCounter::new(read(metrics)).encode(family.encode_family(&[("worker", worker.to_string())])?)?;
            }
        }
        Ok(())
    }
}
