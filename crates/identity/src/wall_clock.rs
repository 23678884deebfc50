//! Notices when the wall clock is set, by comparing it with the monotonic clock.

use std::time::{Duration, Instant, SystemTime};

/// A difference that is not the drift between two clocks. Much shorter than the tolerance of
/// authorities, which issue certificates that are valid from a minute before.
const SET: Duration = Duration::from_secs(1);

/// The wall clock at a moment of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WallClock {
    at: Instant,
    time: SystemTime,
}

/// By how much the wall clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockShift {
    /// It shows a later time than before.
    Forward(Duration),
    /// It shows an earlier time than before.
    Back(Duration),
}

impl WallClock {
    /// The clock now.
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            time: SystemTime::now(),
        }
    }

    /// By how much the clock was set between this moment and `later`; `None` if it was not.
    pub(crate) fn shift(&self, later: &Self) -> Option<ClockShift> {
        let expected = self.time + later.at.saturating_duration_since(self.at);
        let shift = match later.time.duration_since(expected) {
            Ok(forward) => ClockShift::Forward(forward),
            Err(back) => ClockShift::Back(back.duration()),
        };
        (shift.amount() >= SET).then_some(shift)
    }
}

impl ClockShift {
    fn amount(self) -> Duration {
        let (Self::Forward(by) | Self::Back(by)) = self;
        by
    }

    /// The time that the clock shows now at a moment for which it would have shown `time`.
    pub(crate) fn apply(self, time: SystemTime) -> SystemTime {
        let shifted = match self {
            Self::Forward(by) => time.checked_add(by),
            Self::Back(by) => time.checked_sub(by),
        };
        shifted.unwrap_or(time)
    }
}

impl std::fmt::Display for ClockShift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self {
            Self::Forward(_) => "forward",
            Self::Back(_) => "back",
        };
        write!(f, "{direction} by {} s", self.amount().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_distinguished_from_one_that_runs() {
        let start = WallClock::now();
        let later = |wall| WallClock {
            at: start.at + Duration::from_secs(10),
            time: start.time + Duration::from_millis(wall),
        };
        for (wall, shift) in [
            (10_000, None),
            (10_900, None),
            (9_100, None),
            (12_000, Some(ClockShift::Forward(Duration::from_secs(2)))),
            (0, Some(ClockShift::Back(Duration::from_secs(10)))),
        ] {
            assert_eq!(start.shift(&later(wall)), shift, "{wall} ms");
        }
        let shift = ClockShift::Back(Duration::from_secs(10));
        assert_eq!(
            shift.apply(start.time + Duration::from_secs(10)),
            start.time
        );
        assert_eq!(shift.to_string(), "back by 10 s");
    }
}
