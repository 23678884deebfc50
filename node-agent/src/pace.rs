//! How soon to look after a change, so that somebody who changes rules without end costs little.

use std::time::{Duration, Instant};

/// Several changes in a row are looked at once.
const FIRST: Duration = Duration::from_millis(5);
/// How far the delay grows while changes keep coming.
const LONGEST: Duration = Duration::from_secs(1);
/// Without a change for this long, the next one counts as the first again.
const QUIET: Duration = Duration::from_secs(5);

/// The delays of one pod.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// How long to wait before looking at a change that is told at `now`.
    pub(crate) fn delay(&mut self, now: Instant) -> Duration {
        let delay = match self.last {
            Some((at, delay)) if now.saturating_duration_since(at) < QUIET => (delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((now, delay));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_is_looked_at_soon_and_endless_ones_once_a_second() {
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
        assert_eq!(delays[8..], [LONGEST; 4]);
        assert_eq!(pace.delay(at + QUIET), FIRST);
    }
}
