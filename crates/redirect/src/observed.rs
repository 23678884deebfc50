//! What is really in a pod's network namespace, and how that differs from a plan.

use std::collections::BTreeMap;
use std::fmt;

use nft::{Rule, Set, Table};

use crate::foreign::Foreign;
use crate::plan::{CaptureKind, Plan};
use crate::routing::{LocalRoute, PolicyRule};
use crate::rule::TABLE_NAME;
use crate::xtables::XtablesRules;
use crate::{nat, routed, xtables};

/// Everything that a plan stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) table: Option<Table>,
    pub(crate) xtables: Vec<XtablesRules>,
    pub(crate) rules: Vec<PolicyRule>,
    pub(crate) routes: Vec<LocalRoute>,
}

impl Rendered {
    /// Renders a plan, with the exceptions for connections that were open when the pod joined.
    pub(crate) fn of<'e>(plan: &Plan, exceptions: impl IntoIterator<Item = &'e PolicyRule>) -> Self {
        match plan.capture {
            CaptureKind::Routed => Self {
                table: Some(routed::table(plan, exceptions)),
                xtables: Vec::new(),
                rules: routed::policy_rules(plan),
                routes: routed::routes(plan),
            },
            CaptureKind::Nat => Self {
                table: Some(nat::table(plan)),
                xtables: Vec::new(),
                rules: nat::policy_rules(plan),
                routes: nat::routes(plan),
            },
            CaptureKind::NatIptablesNft | CaptureKind::NatIptablesLegacy => Self {
                table: None,
                xtables: xtables::tables(plan),
                rules: nat::policy_rules(plan),
                routes: nat::routes(plan),
            },
        }
    }
}

/// What was read back from a namespace: everything that is, or looks like, ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The table `inet underpass`, if there is one.
    pub table: Option<Table>,
    /// iptables chains of ours, of whichever iptables has some.
    pub xtables: Vec<XtablesRules>,
    /// ip rules at our priorities.
    pub rules: Vec<PolicyRule>,
    /// Local default routes in our table.
    pub routes: Vec<LocalRoute>,
    /// What istio-cni has in the same namespace.
    pub foreign: Vec<Foreign>,
}

impl Observed {
    /// Whether nothing of ours is there, and nothing of istio-cni.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many open connections are exempt from the capture.
    pub fn exempted(&self) -> usize {
        self.rules.iter().filter(|r| r.is_connection_exception()).count()
    }
}

/// One way in which a namespace is not as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The nf_tables table is missing.
    NoTable,
    /// A chain is missing, hooks in elsewhere, or is one too many.
    Chain(String),
    /// The rules of a chain are not the planned ones: the first that differs, counted from 1.
    Rule {
        /// Name of the chain.
        chain: String,
        /// Where.
        position: usize,
        /// How.
        how: How,
    },
    /// The nf_tables table is there and should not be.
    UnexpectedTable,
    /// The iptables rules of ours in a table are not the planned ones.
    Xtables {
        /// IPv6 or IPv4.
        v6: bool,
        /// `raw`, `mangle`, `nat` or `filter`.
        table: String,
        /// How.
        how: How,
    },
    /// A set does not hold the planned addresses.
    Set(String),
    /// An ip rule is missing, or is one too many.
    PolicyRule(PolicyRule, How),
    /// A route is missing, or is one too many.
    Route(LocalRoute, How),
    /// istio-cni has redirection in the same pod.
    Foreign(Foreign),
}

/// How one thing differs from the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It should be there and is not.
    Missing,
    /// It is there and should not be.
    Unexpected,
    /// It is there and says something else.
    Altered,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Unexpected => "should not be there",
            Self::Altered => "was altered",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "nf_tables table inet {} is missing", TABLE_NAME),
            Self::UnexpectedTable => write!(f, "nf_tables table inet {} should not be there", TABLE_NAME),
            Self::Xtables { v6, table, how } => {
                let program = if *v6 { "ip6tables" } else { "iptables" };
                write!(f, "what {program} has in table {table} {how}")
            }
            Self::Chain(name) => write!(f, "chain {name} is missing, hooks in elsewhere, or should not be there"),
            Self::Rule { chain, position, how } => write!(f, "rule {position} of chain {chain} {how}"),
            Self::Set(name) => write!(f, "set {name} does not hold the planned addresses"),
            Self::PolicyRule(rule, how) => write!(f, "{rule} {how}"),
            Self::Route(route, how) => write!(f, "{route} {how}"),
            Self::Foreign(foreign) => write!(f, "{foreign} should not be there"),
        }
    }
}

/// How a namespace differs from a plan; empty when it is as planned.
///
/// Exceptions for connections that were open when the pod joined are never a difference.
pub fn diff(plan: &Plan, observed: &Observed) -> Vec<Difference> {
    let mut out = Vec::new();
    let planned = Rendered::of(plan, observed.rules.iter().filter(|r| r.is_connection_exception()));
    match (&planned.table, &observed.table) {
        (None, None) => {}
        (Some(_), None) => out.push(Difference::NoTable),
        (None, Some(_)) => out.push(Difference::UnexpectedTable),
        (Some(planned), Some(found)) => out.extend(table_differences(planned, found)),
    }
    out.extend(xtables_differences(&planned.xtables, &observed.xtables));
    let kept = |r: &&PolicyRule| !r.is_connection_exception();
    let rules = compare(planned.rules.iter(), observed.rules.iter().filter(kept));
    out.extend(rules.into_iter().map(|(r, how)| Difference::PolicyRule(r.clone(), how)));
    let routes = compare(planned.routes.iter(), observed.routes.iter());
    out.extend(routes.into_iter().map(|(r, how)| Difference::Route(*r, how)));
    out.extend(observed.foreign.iter().cloned().map(Difference::Foreign));
    out
}

fn table_differences(planned: &Table, found: &Table) -> Vec<Difference> {
    let mut out = Vec::new();
    for chain in &planned.chains {
        if !found.chains.contains(chain) {
            out.push(Difference::Chain(chain.name.clone()));
        } else if let Some(d) = first_difference(&chain.name, &planned.rules, &found.rules) {
            out.push(d);
        }
    }
    let strangers = found.chains.iter().filter(|c| !planned.chains.iter().any(|p| p.name == c.name));
    out.extend(strangers.map(|c| Difference::Chain(c.name.clone())));
    let find = |name: &str| -> Option<&Set> { found.sets.iter().find(|s| s.name == name) };
    out.extend(planned.sets.iter().filter(|s| find(&s.name) != Some(s)).map(|s| Difference::Set(s.name.clone())));
    out
}

fn xtables_differences(planned: &[XtablesRules], found: &[XtablesRules]) -> Vec<Difference> {
    let same = |a: &XtablesRules, b: &XtablesRules| a.v6 == b.v6 && a.table == b.table;
    let difference = |of: &XtablesRules, how| Difference::Xtables { v6: of.v6, table: of.table.clone(), how };
    let missing_or_altered = planned.iter().filter_map(|p| match found.iter().find(|f| same(p, f)) {
        None => Some(difference(p, How::Missing)),
        Some(f) if f != p => Some(difference(p, How::Altered)),
        Some(_) => None,
    });
    let unexpected = found.iter().filter(|f| !planned.iter().any(|p| same(p, f)));
    missing_or_altered.chain(unexpected.map(|f| difference(f, How::Unexpected))).collect()
}

fn first_difference(chain: &str, planned: &[Rule], found: &[Rule]) -> Option<Difference> {
    let of_chain = |rules: &[Rule]| -> Vec<Rule> { rules.iter().filter(|r| r.chain == chain).cloned().collect() };
    let (planned, found) = (of_chain(planned), of_chain(found));
    let at = (0..planned.len().max(found.len())).find(|i| planned.get(*i) != found.get(*i))?;
    let how = match planned.len().cmp(&found.len()) {
        std::cmp::Ordering::Greater => How::Missing,
        std::cmp::Ordering::Less => How::Unexpected,
        std::cmp::Ordering::Equal => How::Altered,
    };
    Some(Difference::Rule { chain: chain.to_owned(), position: at + 1, how })
}

/// Compares two collections as multisets.
fn compare<'a, T: Ord + 'a>(
    planned: impl Iterator<Item = &'a T>,
    found: impl Iterator<Item = &'a T>,
) -> Vec<(&'a T, How)> {
    let mut balance: BTreeMap<&T, i32> = BTreeMap::new();
    planned.for_each(|t| *balance.entry(t).or_default() += 1);
    found.for_each(|t| *balance.entry(t).or_default() -= 1);
    let how = |n: i32| if n > 0 { How::Missing } else { How::Unexpected };
    balance.into_iter().filter(|(_, n)| *n != 0).map(|(t, n)| (t, how(n))).collect()
}
