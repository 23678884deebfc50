//! A limit of how often something happens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long nothing must have happened for the largest burst.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket: events pass at once as long as no more than `per_second` passed in the last
/// second or so, and in turn, at that rate, afterwards. Every event takes a place in the order,
/// whatever it then waits for.
#[derive(Debug)]
pub(super) struct Rate {
    started: Instant,
    /// The time that an event takes from the bucket, in nanoseconds.
    interval: u64,
    /// When the bucket will be full again, in nanoseconds since the start.
    full_at: AtomicU64,
}

impl Rate {
    /// Starts with a full bucket. `None`, which limits nothing, for a rate of zero.
    pub(super) fn new(per_second: u32, now: Instant) -> Option<Self> {
        let interval = 1_000_000_000_u64.checked_div(u64::from(per_second))?;
        Some(Self {
            started: now,
            interval,
            full_at: AtomicU64::new(0),
        })
    }

    /// Counts an event. Returns how long it must wait, or `None` if it need not.
    pub(super) fn take(&self, now: Instant) -> Option<Duration> {
        let now = nanoseconds(now.saturating_duration_since(self.started));
        let take = |full_at: u64| Some(full_at.max(now) + self.interval);
        let before = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .unwrap_or_else(|before| before); // `take` is never `None`
        let empty = now + nanoseconds(BURST);
        let wait = (before.max(now) + self.interval).saturating_sub(empty);
        (wait > 0).then(|| Duration::from_nanos(wait))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(rate: &Rate, now: Instant, count: usize) -> Vec<u128> {
        let wait = |_| rate.take(now).unwrap_or_default().as_millis();
        (0..count).map(wait).collect()
    }

    #[test]
    fn a_burst_passes_and_what_exceeds_it_waits_in_turn() {
        let start = Instant::now();
        let rate = Rate::new(10, start).unwrap();
        let burst = waits(&rate, start, 13);
        assert_eq!(burst[..10], [0; 10]);
        assert_eq!(burst[10..], [100, 200, 300]);
        // At the rate, nothing waits once the three have passed.
        let later = start + Duration::from_millis(300);
        assert_eq!(waits(&rate, later, 1), [100]);
        for passed in [500, 600, 700] {
            let now = start + Duration::from_millis(passed);
            assert_eq!(waits(&rate, now, 1), [0], "{passed}");
        }
    }

    #[test]
    fn rest_allows_one_burst_however_long_it_was() {
        let start = Instant::now();
        let rate = Rate::new(4, start).unwrap();
        waits(&rate, start, 4);
        let later = start + Duration::from_secs(3600);
        assert_eq!(waits(&rate, later, 6), [0, 0, 0, 0, 250, 500]);
    }

    #[test]
    fn no_rate_limits_nothing_and_the_highest_one_is_exact() {
        let start = Instant::now();
        assert!(Rate::new(0, start).is_none());
        let rate = Rate::new(1_000_000_000, start).unwrap();
        assert_eq!(rate.take(start), None);
    }
}
