//! Delays between attempts to reach the API server. They grow, and differ between agents, so that
//! the agents of a cluster do not all return at once after an outage.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Mean delay before the first retry; doubles with each failure up to `LAST`.
const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);
/// Share of the mean delay that is waited, chosen at random.
const JITTER: RangeInclusive<f64> = 0.5..=1.5;

/// The delay of the next retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    mean: Duration,
}

impl Backoff {
    /// Starts with the shortest delay.
    pub(crate) fn new() -> Self {
        Self { mean: FIRST }
    }

    /// The delay after another failure. `random` is uniform in 0..=1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let share = JITTER.start() + random * (JITTER.end() - JITTER.start());
        let delay = self.mean.mul_f64(share);
        self.mean = (self.mean * 2).min(LAST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit() {
        let mut backoff = Backoff::new();
        let delays: Vec<_> = (0..9).map(|_| backoff.next(0.5).as_millis()).collect();
        assert_eq!(
            delays,
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]
        );
    }

    #[test]
    fn agents_that_fail_at_the_same_time_return_at_different_times() {
        let delay = |random| Backoff::new().next(random).as_millis();
        assert_eq!([delay(0.0), delay(0.5), delay(1.0)], [250, 500, 750]);
    }
}
