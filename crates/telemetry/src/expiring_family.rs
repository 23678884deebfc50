//! A metric with labels whose series end some time after their last use.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Metrics by their labels. Clones share them.
#[derive(Debug)]
pub(crate) struct ExpiringFamily<L, M> {
    used: Arc<Mutex<HashMap<L, LastUsed<M>>>>,
    create: fn() -> M,
}

#[derive(Debug)]
struct LastUsed<M> {
    metric: M,
    at: Instant,
}

impl<L, M> ExpiringFamily<L, M> {
    /// Creates a family whose metrics begin with this value.
    pub(crate) fn new(create: fn() -> M) -> Self {
        Self {
            used: Arc::default(),
            create,
        }
    }
}

impl<L, M> Clone for ExpiringFamily<L, M> {
    fn clone(&self) -> Self {
        let Self { used, create } = self;
        Self {
            used: used.clone(),
            create: *create,
        }
    }
}

impl<L: Clone + Eq + Hash, M> ExpiringFamily<L, M> {
    /// Updates the metric with these labels. It cannot end meanwhile.
    pub(crate) fn update<T>(&self, labels: &L, now: Instant, update: impl FnOnce(&M) -> T) -> T {
        let mut all = self.used.lock();
        if let Some(used) = all.get_mut(labels) {
            used.at = now;
            return update(&used.metric);
        }
        let metric = (self.create)();
        let result = update(&metric);
        all.insert(labels.clone(), LastUsed { metric, at: now });
        result
    }

    /// Removes the series that were not used for this long.
    pub(crate) fn remove_ended(&self, now: Instant, expiry: Duration) {
        let mut all = self.used.lock();
        all.retain(|_, used| now.saturating_duration_since(used.at) < expiry);
        let count = all.len();
        all.shrink_to(2 * count);
    }
}

impl<L, M> EncodeMetric for ExpiringFamily<L, M>
where
    L: EncodeLabelSet,
    M: EncodeMetric + TypedMetric,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, used) in &*self.used.lock() {
            used.metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.used.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_series_ends_after_its_last_use() {
        const EXPIRY: Duration = Duration::from_secs(60);
        let family = ExpiringFamily::<_, Counter>::new(Counter::default);
        let start = Instant::now();
        let count = |label: &'static str, at| family.update(&label, at, Counter::inc);
        let remaining = |now| {
            family.remove_ended(now, EXPIRY);
            let mut labels: Vec<_> = family.used.lock().keys().copied().collect();
            labels.sort_unstable();
            labels
        };
        count("a", start);
        count("b", start);
        assert_eq!(remaining(start), ["a", "b"]);
        count("b", start + EXPIRY / 2);
        assert_eq!(remaining(start + EXPIRY), ["b"]);
        let value = |label| family.update(&label, start + EXPIRY, Counter::get);
        assert_eq!((value("a"), value("b")), (0, 2));
    }
}
