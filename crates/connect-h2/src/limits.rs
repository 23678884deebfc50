//! The limit on frames that cost work and achieve nothing, such as PING, SETTINGS, empty DATA,
//! extensions, or streams that are opened and reset at once.

use serde::{Deserialize, Serialize};

use crate::error::Violation;

/// Number of such frames accepted at once.
const BURST: u64 = 1000;
/// Time in which one more is accepted, in milliseconds.
const REFILL_MS: u64 = 10;
/// The most that can be earned by useful work.
const MOST: u64 = 10_000;

/// The number of useless frames that are still accepted. Time and useful work increase it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Patience {
    frames: u64,
    refilled_ms: u64,
}

impl Patience {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            frames: BURST,
            refilled_ms: now_ms,
        }
    }

    /// Counts one frame.
    pub(crate) fn spend(&mut self, now_ms: u64) -> Result<(), Violation> {
        let periods = now_ms.saturating_sub(self.refilled_ms) / REFILL_MS;
        self.refilled_ms += periods * REFILL_MS;
        let missing = BURST.saturating_sub(self.frames);
        self.frames += periods.min(missing);
        self.frames = self.frames.checked_sub(1).ok_or(Violation::Flood)?;
        Ok(())
    }

    /// Accepts more frames, because a peer may have reason to send them.
    pub(crate) fn earn(&mut self, frames: u64) {
        self.frames = (self.frames + frames).min(MOST.max(self.frames));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_end_and_time_forgives() {
        let mut patience = Patience::new(50);
        for _ in 0..BURST {
            assert_eq!(patience.spend(50), Ok(()));
        }
        assert_eq!(patience.spend(50 + REFILL_MS - 1), Err(Violation::Flood));
        assert_eq!(patience.spend(50 + REFILL_MS), Ok(()));
        assert_eq!(patience.spend(50 + REFILL_MS), Err(Violation::Flood));
        assert_eq!(patience.spend(u64::MAX / 2), Ok(()));
        assert_eq!(
            patience.frames,
            BURST - 1,
            "an idle peer earns no more than a burst"
        );
        patience.earn(u64::MAX / 2);
        assert_eq!(patience.frames, MOST);
    }
}
