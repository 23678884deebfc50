//! Delays between attempts to connect to the control plane.

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_secs(15);
/// A stream that lived this long counts as successful, however it ended.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// How a discovery stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseKind {
    /// The server closed the stream, as it does from time to time.
    Clean,
    /// The server restarted or the connection was lost.
    Transient,
    /// The stream could not be opened, or the server rejected it.
    Failed,
}

/// Exponential backoff: the delay doubles with each failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(INITIAL)
    }

    /// The delay after a stream that lived this long; zero after a stable one that ended cleanly.
    /// `random` is between 0 and 1 and lengthens the delay by up to half, so that the proxies of a
    /// cluster do not return in lockstep.
    pub(crate) fn next_delay(&mut self, kind: CloseKind, lived: Duration, random: f64) -> Duration {
        if lived >= STABLE_AFTER {
            self.0 = INITIAL;
            if kind == CloseKind::Clean {
                return Duration::ZERO;
            }
        }
        let delay = self.0;
        self.0 = (delay * 2).min(MAX);
        delay.mul_f64(1.0 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_reset_after_a_stable_stream() {
        let mut backoff = Backoff::new();
        let next_delay = |_| {
            backoff
                .next_delay(CloseKind::Failed, Duration::ZERO, 0.0)
                .as_millis()
        };
        let delays: Vec<_> = (0..13).map(next_delay).collect();
        assert_eq!(
            delays,
            [
                10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000
            ]
        );
        assert_eq!(
            backoff.next_delay(CloseKind::Transient, STABLE_AFTER, 1.0),
            INITIAL.mul_f64(1.5)
        );
        assert_eq!(
            backoff.next_delay(CloseKind::Clean, STABLE_AFTER, 0.5),
            Duration::ZERO
        );
        // A server that closes every stream at once is not retried in a tight loop.
        assert!(backoff.next_delay(CloseKind::Clean, Duration::ZERO, 1.0) > Duration::ZERO);
    }
}
