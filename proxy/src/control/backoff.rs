//! How long to wait before the control plane is tried again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(15);
/// A stream that lived this long was a good one, whatever ended it.
const LIVED: Duration = Duration::from_secs(1);

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The server ended it, as it does from time to time.
    Cleanly,
    /// With something that happens when a server or a connection goes away.
    Benignly,
    /// It was not even begun, or ended with a refusal.
    Badly,
}

/// Doubles from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    /// The wait after a conversation that lived for so long. Nothing after one that was of use and ended cleanly.
    pub(crate) fn after(&mut self, ended: Ended, lived: Duration) -> Duration {
        if lived >= LIVED {
            self.0 = FIRST;
            if ended == Ended::Cleanly {
                return Duration::ZERO;
            }
        }
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew_after_a_good_conversation() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..13).map(|_| backoff.after(Ended::Badly, Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        assert_eq!(backoff.after(Ended::Benignly, LIVED), FIRST);
        assert_eq!(backoff.after(Ended::Cleanly, LIVED), Duration::ZERO);
        // A server that ends every stream at once is not asked in a circle.
        assert!(backoff.after(Ended::Cleanly, Duration::ZERO) > Duration::ZERO);
    }
}
