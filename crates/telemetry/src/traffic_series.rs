//! Metrics of connections: which series exist, a bounded number and none of a pair of workloads
//! that has not communicated for a while, and their values. Each thread counts by itself; the
//! counters are added when they are read.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::labels::{ExcludedLabels, TrafficLabels};

/// Maximum number of label sets, each with several series of about 800 bytes in a scrape.
/// Connections beyond them are counted without their workloads.
const MAX_LABEL_SETS: usize = 5000;

/// The label sets in use, each with the counters of every thread that has used it.
#[derive(Debug, Default)]
pub(crate) struct TrafficSeries {
    used: Mutex<HashMap<TrafficLabels, CountersOfThreads>>,
    options: SeriesOptions,
}

/// Which series the metrics of connections and names have.
#[derive(Debug, Clone)]
pub struct SeriesOptions {
    /// Labels that they do not have.
    pub excluded: ExcludedLabels,
    /// How long after its last connection, or the last use of its name, a label set ends.
    pub expiry: Duration,
}

impl Default for SeriesOptions {
    fn default() -> Self {
        Self {
            excluded: ExcludedLabels::default(),
            // Long enough for scrapers to read the final values several times.
            expiry: Duration::from_secs(15 * 60),
        }
    }
}

type CountersOfThreads = Vec<(ThreadNumber, Arc<Counters>)>;

/// A thread that counts.
pub(crate) type ThreadNumber = usize;

/// The counters of one label set on one thread.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Number of open connections.
    open: AtomicUsize,
    closed: Mutex<Closed>,
    /// Whether the label set has ended: its counts are no longer read.
    has_ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Closed {
    /// When the last connection was closed.
    last: Option<Instant>,
    /// Numbers of closed and failed connections by response flags.
    by_flags: Vec<(&'static str, u64, u64)>,
}

impl Counters {
    /// Counts an opened connection; false if the label set has ended.
    pub(crate) fn open(&self) -> bool {
        // First, so that the label set does not end now.
        self.open.fetch_add(1, Ordering::SeqCst);
        if self.has_ended() {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        true
    }

    pub(crate) fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn send(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a closed connection, which has failed if no byte was transferred because of an error.
    pub(crate) fn close(&self, flags: &'static str, has_failed: bool, now: Instant) {
        let mut closed = self.closed.lock();
        closed.last = Some(now);
        closed.add(flags, 1, u64::from(has_failed));
        drop(closed);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the label set has ended, so that [`Self::open`] fails.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    fn is_unused(&self, now: Instant, expiry: Duration) -> bool {
        let last = self.closed.lock().last;
        self.open.load(Ordering::SeqCst) == 0
            && last.is_none_or(|last| now.saturating_duration_since(last) >= expiry)
    }
}

impl Closed {
    fn add(&mut self, flags: &'static str, closed: u64, failed: u64) {
        match self.by_flags.iter_mut().find(|(f, ..)| *f == flags) {
            Some((_, c, f)) => (*c, *f) = (*c + closed, *f + failed),
            None => self.by_flags.push((flags, closed, failed)),
        }
    }
}

impl TrafficSeries {
    /// Creates none.
    pub(crate) fn new(options: SeriesOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Which series there are.
    pub(crate) fn options(&self) -> &SeriesOptions {
        &self.options
    }

    /// Counts an opened connection. Returns the counters of this thread, and whether they are those
    /// of `labels`: beyond the maximum, all workloads share some.
    pub(crate) fn open(
        &self,
        mut labels: TrafficLabels,
        thread: ThreadNumber,
    ) -> (Arc<Counters>, bool) {
        labels.exclude(&self.options.excluded);
        let mut used = self.used.lock();
        let is_exact = used.len() < MAX_LABEL_SETS || used.contains_key(&labels);
        if !is_exact {
            labels = labels.without_workloads();
            labels.exclude(&self.options.excluded);
        }
        let threads = used.entry(labels).or_default();
        let counters = match threads.iter().find(|(number, _)| *number == thread) {
            Some((_, counters)) => counters.clone(),
            None => {
                let counters = Arc::<Counters>::default();
                threads.push((thread, counters.clone()));
                counters
            }
        };
        counters.open(); // a label set does not end while it is locked
        (counters, is_exact)
    }

    /// Removes the label sets that have ended.
    pub(crate) fn remove_ended(&self, now: Instant) {
        let mut used = self.used.lock();
        used.retain(|_, threads| {
            let is_unused = || {
                threads
                    .iter()
                    .all(|(_, c)| c.is_unused(now, self.options.expiry))
            };
            let set_ended = |ended| {
                for (_, counters) in threads.iter() {
                    counters.has_ended.store(ended, Ordering::SeqCst);
                }
            };
            if !is_unused() {
                return true;
            }
            // A connection that is opened meanwhile either sees this or is seen.
            set_ended(true);
            let has_ended = is_unused();
            if !has_ended {
                set_ended(false);
            }
            !has_ended
        });
        let count = used.len();
        used.shrink_to(2 * count);
    }

    /// The sums of all threads.
    fn sums(&self) -> Vec<Sum> {
        let used = self.used.lock();
        let sum = |(labels, threads): (&TrafficLabels, &CountersOfThreads)| {
            let add = |of: fn(&Counters) -> &AtomicU64| {
                let each = threads.iter();
                each.map(|(_, c)| of(c).load(Ordering::Relaxed)).sum()
            };
            let mut closed = Closed::default();
            for (_, counters) in threads {
                for (flags, all, failed) in &counters.closed.lock().by_flags {
                    closed.add(flags, *all, *failed);
                }
            }
            Sum {
                opened: add(|c| &c.opened),
                received: add(|c| &c.received),
                sent: add(|c| &c.sent),
                closed,
                labels: labels.clone(),
            }
        };
        used.iter().map(sum).collect()
    }
}

/// The values of the series of a label set.
struct Sum {
    labels: TrafficLabels,
    opened: u64,
    received: u64,
    sent: u64,
    closed: Closed,
}

/// The collector of the series.
#[derive(Debug)]
pub(crate) struct TrafficCollector(pub(crate) Arc<TrafficSeries>);

impl Collector for TrafficCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.0.sums();
        type Read = fn(&Sum) -> u64;
        let counters: [(&str, &str, Read); 3] = [
            (
                "istio_tcp_connections_opened",
                "TCP connections opened",
                |sum| sum.opened,
            ),
            (
                "istio_tcp_received_bytes",
                "Bytes received from the side that opened the connection",
                |sum| sum.received,
            ),
            (
                "istio_tcp_sent_bytes",
                "Bytes sent to the side that opened the connection",
                |sum| sum.sent,
            ),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sum in &sums {
                ConstCounter::new(read(sum)).encode(family.encode_family(&sum.labels)?)?;
            }
        }
        type Select = fn(u64, u64) -> Option<u64>;
        let by_flags: [(&str, &str, Select); 2] = [
            (
                "istio_tcp_connections_closed",
                "TCP connections closed",
                |closed, _| Some(closed),
            ),
            (
                "istio_tcp_connections_failed",
                "TCP connections that failed before any byte was transferred",
                |_, failed| Some(failed).filter(|failed| *failed > 0),
            ),
        ];
        for (name, help, select) in by_flags {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sum in &sums {
                for (response_flags, closed, failed) in &sum.closed.by_flags {
                    let Some(value) = select(*closed, *failed) else {
                        continue;
                    };
                    let labels = TrafficLabels {
                        response_flags,
                        ..sum.labels.clone()
                    };
                    ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: Duration = Duration::from_secs(15 * 60);

    fn labels(workload: &str) -> TrafficLabels {
        let mut labels = TrafficLabels::unknown();
        labels.source.source_workload = workload.to_owned();
        labels
    }

    fn without(excluded: &str) -> TrafficSeries {
        TrafficSeries::new(SeriesOptions {
            excluded: excluded.parse().unwrap(),
            ..SeriesOptions::default()
        })
    }

    fn count(series: &TrafficSeries) -> usize {
        series.used.lock().len()
    }

    #[test]
    fn a_label_set_ends_after_its_last_connection() {
        let (series, start) = (TrafficSeries::default(), Instant::now());
        let (first, _) = series.open(labels("a"), 0);
        let (second, _) = series.open(labels("a"), 1);
        first.close("-", false, start);
        series.remove_ended(start + 2 * EXPIRY);
        assert_eq!(count(&series), 1, "one is open, on another thread");
        assert!(first.open());
        first.close("-", false, start);
        second.close("DENY", true, start + EXPIRY);
        series.remove_ended(start + 2 * EXPIRY - Duration::from_secs(1));
        assert_eq!(count(&series), 1);
        series.remove_ended(start + 2 * EXPIRY);
        assert_eq!(count(&series), 0);
        assert!(!first.open() && !second.open(), "both have ended");
        let (fresh, _) = series.open(labels("a"), 0);
        assert!(fresh.open());
    }

    #[test]
    fn the_counters_of_all_threads_are_added() {
        let (series, now) = (TrafficSeries::default(), Instant::now());
        for thread in 0..3 {
            let (counters, _) = series.open(labels("a"), thread);
            let (same, _) = series.open(labels("a"), thread);
            assert!(Arc::ptr_eq(&counters, &same));
            counters.receive(5);
            counters.send(7);
            counters.close("-", false, now);
            counters.close("DENY", thread == 0, now);
        }
        let (sums, closed) = (series.sums(), [("-", 3, 0), ("DENY", 3, 1)]);
        assert_eq!(sums.len(), 1);
        let Sum {
            opened,
            received,
            sent,
            closed: found,
            ..
        } = &sums[0];
        assert_eq!((*opened, *received, *sent), (6, 15, 21));
        assert_eq!(found.by_flags, closed);
    }

    /// Connections are opened all the time while label sets end: none is lost.
    #[test]
    fn a_label_set_that_is_used_again_while_it_ends_loses_no_connection() {
        const CONNECTIONS: u64 = 20_000;
        let series = Arc::new(TrafficSeries::default());
        let (used, start) = (series.clone(), Instant::now());
        let ending = std::thread::spawn(move || {
            let (mut lost, mut current) = (0, None::<Arc<Counters>>);
            for _ in 0..CONNECTIONS {
                let counters = match current.take().filter(|c| c.open()) {
                    Some(counters) => counters,
                    None => used.open(labels("a"), 0).0,
                };
                // While it is open, it is in the table.
                lost += usize::from(used.sums().is_empty());
                counters.close("-", false, start);
                current = Some(counters);
            }
            lost
        });
        while !ending.is_finished() {
            series.remove_ended(start + 2 * EXPIRY);
        }
        assert_eq!(ending.join().unwrap(), 0);
    }

    #[test]
    fn connections_that_differ_by_excluded_labels_share_a_series_without_them() {
        let series = without("source_workload,source_zone");
        let (first, _) = series.open(labels("a"), 0);
        let (same, _) = series.open(labels("b"), 0);
        assert!(Arc::ptr_eq(&first, &same));
        let mut other = labels("a");
        other.destination.destination_workload = "c".to_owned();
        series.open(other, 0);
        assert_eq!(count(&series), 2);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(TrafficCollector(Arc::new(series))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            !text.contains("source_workload=") && !text.contains("source_zone="),
            "{text}"
        );
        assert!(
            text.contains("reporter=\"source\",source_canonical_service=\"unknown\""),
            "{text}"
        );
        assert!(
            text.contains("source_region=\"unknown\",destination_region="),
            "{text}"
        );
    }

    #[test]
    fn the_shared_label_set_has_no_excluded_labels() {
        let series = without("destination_app");
        for i in 0..=MAX_LABEL_SETS {
            series.open(labels(&i.to_string()), 0);
        }
        let used = series.used.lock();
        assert!(
            used.keys()
                .all(|l| l.destination.destination_app.is_empty())
        );
    }

    #[test]
    fn label_sets_beyond_the_maximum_share_one() {
        let series = TrafficSeries::default();
        for i in 0..MAX_LABEL_SETS {
            assert!(series.open(labels(&i.to_string()), 0).1);
        }
        for i in 0..MAX_LABEL_SETS {
            let (_, is_exact) = series.open(labels(&format!("beyond-{i}")), 0);
            assert!(!is_exact);
        }
        assert!(series.open(labels("7"), 0).1, "known before");
        assert_eq!(count(&series), MAX_LABEL_SETS + 1);
        let sums = series.sums();
        let shared = sums.iter().find(|s| s.labels == TrafficLabels::unknown());
        assert_eq!(shared.unwrap().opened, MAX_LABEL_SETS as u64);
    }
}
