//! How the proxy stands with its control plane, for people and for metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ads::{Kind, Rejected};

/// So many refused resources are named; of the others there is only the number.
const NAMED: usize = 100;

/// Written by the thread that speaks with the control plane, read by the admin interface.
#[derive(Debug)]
pub(crate) struct Status(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    address: String,
    /// How old the state may become, if that is limited.
    limit: Option<Duration>,
    phase: Phase,
    /// Since when.
    since: Instant,
    /// Types of which nothing was received on this connection.
    awaited: Vec<Kind>,
    /// When the state was known to be that of the control plane for the last time, unless it is now.
    current_until: Option<Instant>,
    last_push: Option<Instant>,
    synced: bool,
    trouble: Option<(Instant, String)>,
    rejected: BTreeMap<(Kind, String), String>,
    unnamed: usize,
    addresses: usize,
    policies: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    Connecting,
    Connected,
}

/// What the admin interface says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// All in one line.
    pub(crate) line: String,
    address: String,
    connected: bool,
    /// Whether something of each type was ever received.
    synced: bool,
    /// How old the state is that is in force: 0 while the control plane keeps it up to date.
    pub(crate) state_age_s: Option<u64>,
    last_push_s: Option<u64>,
    addresses: usize,
    policies: usize,
    trouble: Option<String>,
    /// Resources that were not taken, and why.
    rejected: BTreeMap<String, String>,
}

impl Status {
    pub(crate) fn new(address: String, limit: Option<Duration>) -> Self {
        Self(Mutex::new(Inner {
            address,
            limit,
            phase: Phase::Connecting,
            since: Instant::now(),
            awaited: Kind::ALL.to_vec(),
            current_until: None,
            last_push: None,
            synced: false,
            trouble: None,
            rejected: BTreeMap::new(),
            unnamed: 0,
            addresses: 0,
            policies: 0,
        }))
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A connection is open.
    pub(super) fn connected(&self) {
        self.change(|s| {
            (s.phase, s.since) = (Phase::Connected, Instant::now());
            s.awaited = Kind::ALL.to_vec();
        });
    }

    /// It is not, any more.
    pub(super) fn ended(&self, why: Option<String>) {
        self.change(|s| {
            let now = Instant::now();
            if s.phase == Phase::Connected && s.awaited.is_empty() {
                s.current_until = Some(now);
            }
            if s.phase == Phase::Connected {
                (s.phase, s.since) = (Phase::Connecting, now);
            }
            if let Some(why) = why {
                s.trouble = Some((now, why));
            }
        });
    }

    /// A push has been applied.
    pub(super) fn pushed(&self, applied: Applied<'_>) {
        self.change(|s| {
            s.last_push = Some(Instant::now());
            (s.awaited, s.synced) = (applied.awaited, applied.synced);
            (s.addresses, s.policies) = (applied.addresses, applied.policies);
            if s.awaited.is_empty() {
                s.trouble = None;
                s.current_until = None;
            }
            for name in applied.settled {
                s.rejected.remove(&(applied.kind, name.to_owned()));
            }
            for Rejected { name, why } in applied.rejected {
                if s.rejected.len() < NAMED || s.rejected.contains_key(&(applied.kind, name.clone())) {
                    s.rejected.insert((applied.kind, name.clone()), why.clone());
                } else {
                    s.unnamed += 1;
                }
            }
            if s.rejected.is_empty() {
                s.unnamed = 0;
            }
        });
    }

    /// How old the state in force is; `None` while there is none.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).age(Instant::now())
    }

    /// What is to be told now.
    pub(crate) fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).report(Instant::now())
    }
}

/// What a push has come to.
pub(super) struct Applied<'a> {
    pub(super) kind: Kind,
    /// Names that were taken or are gone.
    pub(super) settled: Vec<&'a str>,
    pub(super) rejected: &'a [Rejected],
    pub(super) awaited: Vec<Kind>,
    pub(super) synced: bool,
    pub(super) addresses: usize,
    pub(super) policies: usize,
}

impl Inner {
    fn age(&self, now: Instant) -> Option<Duration> {
        let current = self.phase == Phase::Connected && self.awaited.is_empty();
        match (self.synced, current) {
            (false, _) => None,
            (true, true) => Some(Duration::ZERO),
            (true, false) => Some(now - self.current_until.or(self.last_push).unwrap_or(now)),
        }
    }

    fn report(&self, now: Instant) -> Report {
        let rejected = self.rejected.iter().map(|((_, name), why)| (name.clone(), why.clone())).collect();
        Report {
            line: self.line(now),
            address: self.address.clone(),
            connected: self.phase == Phase::Connected,
            synced: self.synced,
            state_age_s: self.age(now).map(|a| a.as_secs()),
            last_push_s: self.last_push.map(|at| (now - at).as_secs()),
            addresses: self.addresses,
            policies: self.policies,
            trouble: self.trouble.as_ref().map(|(_, why)| why.clone()),
            rejected,
        }
    }

    fn line(&self, now: Instant) -> String {
        let seconds = (now - self.since).as_secs();
        let has = format!("{} addresses, {} policies", self.addresses, self.policies);
        let mut line = match (self.phase, self.awaited.is_empty()) {
            (Phase::Connected, true) => format!("in step with {}: {has}", self.address),
            (Phase::Connected, false) => {
                let awaited: Vec<String> = self.awaited.iter().map(|k| format!("{k:?}")).collect();
                let awaited = awaited.join(" and ");
                format!("connected to {}, which has said nothing of {awaited} for {seconds} s", self.address)
            }
            (Phase::Connecting, _) => format!("no connection to {} for {seconds} s", self.address),
        };
        // Writing to a string does not fail.
        if self.phase == Phase::Connecting || !self.awaited.is_empty() {
            if let Some((_, why)) = &self.trouble {
                let _ = write!(line, ": {why}");
            }
            let _ = match self.age(now) {
                Some(age) => write!(line, "; the state of {} s ago is in force: {has}", age.as_secs()),
                None => write!(line, "; there is no state yet, so no pod is served"),
            };
            if let Some(limit) = self.limit.filter(|limit| self.age(now).is_some_and(|age| age > *limit)) {
                let code = error_code::control::STATE_TOO_OLD;
                let _ = write!(line, "; {code}: that is more than {limit:?}, so connections are refused");
            }
        }
        if let Some(((_, name), why)) = self.rejected.first_key_value() {
            let count = self.rejected.len() + self.unnamed;
            let code = error_code::control::RESOURCE;
            let _ = write!(line, "; {code}: {count} not taken, such as {name}: {why}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(status: &Status, kind: Kind, awaited: &[Kind], rejected: &[Rejected], settled: Vec<&str>) {
        let synced = awaited.is_empty();
        let awaited = awaited.to_vec();
        status.pushed(Applied { kind, settled, rejected, awaited, synced, addresses: 2, policies: 1 });
    }

    #[test]
    fn every_state_has_a_line_of_its_own() {
        let status = Status::new("https://istiod:15012".to_owned(), None);
        let line = || status.report().line;
        assert_eq!(line(), "no connection to https://istiod:15012 for 0 s; there is no state yet, so no pod is served");
        status.connected();
        pushed(&status, Kind::Address, &[Kind::Authorization], &[], vec![]);
        assert!(
            line().starts_with("connected to https://istiod:15012, which has said nothing of Authorization for 0 s")
        );
        pushed(&status, Kind::Authorization, &[], &[], vec![]);
        assert_eq!(line(), "in step with https://istiod:15012: 2 addresses, 1 policies");
        assert_eq!(status.report().state_age_s, Some(0));
        status.ended(Some("it broke".to_owned()));
        let expected = "no connection to https://istiod:15012 for 0 s: it broke; the state of 0 s ago is in force: 2 addresses, 1 policies";
        assert_eq!(line(), expected);
        status.connected();
        assert!(line().contains("nothing of Address and Authorization") && line().contains("it broke"), "{}", line());
    }

    #[test]
    fn what_is_not_taken_is_named_until_it_is() {
        let status = Status::new("x".to_owned(), None);
        status.connected();
        let bad: Vec<_> = (0..250).map(|i| Rejected { name: format!("r{i:03}"), why: "bad".to_owned() }).collect();
        pushed(&status, Kind::Address, &[], &bad, vec![]);
        let report = status.report();
        assert!(report.line.ends_with("; UP-CONTROL-004: 250 not taken, such as r000: bad"), "{}", report.line);
        assert_eq!(report.rejected.len(), NAMED);
        pushed(&status, Kind::Address, &[], &[], bad.iter().map(|r| r.name.as_str()).collect());
        assert_eq!(status.report().line, "in step with x: 2 addresses, 1 policies");
    }
}
