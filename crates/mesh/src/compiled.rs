//! Policies compiled for evaluation; done once per change.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::canonical_net;
use crate::connection::Connection;
use crate::identity::Identity;
use crate::policy::{Match, Policy, ServiceAccount, StringMatch, field};
use crate::text::Text;
use crate::trust_domains::TrustDomains;

/// A policy compiled for evaluation.
#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    pub(crate) policy: Arc<Policy>,
    pub(crate) key: Text,
    /// `rules[rule][clause][match]`
    rules: Vec<Vec<Vec<CompiledMatch>>>,
}

/// A connection with values that several policies need, computed once.
pub(crate) struct Subject<'a> {
    connection: &'a Connection,
    /// The client's principals; see [`TrustDomains::principals`].
    principals: Vec<String>,
}

/// The first rule that matches a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matching {
    pub(crate) rule: usize,
    /// False if the rule has parts that are not understood and may not match.
    pub(crate) is_certain: bool,
}

/// Whether something matches. Conjunction is the minimum, disjunction the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    /// It depends on parts that are not understood.
    InDoubt,
    Yes,
}

#[derive(Debug)]
struct CompiledMatch {
    conditions: Vec<Condition>,
    /// Whether there may be conditions that are not understood.
    is_in_doubt: bool,
}

/// One condition of a match.
#[derive(Debug)]
struct Condition {
    values: Values,
    /// Whether one of the values must match, or none may.
    wanted: bool,
    /// Whether there are values that are not understood.
    is_in_doubt: bool,
}

#[derive(Debug)]
enum Values {
    Namespace(Texts),
    ServiceAccount(Vec<ServiceAccount>),
    Principal(Texts),
    Source(Ranges),
    Destination(Ranges),
    Port(Vec<u16>),
}

impl<'a> Subject<'a> {
    /// A connection to a workload in this trust domain.
    pub(crate) fn new(connection: &'a Connection, domains: &TrustDomains, own: &str) -> Self {
        let principals = connection.identity.as_ref();
        Self {
            connection,
            principals: principals.map_or_else(Vec::new, |i| domains.principals(i, own)),
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl CompiledPolicy {
    pub(crate) fn new(policy: Policy) -> Self {
        let clause = |clause: &Vec<Match>| clause.iter().map(CompiledMatch::new).collect();
        let rules = policy
            .rules
            .iter()
            .map(|clauses| clauses.iter().map(clause).collect())
            .collect();
        Self {
            key: policy.key().into(),
            rules,
            policy: Arc::new(policy),
        }
    }

    /// The first rule that matches, or else the first one that may match.
    pub(crate) fn matching_rule(&self, subject: &Subject<'_>) -> Option<Matching> {
        let clause = |clause: &Vec<CompiledMatch>| {
            let any = clause.iter().map(|m| m.truth(subject)).max();
            any.unwrap_or(Truth::Yes) // an empty clause holds
        };
        let mut possible = None;
        for (rule, clauses) in self.rules.iter().enumerate() {
            let all = lazy_min(clauses.iter().map(clause));
            let is_certain = all == Truth::Yes;
            if is_certain {
                return Some(Matching { rule, is_certain });
            }
            if all == Truth::InDoubt && possible.is_none() {
                possible = Some(Matching { rule, is_certain });
            }
        }
        possible
    }

    /// Describes the parts of a rule that are not understood.
    pub(crate) fn not_understood(&self, rule: usize) -> String {
        let matches = self.policy.rules.get(rule).into_iter().flatten().flatten();
        let mut parts: Vec<&str> = matches
            .flat_map(|m| m.not_understood.iter().map(Text::as_str))
            .collect();
        parts.sort_unstable();
        parts.dedup();
        parts.join(", ")
    }
}

/// The minimum; stops at the first `No`.
fn lazy_min(values: impl Iterator<Item = Truth>) -> Truth {
    let mut least = Truth::Yes;
    for value in values {
        least = least.min(value);
        if least == Truth::No {
            break;
        }
    }
    least
}

impl CompiledMatch {
    fn new(m: &Match) -> Self {
        let mut conditions = Vec::new();
        macro_rules! given {
            ($list:expr, $negated:expr, $names:expr, $kind:ident, $compile:expr) => {
                let names: [&str; 2] = $names;
                for (list, wanted, name) in [(&$list, true, names[0]), (&$negated, false, names[1])]
                {
                    let is_in_doubt = m.not_understood.iter().any(|part| *part == *name);
                    if !list.is_empty() || is_in_doubt {
                        conditions.push(Condition {
                            values: Values::$kind($compile(list)),
                            wanted,
                            is_in_doubt,
                        });
                    }
                }
            };
        }
        // Cheapest conditions first.
        given!(
            m.destination_ports,
            m.not_destination_ports,
            field::DESTINATION_PORTS,
            Port,
            |ports: &Vec<u16>| sorted(ports.iter().copied())
        );
        given!(
            m.source_ips,
            m.not_source_ips,
            field::SOURCE_IPS,
            Source,
            Ranges::new
        );
        given!(
            m.destination_ips,
            m.not_destination_ips,
            field::DESTINATION_IPS,
            Destination,
            Ranges::new
        );
        given!(
            m.namespaces,
            m.not_namespaces,
            field::NAMESPACES,
            Namespace,
            Texts::new
        );
        given!(
            m.service_accounts,
            m.not_service_accounts,
            field::SERVICE_ACCOUNTS,
            ServiceAccount,
            Vec::clone
        );
        given!(
            m.principals,
            m.not_principals,
            field::PRINCIPALS,
            Principal,
            Texts::new
        );
        let is_known = |part: &Text| field::ALL.as_flattened().contains(&part.as_str());
        Self {
            conditions,
            is_in_doubt: !m.not_understood.iter().all(is_known),
        }
    }

    fn truth(&self, subject: &Subject<'_>) -> Truth {
        let of_conditions = lazy_min(self.conditions.iter().map(|c| c.truth(subject)));
        if self.is_in_doubt {
            of_conditions.min(Truth::InDoubt)
        } else if self.conditions.is_empty() {
            Truth::No // an empty match does not hold
        } else {
            of_conditions
        }
    }
}

impl Condition {
    fn truth(&self, subject: &Subject<'_>) -> Truth {
        let is_listed = self.values.contain(subject);
        if self.is_in_doubt && !is_listed {
            Truth::InDoubt
        } else {
            Truth::from(is_listed == self.wanted)
        }
    }
}

impl Values {
    fn contain(&self, subject: &Subject<'_>) -> bool {
        let Connection {
            client,
            identity,
            destination,
        } = subject.connection;
        // A client without an identity matches no identity value.
        let identity = identity.as_ref();
        match self {
            Self::Port(ports) => ports.binary_search(&destination.port()).is_ok(),
            Self::Source(ranges) => ranges.contain(client.ip()),
            Self::Destination(ranges) => ranges.contain(destination.ip()),
            Self::Namespace(texts) => identity.is_some_and(|i| texts.contain(&i.namespace)),
            Self::Principal(texts) => subject.principals.iter().any(|p| texts.contain(p)),
            Self::ServiceAccount(accounts) => {
                let same = |i: &Identity, a: &ServiceAccount| {
                    i.namespace == a.namespace && i.service_account == a.service_account
                };
                identity.is_some_and(|i| accounts.iter().any(|a| same(i, a)))
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

/// String matches: exact ones by binary search, others sequentially.
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
        let other = matches
            .iter()
            .filter(|m| !matches!(m, StringMatch::Exact(_)));
        Self {
            exact: sorted(exact),
            other: other.cloned().collect(),
        }
    }

    fn contain(&self, text: &str) -> bool {
        self.exact
            .binary_search_by(|t| t.as_str().cmp(text))
            .is_ok()
            || self.other.iter().any(|m| m.matches(text))
    }
}

/// Sorted address ranges that do not overlap. IPv4 sorts before IPv6.
#[derive(Debug)]
struct Ranges(Vec<(IpAddr, IpAddr)>);

impl Ranges {
    fn new(nets: &[IpNet]) -> Self {
        let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
        let nets = nets.iter().map(|n| canonical_net(*n));
        for (first, last) in sorted(nets.map(|n| (n.network(), n.broadcast()))) {
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
