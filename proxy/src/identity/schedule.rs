//! When which certificate is asked for. Pure: time and chance are passed in.
//!
//! The contract: [`Schedule::next`] is called until it returns nothing, whenever anything has changed and at
//! [`Schedule::wake_at`]; for each identity that it returned, [`Schedule::issued`] or [`Schedule::failed`] is called once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mesh::Identity;

/// So many are asked for at once; the authority has other nodes, too.
const AT_ONCE: usize = 8;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(150);
/// Retries differ by this part, so that the proxies of a cluster do not ask in step.
const SPREAD: f64 = 0.2;
/// Roots may change in circles, when the servers of an authority disagree; certificates do not follow each turn.
const ROTATION_INTERVAL: Duration = Duration::from_secs(600);

/// How urgent a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// The one at hand is good for a while.
    Background,
    /// A pod has just been announced.
    Warmup,
    /// A connection waits for it.
    RealTime,
}

/// The identities of this node, and when to ask for each.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    entries: BTreeMap<Identity, Entry>,
    /// When all were asked for again for the last time.
    rotated: Option<SystemTime>,
}

#[derive(Debug)]
struct Entry {
    pods: usize,
    priority: Priority,
    due: SystemTime,
    asking: bool,
    failures: u32,
    /// Of the certificate at hand.
    expires: Option<SystemTime>,
}

impl Schedule {
    /// A pod has this identity. The first one has a certificate asked for.
    pub(crate) fn wanted(&mut self, identity: &Identity, now: SystemTime) {
        let fresh =
            || Entry { pods: 0, priority: Priority::Warmup, due: now, asking: false, failures: 0, expires: None };
        self.entries.entry(identity.clone()).or_insert_with(fresh).pods += 1;
    }

    /// A connection waits for a certificate. It does not shorten the wait after a failure: those that wait are told why
    /// there is none.
    pub(crate) fn urgent(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.priority = Priority::RealTime;
        }
    }

    /// A pod of this identity has left. Returns true when it was the last one: the certificate is to be forgotten.
    pub(crate) fn left(&mut self, identity: &Identity) -> bool {
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        entry.pods = entry.pods.saturating_sub(1);
        let last = entry.pods == 0;
        if last {
            self.entries.remove(identity);
        }
        last
    }

    /// The next certificate to ask for: the most urgent of those that are due, and of these the one that waits longest.
    pub(crate) fn next(&mut self, now: SystemTime) -> Option<Identity> {
        if self.entries.values().filter(|e| e.asking).count() >= AT_ONCE {
            return None;
        }
        let due = self.entries.iter_mut().filter(|(_, e)| !e.asking && e.is_due(now));
        let (identity, entry) = due.max_by_key(|(_, e)| (e.priority, std::cmp::Reverse(e.due)))?;
        entry.asking = true;
        Some(identity.clone())
    }

    /// When something is due next; nothing while as many are asked for as may be.
    pub(crate) fn wake_at(&self) -> Option<SystemTime> {
        let waiting = self.entries.values().filter(|e| !e.asking);
        let full = self.entries.values().filter(|e| e.asking).count() >= AT_ONCE;
        waiting.map(|e| e.due).min().filter(|_| !full)
    }

    /// A certificate has come. It is renewed at `renew_at`, and at the earliest as if it had failed, so that an authority
    /// that hands out what is nearly over is not asked without end.
    pub(crate) fn issued(&mut self, identity: &Identity, now: SystemTime, renew_at: SystemTime, expires: SystemTime) {
        let Some(entry) = self.entries.get_mut(identity) else { return };
        let short = renew_at < now + FIRST_RETRY;
        entry.failures = if short { entry.failures + 1 } else { 0 };
        let earliest = if short { now + retry(entry.failures) } else { now };
        (entry.asking, entry.priority) = (false, Priority::Background);
        (entry.due, entry.expires) = (renew_at.max(earliest), Some(expires));
    }

    /// None has come. `chance` is between 0 and 1. One at hand is renewed no later than it expires.
    pub(crate) fn failed(&mut self, identity: &Identity, now: SystemTime, chance: f64) {
        let Some(entry) = self.entries.get_mut(identity) else { return };
        entry.asking = false;
        entry.failures = entry.failures.saturating_add(1);
        let wait = retry(entry.failures).mul_f64(1.0 - SPREAD + 2.0 * SPREAD * chance.clamp(0.0, 1.0));
        entry.due = now + wait;
        match entry.expires {
            Some(expires) if expires > now => entry.due = entry.due.min(expires),
            _ => entry.priority = entry.priority.max(Priority::Warmup),
        }
    }

    /// The root has been rotated: all certificates are asked for again, in their turn, unless that was done a moment ago.
    pub(crate) fn renew_all(&mut self, now: SystemTime) {
        let recently = |then: SystemTime| now.duration_since(then).is_ok_and(|since| since < ROTATION_INTERVAL);
        if self.rotated.is_some_and(recently) {
            return;
        }
        self.rotated = Some(now);
        for entry in self.entries.values_mut().filter(|e| !e.asking && e.failures == 0) {
            entry.due = entry.due.min(now);
        }
    }
}

impl Entry {
    /// A clock that was set back must not make a retry wait for hours.
    fn is_due(&self, now: SystemTime) -> bool {
        let wait = self.due.duration_since(now).unwrap_or_default();
        wait.is_zero() || (self.failures > 0 && wait > LONGEST_RETRY.mul_f64(1.0 + SPREAD))
    }
}

/// Doubles from one failure to the next.
fn retry(failures: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(LONGEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Identity {
        format!("spiffe://td/ns/default/sa/{name}").parse().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn one_certificate_serves_all_pods_of_an_identity_and_goes_with_the_last() {
        let mut s = Schedule::default();
        s.wanted(&id("a"), at(0));
        s.wanted(&id("a"), at(0));
        assert_eq!((s.next(at(0)), s.next(at(0))), (Some(id("a")), None));
        s.issued(&id("a"), at(0), at(100), at(200));
        assert_eq!((s.next(at(99)), s.wake_at()), (None, Some(at(100))));
        assert!(!s.left(&id("a")));
        assert!(s.left(&id("a")));
        assert_eq!((s.next(at(100)), s.wake_at()), (None, None));
        assert!(!s.left(&id("a")), "it is gone");
        s.issued(&id("a"), at(0), at(100), at(200)); // an answer that comes too late
        assert_eq!(s.wake_at(), None);
    }

    #[test]
    fn the_most_urgent_is_asked_for_first_and_eight_at_once() {
        let mut s = Schedule::default();
        for i in 0..10 {
            s.wanted(&id(&format!("p{i}")), at(i));
        }
        s.urgent(&id("p7"));
        assert_eq!(s.next(at(20)), Some(id("p7")), "a connection waits");
        assert_eq!(s.next(at(20)), Some(id("p0")), "it waits longest");
        let rest: Vec<_> = std::iter::from_fn(|| s.next(at(20))).collect();
        assert_eq!(rest.len(), 6, "eight are asked for");
        assert_eq!(s.wake_at(), None);
        s.issued(&id("p0"), at(20), at(1000), at(2000));
        assert!(s.next(at(20)).is_some() && s.next(at(20)).is_none());
    }

    #[test]
    fn a_failure_is_retried_later_and_later_and_at_the_latest_when_the_certificate_expires() {
        let mut s = Schedule::default();
        s.wanted(&id("a"), at(0));
        let mut waits = Vec::new();
        for _ in 0..11 {
            let now = s.wake_at().unwrap();
            assert_eq!(s.next(now), Some(id("a")));
            s.failed(&id("a"), now, 0.5);
            waits.push(s.wake_at().unwrap().duration_since(now).unwrap().as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128_000, 150_000, 150_000]);
        for (chance, wait) in [(0.0, 120_000), (1.0, 180_000)] {
            let now = s.wake_at().unwrap();
            assert_eq!(s.next(now), Some(id("a")));
            s.failed(&id("a"), now, chance);
            assert_eq!(s.wake_at().unwrap().duration_since(now).unwrap().as_millis(), wait);
        }
        let now = s.wake_at().unwrap();
        assert_eq!(s.next(now), Some(id("a")));
        s.issued(&id("a"), now, now + Duration::from_secs(10), now + Duration::from_secs(12));
        for second in [10, 11] {
            assert_eq!(s.next(now + Duration::from_secs(second)), Some(id("a")));
            s.failed(&id("a"), now + Duration::from_secs(second), 1.0);
        }
        assert_eq!(s.wake_at(), Some(now + Duration::from_secs(12)));
    }

    #[test]
    fn a_certificate_that_is_over_soon_is_not_asked_for_without_end() {
        let mut s = Schedule::default();
        s.wanted(&id("a"), at(0));
        let mut asked = 0;
        while let Some(now) = s.wake_at().filter(|t| *t < at(60)) {
            assert_eq!(s.next(now), Some(id("a")));
            s.issued(&id("a"), now, now, now + Duration::from_secs(1));
            asked += 1;
        }
        assert!(asked < 10, "{asked} times in a minute");
    }

    #[test]
    fn a_rotation_renews_all_once_and_not_in_circles() {
        let mut s = Schedule::default();
        for name in ["a", "b"] {
            s.wanted(&id(name), at(0));
            assert_eq!(s.next(at(0)), Some(id(name)));
            s.issued(&id(name), at(0), at(10_000), at(20_000));
        }
        s.renew_all(at(1));
        let asked: std::collections::BTreeSet<_> = std::iter::from_fn(|| s.next(at(1))).collect();
        assert_eq!(asked, [id("a"), id("b")].into());
        for name in ["a", "b"] {
            s.issued(&id(name), at(2), at(10_000), at(20_000));
            s.renew_all(at(2));
        }
        assert_eq!(s.next(at(3)), None);
        s.renew_all(at(700));
        assert!(s.next(at(700)).is_some());
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stall_retries() {
        let mut s = Schedule::default();
        s.wanted(&id("a"), at(100_000));
        assert_eq!(s.next(at(100_000)), Some(id("a")));
        s.failed(&id("a"), at(100_000), 0.5);
        assert_eq!(s.next(at(0)), Some(id("a")));
    }
}
