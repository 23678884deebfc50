//! Slows down a fight with another process that keeps removing the plugin from the chain.

use std::time::{Duration, Instant};

/// The number of rewrites that are done at once; main CNI plugins write their configuration a few
/// times while they start.
const FREE: u32 = 5;
/// After this time without a rewrite, a fight is over.
const CALM: Duration = Duration::from_secs(60);
/// The delay before the first rewrite that is not free; it doubles with each that follows.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay. Until the plugin is chained again, pods start outside the mesh.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The rewrites of the chain in the current fight.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rewrites: u32,
    last: Option<Instant>,
}

impl Pace {
    /// Records that the chain was rewritten. Returns whether to warn, once in each fight.
    pub(super) fn rewritten(&mut self, now: Instant) -> bool {
        if self.is_calm(now) {
            self.rewrites = 0;
        }
        self.rewrites = self.rewrites.saturating_add(1);
        self.last = Some(now);
        self.rewrites == FREE
    }

    /// How long to wait before the folders are read again.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        if self.is_calm(now) || self.rewrites < FREE {
            return Duration::ZERO;
        }
        let doubled = 2u32.saturating_pow(self.rewrites - FREE);
        FIRST_DELAY.saturating_mul(doubled).min(MAX_DELAY)
    }

    fn is_calm(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|last| now.saturating_duration_since(last) > CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_slows_down_and_is_warned_of_once() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let mut now = start;
        let (mut rewrites, mut warnings) = (0, 0);
        // Another process undoes every rewrite at once.
        while now < start + Duration::from_secs(60) {
            now += pace.delay(now) + Duration::from_millis(1);
            warnings += u32::from(pace.rewritten(now));
            rewrites += 1;
        }
        assert!(
            (15..30).contains(&rewrites),
            "{rewrites} rewrites in a minute"
        );
        assert_eq!(warnings, 1);
        assert_eq!(pace.delay(now), MAX_DELAY);
        // A rewrite long after the fight is done at once, and another fight is warned of again.
        now += CALM + MAX_DELAY;
        assert_eq!(pace.delay(now), Duration::ZERO);
        let warned = (0..FREE).filter(|_| pace.rewritten(now)).count();
        assert_eq!(warned, 1);
    }

    #[test]
    fn a_starting_cni_plugin_may_rewrite_its_configuration_a_few_times() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 1..FREE {
            assert!(!pace.rewritten(now));
            assert_eq!(pace.delay(now), Duration::ZERO);
        }
    }
}
