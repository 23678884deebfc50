//! When a pod is verified: at intervals, which bound the cost for a node with many pods, and after
//! changes, with delays that bound the cost of rules that keep changing.

use std::time::{Duration, Instant};

/// Interval of a pod's verification without any change.
const INTERVAL: Duration = Duration::from_secs(30);
/// Interval for each pod of the node: limits a node with many pods to four verifications a second.
const INTERVAL_PER_POD: Duration = Duration::from_millis(250);
/// Verifications that are due within this time run together.
const BATCH_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before the next verification after a failed one; doubles while failures continue.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Delay before retrying a pod that could not join or has not left yet.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// Longer than any other delay, and still within the range of the clock.
pub(crate) const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// When a pod is verified again, if nothing changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    /// Delay after the next failure.
    retry: Duration,
    /// Share of the interval to wait after the first verification, which spreads pods that joined
    /// at the same time.
    share: f64,
}

impl Schedule {
    pub(crate) fn new(share: f64) -> Self {
        Self {
            retry: FIRST_RETRY,
            share,
        }
    }

    /// The delay after a successful verification, on a node with that many verified pods, at `now`
    /// since the agent's start.
    pub(crate) fn after_success(&mut self, pods: usize, now: Duration) -> Duration {
        self.retry = FIRST_RETRY;
        let share = std::mem::replace(&mut self.share, 1.0);
        align(interval(pods).mul_f64(share), now)
    }

    pub(crate) fn after_failure(&mut self) -> Duration {
        self.share = 1.0;
        let delay = self.retry;
        self.retry = (delay * 2).min(INTERVAL);
        delay
    }
}

/// The verification interval of each of a node's verified pods.
fn interval(pods: usize) -> Duration {
    let pods = u32::try_from(pods).unwrap_or(u32::MAX);
    INTERVAL.max(INTERVAL_PER_POD.saturating_mul(pods))
}

/// Extends a delay to the end of its batch interval, so that verifications run one after the other:
/// a single one on an idle processor with cold caches costs twice as much.
fn align(delay: Duration, now: Duration) -> Duration {
    let (grid, now) = (BATCH_INTERVAL.as_millis(), now.as_millis());
    let due = (now + delay.as_millis()).next_multiple_of(grid);
    Duration::from_millis(u64::try_from(due - now).unwrap_or(u64::MAX))
}

/// Delay after the first change, so that a burst of changes is verified once.
const FIRST_DELAY: Duration = Duration::from_millis(5);
/// Limit of the delay, which doubles while changes continue.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// Time without changes after which the delay is reset.
const RESET_AFTER: Duration = Duration::from_secs(5);

/// The delays of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Pace {
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// How long to wait before verifying a change that was reported at `now`.
    pub(crate) fn delay(&mut self, now: Instant) -> Duration {
        let delay = match self.last {
            Some((at, delay)) if now.saturating_duration_since(at) < RESET_AFTER => {
                (delay * 2).min(MAX_DELAY)
            }
            _ => FIRST_DELAY,
        };
        self.last = Some((now, delay));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_verifies_at_most_four_pods_a_second() {
        for (pods, seconds) in [(0, 30), (1, 30), (120, 30), (121, 31), (400, 100)] {
            let found = interval(pods).as_secs_f64().ceil();
            assert_eq!(found as u64, seconds, "{pods} pods");
        }
    }

    #[test]
    fn delays_end_on_a_batch_and_are_never_shortened() {
        for (delay, now, expected) in [
            (30, 0, 30),
            (30, 1, 34),
            (30, 4, 31),
            (31, 4, 31),
            (1, 0, 5),
        ] {
            assert_eq!(align(s(delay), s(now)), s(expected), "{delay} at {now}");
        }
        assert_eq!(align(Duration::from_millis(4_001), s(1)), s(9));
    }

    #[test]
    fn only_the_first_verification_is_followed_by_a_share_of_the_interval() {
        let mut schedule = Schedule::new(0.5);
        assert_eq!(schedule.after_success(1, s(0)), s(15));
        assert_eq!(schedule.after_success(1, s(15)), s(30));
        let mut failed_first = Schedule::new(0.5);
        failed_first.after_failure();
        assert_eq!(failed_first.after_success(1, s(0)), s(30));
    }

    #[test]
    fn failures_are_retried_at_doubling_intervals_until_a_success() {
        let mut schedule = Schedule::new(1.0);
        let delays: Vec<u64> = (0..7).map(|_| schedule.after_failure().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        schedule.after_success(1, s(0));
        assert_eq!(schedule.after_failure(), s(1));
    }

    #[test]
    fn delays_double_from_5_ms_to_a_second_and_reset_after_a_pause() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let mut at = start;
        let delays: Vec<Duration> = (0..12)
            .map(|_| {
                let delay = pace.delay(at);
                at += delay;
                delay
            })
            .collect();
        assert_eq!(delays[..4], [5, 10, 20, 40].map(Duration::from_millis));
        assert_eq!(delays[8..], [MAX_DELAY; 4]);
        assert_eq!(pace.delay(at + RESET_AFTER), FIRST_DELAY);
    }
}
