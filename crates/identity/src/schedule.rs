//! When to request which certificate. Pure: time and randomness are passed in.
//!
//! The caller's contract: after every change and at [`Schedule::wake_at`], call
//! [`Schedule::next_due`] until it returns `None`. For each identity that it returned, call
//! [`Schedule::record_issued`] or [`Schedule::record_failure`] once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mesh::Identity;

use crate::wall_clock::ClockShift;

/// Maximum number of concurrent requests, because the authority serves other nodes as well.
const MAX_CONCURRENT: usize = 8;
const INITIAL_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(150);
/// Maximum delay while there is no valid certificate: the pods of the identity cannot connect.
const MAX_RETRY_WITHOUT_CERTIFICATE: Duration = Duration::from_secs(8);
/// Relative jitter of retries and renewals, so that the proxies of a cluster do not act in
/// lockstep.
const JITTER: f64 = 0.2;
/// Renewals that are due earlier have no jitter: they leave no time to spread them.
const MIN_SPREAD_RENEWAL: Duration = Duration::from_secs(60);
/// Minimum time between two retries of an identity that the success of another one brings forward:
/// the authority may refuse only this one.
const MIN_HURRY_INTERVAL: Duration = Duration::from_secs(60);
/// Time over which the renewals after a root rotation are spread for each identity of the node, and
/// at most for all of them. Until then, old and new roots are trusted.
const ROTATION_SPREAD: Duration = Duration::from_secs(1);
const MAX_ROTATION_SPREAD: Duration = Duration::from_secs(300);
/// Minimum time between renewals of all certificates, because roots may alternate while the servers
/// of an authority disagree.
const ROTATION_INTERVAL: Duration = Duration::from_secs(600);

/// Urgency of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Priority {
    /// The current certificate is still valid.
    Background,
    /// A pod has just joined.
    Warmup,
    /// A connection is waiting for the certificate.
    RealTime,
}

/// The identities of this node, and when to request a certificate for each.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: BTreeMap<Identity, ScheduledCertificate>,
    /// When all certificates were last renewed.
    last_rotation: Option<SystemTime>,
    /// When a certificate was last issued.
    last_success: Option<SystemTime>,
}

#[derive(Debug)]
struct ScheduledCertificate {
    pods: usize,
    priority: Priority,
    due: SystemTime,
    in_flight: bool,
    /// When it was last requested.
    requested: SystemTime,
    failures: u32,
    /// When a success of another identity last brought the retry forward.
    hurried: Option<SystemTime>,
    /// Expiry of the current certificate.
    expires: Option<SystemTime>,
}

impl Schedule {
    /// Adds a pod with this identity. The first one schedules a request at once.
    pub fn add_pod(&mut self, identity: &Identity, now: SystemTime) {
        let fresh = || ScheduledCertificate {
            pods: 0,
            priority: Priority::Warmup,
            due: now,
            in_flight: false,
            requested: now,
            failures: 0,
            hurried: None,
            expires: None,
        };
        self.entries
            .entry(identity.clone())
            .or_insert_with(fresh)
            .pods += 1;
    }

    /// Raises the priority of a certificate that a connection waits for. The delay after a failure
    /// stays the same: the connection gets the error.
    pub fn prioritize(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.priority = Priority::RealTime;
        }
    }

    /// Removes a pod with this identity. Returns true if it was the last one, so that the
    /// certificate can be dropped.
    pub fn remove_pod(&mut self, identity: &Identity) -> bool {
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        entry.pods = entry.pods.saturating_sub(1);
        let last = entry.pods == 0;
        if last {
            self.entries.remove(identity);
        }
        last
    }

    /// The next certificate to request: of those that are due, the most urgent one; among equals,
    /// the one that has waited longest.
    pub fn next_due(&mut self, now: SystemTime) -> Option<Identity> {
        if self.entries.values().filter(|e| e.in_flight).count() >= MAX_CONCURRENT {
            return None;
        }
        let due = self
            .entries
            .iter_mut()
            .filter(|(_, e)| !e.in_flight && e.is_due(now));
        let (identity, entry) = due.max_by_key(|(_, e)| (e.priority, std::cmp::Reverse(e.due)))?;
        (entry.in_flight, entry.requested) = (true, now);
        Some(identity.clone())
    }

    /// When the next request is due; `None` while `MAX_CONCURRENT` requests are in flight.
    pub fn wake_at(&self) -> Option<SystemTime> {
        let waiting = self.entries.values().filter(|e| !e.in_flight);
        let full = self.entries.values().filter(|e| e.in_flight).count() >= MAX_CONCURRENT;
        waiting.map(|e| e.due).min().filter(|_| !full)
    }

    /// Records an issued certificate, to be renewed at `renew_at` or up to a fifth earlier.
    /// `random` is between 0 and 1. One that is due for renewal at once is retried like a failure,
    /// so that very short validities cause no request loop. Other identities whose requests failed
    /// are retried at once, because the authority is available again.
    pub fn record_issued(
        &mut self,
        identity: &Identity,
        now: SystemTime,
        renew_at: SystemTime,
        expires: SystemTime,
        random: f64,
    ) {
        self.last_success = Some(now);
        self.retry_failed(now);
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        let validity = renew_at.duration_since(now).unwrap_or_default();
        let renew_at = if validity < MIN_SPREAD_RENEWAL {
            renew_at
        } else {
            now + validity.mul_f64(1.0 - JITTER * random.clamp(0.0, 1.0))
        };
        let is_short = renew_at < now + INITIAL_RETRY;
        entry.failures = if is_short { entry.failures + 1 } else { 0 };
        let earliest = if is_short {
            now + retry_delay(entry.failures)
        } else {
            now
        };
        (entry.in_flight, entry.priority) = (false, Priority::Background);
        (entry.due, entry.expires) = (renew_at.max(earliest), Some(expires));
    }

    /// Brings the retries of failed requests forward, except those that were brought forward within
    /// [`MIN_HURRY_INTERVAL`].
    fn retry_failed(&mut self, now: SystemTime) {
        for entry in self.entries.values_mut() {
            if entry.failures > 0 && !entry.in_flight {
                entry.hurry(now, now);
            }
        }
    }

    /// Records a failed request. `random` is between 0 and 1. The retry is due no later than the
    /// current certificate expires, and within `MAX_RETRY_WITHOUT_CERTIFICATE` if there is none.
    pub fn record_failure(&mut self, identity: &Identity, now: SystemTime, random: f64) {
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        entry.in_flight = false;
        entry.failures = entry.failures.saturating_add(1);
        let jitter = 1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0);
        let delay = retry_delay(entry.failures);
        match entry.expires {
            Some(expires) if expires > now => {
                entry.due = expires.min(now + delay.mul_f64(jitter));
            }
            _ => {
                entry.due = now + delay.min(MAX_RETRY_WITHOUT_CERTIFICATE).mul_f64(jitter);
                entry.priority = entry.priority.max(Priority::Warmup);
            }
        }
        // The authority has become available while this request was failing.
        if self.last_success.is_some_and(|at| at >= entry.requested) {
            entry.hurry(now, now + INITIAL_RETRY.mul_f64(jitter));
        }
    }

    /// Schedules the renewal of all certificates after a root rotation, at most once per
    /// `ROTATION_INTERVAL`. `random` returns values between 0 and 1, which spread the renewals
    /// over about a second for each.
    pub fn renew_all(&mut self, now: SystemTime, mut random: impl FnMut() -> f64) {
        let recently = |then: SystemTime| {
            now.duration_since(then)
                .is_ok_and(|since| since < ROTATION_INTERVAL)
        };
        if self.last_rotation.is_some_and(recently) {
            return;
        }
        self.last_rotation = Some(now);
        let spread = self.spread();
        for entry in self
            .entries
            .values_mut()
            .filter(|e| !e.in_flight && e.failures == 0)
        {
            let at = now + spread.mul_f64(random().clamp(0.0, 1.0));
            entry.due = entry.due.min(at);
        }
    }
}

impl Schedule {
    /// Adjusts everything to a wall clock that was set. Retries keep their delay. Certificates that
    /// are not valid (any more, or yet) by the new time are requested at once; `is_valid` returns
    /// whether one is. Renewals that the clock has skipped are spread as after a root rotation.
    /// `random` returns values between 0 and 1.
    pub fn clock_set(
        &mut self,
        shift: ClockShift,
        now: SystemTime,
        is_valid: impl Fn(&Identity) -> bool,
        mut random: impl FnMut() -> f64,
    ) {
        let spread = self.spread();
        self.last_rotation = self.last_rotation.map(|at| shift.apply(at));
        self.last_success = self.last_success.map(|at| shift.apply(at));
        for (identity, entry) in &mut self.entries {
            entry.requested = shift.apply(entry.requested);
            entry.hurried = entry.hurried.map(|at| shift.apply(at));
            let left = entry.expires.and_then(|at| at.duration_since(now).ok());
            entry.due = match left.filter(|_| is_valid(identity)) {
                None if entry.failures == 0 => now,
                None => shift
                    .apply(entry.due)
                    .min(now + MAX_RETRY_WITHOUT_CERTIFICATE),
                Some(_) if entry.failures > 0 => shift.apply(entry.due),
                Some(left) if entry.due <= now => {
                    now + spread.min(left / 2).mul_f64(random().clamp(0.0, 1.0))
                }
                Some(_) => entry.due,
            };
        }
    }

    /// The time over which renewals of all certificates are spread.
    fn spread(&self) -> Duration {
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        ROTATION_SPREAD
            .saturating_mul(count)
            .min(MAX_ROTATION_SPREAD)
    }
}

impl ScheduledCertificate {
    /// Brings the retry forward to `due`, unless it was within [`MIN_HURRY_INTERVAL`].
    fn hurry(&mut self, now: SystemTime, due: SystemTime) {
        let recently = |then: SystemTime| {
            now.duration_since(then)
                .is_ok_and(|since| since < MIN_HURRY_INTERVAL)
        };
        if !self.hurried.is_some_and(recently) {
            self.due = self.due.min(due);
            self.hurried = Some(now);
        }
    }

    /// Whether a request is due. A clock that was set back must not delay a retry for hours.
    fn is_due(&self, now: SystemTime) -> bool {
        let wait = self.due.duration_since(now).unwrap_or_default();
        wait.is_zero() || (self.failures > 0 && wait > MAX_RETRY.mul_f64(1.0 + JITTER))
    }
}

/// Exponential backoff after `failures` failures in a row.
fn retry_delay(failures: u32) -> Duration {
    let doubled =
        INITIAL_RETRY.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(MAX_RETRY)
}

#[cfg(test)]
mod tests;
