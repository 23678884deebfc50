//! Status of the discovery stream, for the admin interface and for metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::ads::{Ads, AppliedPush, RejectedResource, ResourceType};

/// Maximum number of rejected resources reported by name; others are only counted.
const MAX_NAMED: usize = 100;

/// Status of the discovery stream, written by the discovery thread.
#[derive(Debug)]
pub struct DiscoveryStatus(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    address: String,
    /// Maximum age of the state.
    max_age: Option<Duration>,
    connection: ConnectionState,
    /// When `connection` last changed.
    since: Instant,
    /// Types without a push on this stream.
    missing_types: Vec<ResourceType>,
    /// When the state was last known to be current; `None` while it is current.
    current_until: Option<Instant>,
    last_push: Option<Instant>,
    synced: bool,
    last_error: Option<String>,
    rejected: BTreeMap<(ResourceType, String), String>,
    unnamed_rejections: usize,
    /// Fields that are not known and are ignored, each with a resource that has it.
    ignored: BTreeMap<String, String>,
    /// See [`AppliedPush::notices`].
    notices: BTreeMap<(ResourceType, String), String>,
    addresses: usize,
    policies: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    Connecting,
    Connected,
}

/// A report for the admin interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveryReport {
    /// Summary in one line.
    pub(crate) line: String,
    address: String,
    connected: bool,
    /// Whether a push of every type was ever received.
    synced: bool,
    /// Age of the state: 0 while the control plane keeps it current.
    pub state_age_s: Option<u64>,
    last_push_s: Option<u64>,
    /// Types of which nothing was received on this connection; empty while the state is kept up to
    /// date.
    awaited: Vec<ResourceType>,
    addresses: usize,
    policies: usize,
    trouble: Option<String>,
    /// Resources that are rejected or not entirely understood, with the reasons.
    rejected: BTreeMap<String, String>,
    /// Fields that are not known and are ignored, each with the name of a resource that has it.
    ignored_fields: BTreeMap<String, String>,
    /// Resources that are unlikely to do what is intended, with the reasons.
    notices: BTreeMap<String, String>,
}

impl DiscoveryStatus {
    /// Creates the status of a stream that is not connected yet. `max_age` is the maximum age of
    /// the state, if there is one.
    pub fn new(address: String, max_age: Option<Duration>) -> Self {
        Self(Mutex::new(Inner {
            address,
            max_age,
            connection: ConnectionState::Connecting,
            since: Instant::now(),
            missing_types: ResourceType::ALL.to_vec(),
            current_until: None,
            last_push: None,
            synced: false,
            last_error: None,
            rejected: BTreeMap::new(),
            unnamed_rejections: 0,
            ignored: BTreeMap::new(),
            notices: BTreeMap::new(),
            addresses: 0,
            policies: 0,
        }))
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock());
    }

    /// Records that a stream was opened.
    pub(super) fn set_connected(&self) {
        self.change(|s| {
            s.connection = ConnectionState::Connected;
            s.since = Instant::now();
            s.missing_types = ResourceType::ALL.to_vec();
        });
    }

    /// Records that the stream ended or could not be opened, with the error if there was one.
    pub(super) fn set_disconnected(&self, reason: Option<String>) {
        self.change(|s| {
            let now = Instant::now();
            if s.connection == ConnectionState::Connected && s.missing_types.is_empty() {
                s.current_until = Some(now);
            }
            if s.connection == ConnectionState::Connected {
                s.connection = ConnectionState::Connecting;
                s.since = now;
            }
            if let Some(reason) = reason {
                s.last_error = Some(reason);
            }
        });
    }

    /// Records a push after it was applied, with the state of the client after it.
    pub(super) fn record_push(&self, push: &AppliedPush, ads: &Ads) {
        self.change(|s| {
            s.last_push = Some(Instant::now());
            (s.missing_types, s.synced) = (ads.missing_types(), ads.is_synced());
            s.count(ads);
            if s.missing_types.is_empty() {
                s.last_error = None;
                s.current_until = None;
            }
            let accepted = push.accepted.iter().map(|(name, _)| name);
            for name in accepted.chain(&push.removed) {
                s.rejected.remove(&(push.kind, name.clone()));
                s.notices.remove(&(push.kind, name.clone()));
            }
            for (name, why) in push.notices.iter().take(MAX_NAMED) {
                s.notices.insert((push.kind, name.clone()), why.clone());
            }
            for RejectedResource { name, reason, .. } in &push.rejected {
                let key = (push.kind, name.clone());
                if s.rejected.len() < MAX_NAMED || s.rejected.contains_key(&key) {
                    s.rejected.insert(key, reason.clone());
                } else {
                    s.unnamed_rejections += 1;
                }
            }
            if s.rejected.is_empty() {
                s.unnamed_rejections = 0;
            }
        });
    }

    /// Records unknown fields and the resources that have them; returns those seen first.
    pub(super) fn record_ignored(&self, fields: Vec<(String, String)>) -> Vec<(String, String)> {
        let mut new = Vec::new();
        if !fields.is_empty() {
            self.change(|s| {
                for (field, name) in fields {
                    if s.ignored.len() < MAX_NAMED && !s.ignored.contains_key(&field) {
                        s.ignored.insert(field.clone(), name.clone());
                        new.push((field, name));
                    }
                }
            });
        }
        new
    }

    /// Records how many resources are known.
    pub(super) fn record_counts(&self, ads: &Ads) {
        self.change(|s| s.count(ads));
    }

    /// Age of the state; `None` before the first complete state.
    pub fn age(&self) -> Option<Duration> {
        self.0.lock().age(Instant::now())
    }

    /// Reports the current status.
    pub fn report(&self) -> DiscoveryReport {
        self.0.lock().report(Instant::now())
    }
}

impl Inner {
    fn count(&mut self, ads: &Ads) {
        self.addresses = ads.count(ResourceType::Address);
        self.policies = ads.count(ResourceType::Authorization);
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        let current =
            self.connection == ConnectionState::Connected && self.missing_types.is_empty();
        match (self.synced, current) {
            (false, _) => None,
            (true, true) => Some(Duration::ZERO),
            (true, false) => Some(now - self.current_until.or(self.last_push).unwrap_or(now)),
        }
    }

    fn report(&self, now: Instant) -> DiscoveryReport {
        let by_name = |all: &BTreeMap<(ResourceType, String), String>| -> BTreeMap<String, String> {
            let named = all.iter();
            named
                .map(|((_, name), reason)| (name.clone(), reason.clone()))
                .collect()
        };
        DiscoveryReport {
            line: self.line(now),
            address: self.address.clone(),
            connected: self.connection == ConnectionState::Connected,
            synced: self.synced,
            state_age_s: self.age(now).map(|a| a.as_secs()),
            last_push_s: self.last_push.map(|at| (now - at).as_secs()),
            awaited: self.missing_types.clone(),
            addresses: self.addresses,
            policies: self.policies,
            trouble: self.last_error.clone(),
            rejected: by_name(&self.rejected),
            notices: by_name(&self.notices),
            ignored_fields: self.ignored.clone(),
        }
    }

    fn line(&self, now: Instant) -> String {
        let seconds = (now - self.since).as_secs();
        let counts = format!("{} addresses, {} policies", self.addresses, self.policies);
        let mut line = match (self.connection, self.missing_types.is_empty()) {
            (ConnectionState::Connected, true) => format!("synced with {}: {counts}", self.address),
            (ConnectionState::Connected, false) => {
                let types: Vec<String> = self
                    .missing_types
                    .iter()
                    .map(|t| format!("{t:?}"))
                    .collect();
                let types = types.join(" and ");
                format!(
                    "connected to {}, waiting for {types} for {seconds} s",
                    self.address
                )
            }
            (ConnectionState::Connecting, _) => {
                format!("no connection to {} for {seconds} s", self.address)
            }
        };
        // Writing to a string does not fail.
        if self.connection == ConnectionState::Connecting || !self.missing_types.is_empty() {
            if let Some(reason) = &self.last_error {
                let _ = write!(line, ": {reason}");
            }
            let _ = match self.age(now) {
                Some(age) => write!(
                    line,
                    "; using the state from {} s ago: {counts}",
                    age.as_secs()
                ),
                None => write!(
                    line,
                    "; no complete state received yet: pods are not served"
                ),
            };
            let is_exceeded = |max: &Duration| self.age(now).is_some_and(|age| age > *max);
            if let Some(max_age) = self.max_age.filter(is_exceeded) {
                let code = error_code::control::STATE_TOO_OLD;
                let _ = write!(
                    line,
                    "; {code}: the state is older than {max_age:?}, new connections are refused"
                );
            }
        }
        if let Some(((_, name), reason)) = self.rejected.first_key_value() {
            let count = self.rejected.len() + self.unnamed_rejections;
            let code = error_code::control::RESOURCE;
            let _ = write!(
                line,
                "; {code}: {count} resources not understood, such as {name}: {reason}"
            );
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use api::discovery::Node;

    use super::*;

    /// Records a push in which the resources `accepted` have arrived.
    fn push(status: &DiscoveryStatus, ads: &mut Ads, kind: ResourceType, accepted: &[&str]) {
        let version = |name: &&str| ((*name).to_owned(), "1".to_owned());
        let accepted = accepted.iter().map(version).collect();
        record(status, ads, kind, accepted, vec![], vec![]);
    }

    fn record(
        status: &DiscoveryStatus,
        ads: &mut Ads,
        kind: ResourceType,
        accepted: Vec<(String, String)>,
        removed: Vec<String>,
        rejected: Vec<RejectedResource>,
    ) {
        let push = AppliedPush {
            kind,
            nonce: String::new(),
            accepted,
            removed,
            rejected,
            notices: Vec::new(),
        };
        ads.handle_applied(&push);
        status.record_push(&push, ads);
    }

    #[test]
    fn the_line_describes_every_state() {
        let status = DiscoveryStatus::new("https://istiod:15012".to_owned(), None);
        let line = || status.report().line;
        assert_eq!(
            line(),
            "no connection to https://istiod:15012 for 0 s; \
             no complete state received yet: pods are not served"
        );
        status.set_connected();
        let mut ads = Ads::new(Node::default(), false);
        push(&status, &mut ads, ResourceType::Address, &["a", "b"]);
        assert!(
            line().starts_with(
                "connected to https://istiod:15012, waiting for Authorization for 0 s"
            )
        );
        push(&status, &mut ads, ResourceType::Authorization, &["p"]);
        assert_eq!(
            line(),
            "synced with https://istiod:15012: 2 addresses, 1 policies"
        );
        assert_eq!(status.report().state_age_s, Some(0));
        status.set_disconnected(Some("it broke".to_owned()));
        let expected = "no connection to https://istiod:15012 for 0 s: it broke; \
                        using the state from 0 s ago: 2 addresses, 1 policies";
        assert_eq!(line(), expected);
        status.set_connected();
        assert!(
            line().contains("waiting for Address and Authorization") && line().contains("it broke"),
            "{}",
            line()
        );
    }

    #[test]
    fn rejected_resources_are_named_until_they_are_accepted() {
        let status = DiscoveryStatus::new("x".to_owned(), None);
        status.set_connected();
        let bad: Vec<_> = (0..250)
            .map(|i| RejectedResource {
                name: format!("r{i:03}"),
                reason: "bad".to_owned(),
                is_used: false,
            })
            .collect();
        let mut ads = Ads::new(Node::default(), false);
        push(&status, &mut ads, ResourceType::Address, &["a", "b"]);
        push(&status, &mut ads, ResourceType::Authorization, &["p"]);
        let names = bad.iter().map(|r| r.name.clone()).collect();
        record(
            &status,
            &mut ads,
            ResourceType::Address,
            vec![],
            vec![],
            bad,
        );
        let report = status.report();
        assert!(
            report
                .line
                .ends_with("; UP-CONTROL-004: 250 resources not understood, such as r000: bad"),
            "{}",
            report.line
        );
        assert_eq!(report.rejected.len(), MAX_NAMED);
        record(
            &status,
            &mut ads,
            ResourceType::Address,
            vec![],
            names,
            vec![],
        );
        assert_eq!(
            status.report().line,
            "synced with x: 2 addresses, 1 policies"
        );
    }
}
