//! Policies as they are evaluated: compiled once, when they change.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::authorize::Connection;
use crate::identity::Identity;
use crate::policy::{Match, Policy, ServiceAccount, StringMatch};
use crate::text::Text;

/// A policy, ready for use.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) policy: Arc<Policy>,
    pub(crate) key: Text,
    /// `rules[rule][clause][match]`
    rules: Vec<Vec<Vec<Vec<Condition>>>>,
}

/// A connection, with what several policies ask for made once.
pub(crate) struct Subject<'a> {
    connection: &'a Connection,
    principal: Option<String>,
}

/// One kind of values in a match, and whether one of them must hold or none may.
#[derive(Debug)]
enum Condition {
    Namespace(Texts, bool),
    ServiceAccount(Vec<ServiceAccount>, bool),
    Principal(Texts, bool),
    Source(Ranges, bool),
    Destination(Ranges, bool),
    Port(Vec<u16>, bool),
}

impl<'a> Subject<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self { connection, principal: connection.identity.as_ref().map(Identity::principal) }
    }
}

impl Compiled {
    pub(crate) fn new(policy: Policy) -> Self {
        let clause = |clause: &Vec<Match>| clause.iter().map(conditions).collect();
        let rules = policy.rules.iter().map(|clauses| clauses.iter().map(clause).collect()).collect();
        Self { key: policy.key().into(), rules, policy: Arc::new(policy) }
    }

    /// The first rule that holds.
    pub(crate) fn matching_rule(&self, subject: &Subject<'_>) -> Option<usize> {
        // A clause of no matches holds, and a match that says nothing does not.
        let holds = |m: &Vec<Condition>| !m.is_empty() && m.iter().all(|c| c.holds(subject));
        let clause = |clause: &Vec<Vec<Condition>>| clause.is_empty() || clause.iter().any(holds);
        self.rules.iter().position(|clauses| clauses.iter().all(clause))
    }
}

fn conditions(m: &Match) -> Vec<Condition> {
    let mut all = Vec::new();
    macro_rules! given {
        ($list:expr, $negated:expr, $kind:ident, $compile:expr) => {
            for (list, wanted) in [(&$list, true), (&$negated, false)] {
                if !list.is_empty() {
                    all.push(Condition::$kind($compile(list), wanted));
                }
            }
        };
    }
    // What is quickest to decide comes first.
    given!(m.destination_ports, m.not_destination_ports, Port, |ports: &Vec<u16>| sorted(ports.iter().copied()));
    given!(m.source_ips, m.not_source_ips, Source, Ranges::new);
    given!(m.destination_ips, m.not_destination_ips, Destination, Ranges::new);
    given!(m.namespaces, m.not_namespaces, Namespace, Texts::new);
    given!(m.service_accounts, m.not_service_accounts, ServiceAccount, Vec::clone);
    given!(m.principals, m.not_principals, Principal, Texts::new);
    all
}

impl Condition {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        let Connection { client, identity, destination } = subject.connection;
        // Whoever has no identity has none of any values.
        let identity = identity.as_ref();
        match self {
            Self::Port(ports, wanted) => ports.binary_search(&destination.port()).is_ok() == *wanted,
            Self::Source(ranges, wanted) => ranges.contain(client.ip()) == *wanted,
            Self::Destination(ranges, wanted) => ranges.contain(destination.ip()) == *wanted,
            Self::Namespace(texts, wanted) => identity.is_some_and(|i| texts.contain(&i.namespace)) == *wanted,
            Self::Principal(texts, wanted) => subject.principal.as_deref().is_some_and(|p| texts.contain(p)) == *wanted,
            Self::ServiceAccount(accounts, wanted) => {
                let same = |i: &Identity, a: &ServiceAccount| {
                    i.namespace == a.namespace && i.service_account == a.service_account
                };
                identity.is_some_and(|i| accounts.iter().any(|a| same(i, a))) == *wanted
            }
        }
    }
}

fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Texts: exact ones by search, the others one after another.
#[derive(Debug)]
struct Texts {
    exact: Vec<Text>,
    other: Vec<StringMatch>,
}

impl Texts {
    fn new(matches: &[StringMatch]) -> Self {
        let exact = matches.iter().filter_map(|m| match m {
            StringMatch::Exact(text) => Some(text.clone()),
            _ => None,
        });
        let other = matches.iter().filter(|m| !matches!(m, StringMatch::Exact(_)));
        Self { exact: sorted(exact), other: other.cloned().collect() }
    }

    fn contain(&self, text: &str) -> bool {
        self.exact.binary_search_by(|t| t.as_str().cmp(text)).is_ok() || self.other.iter().any(|m| m.matches(text))
    }
}

/// Addresses, as ranges that do not overlap. IPv4 and IPv6 order apart.
#[derive(Debug)]
struct Ranges(Vec<(IpAddr, IpAddr)>);

impl Ranges {
    fn new(nets: &[IpNet]) -> Self {
        let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
        for (first, last) in sorted(nets.iter().map(|n| (n.network(), n.broadcast()))) {
            match merged.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn contain(&self, ip: IpAddr) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= ip);
        after.checked_sub(1).is_some_and(|at| ip <= self.0[at].1)
    }
}
