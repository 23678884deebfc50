//! What is really in a pod's network namespace, and how that differs from a plan.

use std::collections::BTreeMap;
use std::fmt;

use nft::{Rule, Set, Table};

use crate::plan::Plan;
use crate::routed;
use crate::routing::{LocalRoute, PolicyRule};

/// What was read back from a namespace: everything that is, or looks like, ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The table `inet underpass`, if there is one.
    pub table: Option<Table>,
    /// ip rules at our priorities.
    pub rules: Vec<PolicyRule>,
    /// Local default routes in our table.
    pub routes: Vec<LocalRoute>,
}

impl Observed {
    /// Whether nothing of ours is there.
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
    /// The table `inet underpass` is missing.
    NoTable,
    /// A chain is missing, or hooks in elsewhere.
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
    /// A set does not hold the planned addresses.
    Set(String),
    /// An ip rule is missing, or is one too many.
    PolicyRule(PolicyRule, How),
    /// A route is missing, or is one too many.
    Route(LocalRoute, How),
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
            Self::NoTable => write!(f, "nf_tables table inet {} is missing", routed::TABLE_NAME),
            Self::Chain(name) => write!(f, "chain {name} is missing or hooks in elsewhere"),
            Self::Rule { chain, position, how } => write!(f, "rule {position} of chain {chain} {how}"),
            Self::Set(name) => write!(f, "set {name} does not hold the planned addresses"),
            Self::PolicyRule(rule, how) => write!(f, "{rule} {how}"),
            Self::Route(route, how) => write!(f, "{route} {how}"),
        }
    }
}

/// How a namespace differs from a plan; empty when it is as planned.
///
/// Exceptions for connections that were open when the pod joined are never a difference.
pub fn diff(plan: &Plan, observed: &Observed) -> Vec<Difference> {
    let mut out = Vec::new();
    let planned = routed::table(plan, observed.rules.iter().filter(|r| r.is_connection_exception()));
    match &observed.table {
        None => out.push(Difference::NoTable),
        Some(found) => {
            for chain in &planned.chains {
                if !found.chains.contains(chain) {
                    out.push(Difference::Chain(chain.name.clone()));
                } else if let Some(d) = first_difference(&chain.name, &planned.rules, &found.rules) {
                    out.push(d);
                }
            }
            let find = |name: &str| -> Option<&Set> { found.sets.iter().find(|s| s.name == name) };
            out.extend(
                planned.sets.iter().filter(|s| find(&s.name) != Some(s)).map(|s| Difference::Set(s.name.clone())),
            );
        }
    }
    let kept = |r: &&PolicyRule| !r.is_connection_exception();
    let planned_rules = routed::policy_rules(plan);
    let rules = compare(planned_rules.iter(), observed.rules.iter().filter(kept));
    out.extend(rules.into_iter().map(|(r, how)| Difference::PolicyRule(r.clone(), how)));
    let planned_routes = routed::routes(plan);
    let routes = compare(planned_routes.iter(), observed.routes.iter());
    out.extend(routes.into_iter().map(|(r, how)| Difference::Route(*r, how)));
    out
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
