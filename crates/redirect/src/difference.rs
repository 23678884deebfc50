//! The differences of a namespace from what a plan requires.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use nft::{IpFamily, Rule, Set, Table};

use crate::foreign::ForeignRedirection;
use crate::local_route::{LocalRoute, OtherRoute};
use crate::policy_rule::PolicyRule;
use crate::rule::TABLE_NAME;
use crate::state::{DesiredState, ObservedState};
use crate::xtables::{XtablesRules, program};

/// A difference between a namespace and a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The nf_tables table is missing.
    NoTable,
    /// A chain is missing, unexpected, or has another hook or priority.
    Chain(String),
    /// The rules of a chain differ from the plan.
    Rule {
        /// Name of the chain.
        chain: String,
        /// Position of the first rule that differs, starting at 1.
        position: usize,
        /// The kind of difference.
        kind: DifferenceKind,
    },
    /// There is an unexpected nf_tables table.
    UnexpectedTable,
    /// The table has something that Underpass never writes.
    Unknown(String),
    /// Underpass's iptables rules in a table differ from the plan.
    Xtables {
        /// The family.
        family: IpFamily,
        /// `raw`, `mangle`, `nat` or `filter`.
        table: String,
        /// The kind of difference.
        kind: DifferenceKind,
    },
    /// A set is missing, or does not contain the planned elements.
    Set(String),
    /// An ip rule is missing or unexpected.
    PolicyRule(PolicyRule, DifferenceKind),
    /// A route is missing or unexpected.
    Route(LocalRoute, DifferenceKind),
    /// There is another route in Underpass's routing table.
    OtherRoute(OtherRoute),
    /// The pod has istio-cni redirection.
    Foreign(ForeignRedirection),
}

/// How an object differs from the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The plan has the object, the namespace does not.
    Missing,
    /// The namespace has the object, the plan does not.
    Unexpected,
    /// Both have the object, with different contents.
    Modified,
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Unexpected => "is unexpected",
            Self::Modified => "was modified",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => write!(f, "nf_tables table inet {} is missing", TABLE_NAME),
            Self::UnexpectedTable => write!(f, "nf_tables table inet {} is unexpected", TABLE_NAME),
            Self::Unknown(what) => write!(f, "{what} in table inet {TABLE_NAME} is unexpected"),
            Self::Xtables {
                family,
                table,
                kind,
            } => {
                let program = program(*family);
                write!(f, "{program} table {table}: Underpass's part {kind}")
            }
            Self::Chain(name) => {
                write!(f, "chain {name} is missing, unexpected or on another hook")
            }
            Self::Rule {
                chain,
                position,
                kind,
            } => write!(f, "rule {position} of chain {chain} {kind}"),
            Self::Set(name) => write!(f, "set {name} does not contain the planned elements"),
            Self::PolicyRule(rule, kind) => write!(f, "{rule} {kind}"),
            Self::Route(route, kind) => write!(f, "{route} {kind}"),
            Self::OtherRoute(route) => write!(f, "{route} is unexpected"),
            Self::Foreign(foreign) => write!(f, "{foreign} is unexpected"),
        }
    }
}

/// Compares a namespace with what a plan requires.
pub(crate) fn differences(desired: &DesiredState, observed: &ObservedState) -> Vec<Difference> {
    let mut out = match (&desired.table, &observed.table) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![Difference::NoTable],
        (None, Some(_)) => vec![Difference::UnexpectedTable],
        (Some(desired), Some(found)) => table_differences(desired, found),
    };
    out.extend(xtables_differences(&desired.xtables, &observed.xtables));
    let rules = compare(desired.rules.iter(), observed.rules.iter());
    out.extend(rules.map(|(r, kind)| Difference::PolicyRule(r.clone(), kind)));
    let routes = compare(desired.routes.iter(), observed.routes.iter());
    out.extend(routes.map(|(r, kind)| Difference::Route(*r, kind)));
    let other = observed.other_routes.iter().cloned();
    out.extend(other.map(Difference::OtherRoute));
    out.extend(observed.foreign.iter().cloned().map(Difference::Foreign));
    out
}

fn table_differences(desired: &Table, found: &Table) -> Vec<Difference> {
    let mut out = Vec::new();
    for chain in &desired.chains {
        if !found.chains.contains(chain) {
            out.push(Difference::Chain(chain.name.clone()));
        } else {
            out.extend(first_difference(&chain.name, &desired.rules, &found.rules));
        }
    }
    let is_unexpected = |name: &str| !desired.chains.iter().any(|d| d.name == name);
    let unexpected = found.chains.iter().filter(|c| is_unexpected(&c.name));
    out.extend(unexpected.map(|c| Difference::Chain(c.name.clone())));
    let wrong = desired.sets.iter().filter(|s| !found.sets.contains(s));
    let is_unexpected = |s: &&Set| !desired.sets.iter().any(|d| d.name == s.name);
    let wrong = wrong.chain(found.sets.iter().filter(is_unexpected));
    out.extend(wrong.map(|s| Difference::Set(s.name.clone())));
    out.extend(found.unknown.iter().cloned().map(Difference::Unknown));
    out
}

fn xtables_differences(desired: &[XtablesRules], found: &[XtablesRules]) -> Vec<Difference> {
    let difference = |rules: &XtablesRules, kind| Difference::Xtables {
        family: rules.family,
        table: rules.table.clone(),
        kind,
    };
    let mut out = Vec::new();
    for d in desired {
        match found.iter().find(|f| d.same_table(f)) {
            None => out.push(difference(d, DifferenceKind::Missing)),
            Some(f) if f != d => out.push(difference(d, DifferenceKind::Modified)),
            Some(_) => {}
        }
    }
    let is_desired = |f: &XtablesRules| desired.iter().any(|d| d.same_table(f));
    let unexpected = found.iter().filter(|f| !is_desired(f));
    out.extend(unexpected.map(|f| difference(f, DifferenceKind::Unexpected)));
    out
}

fn first_difference(chain: &str, desired: &[Rule], found: &[Rule]) -> Option<Difference> {
    let (desired, found) = (rules_of(chain, desired), rules_of(chain, found));
    let at = (0..desired.len().max(found.len())).find(|i| desired.get(*i) != found.get(*i))?;
    let kind = match desired.len().cmp(&found.len()) {
        Ordering::Greater => DifferenceKind::Missing,
        Ordering::Less => DifferenceKind::Unexpected,
        Ordering::Equal => DifferenceKind::Modified,
    };
    Some(Difference::Rule {
        chain: chain.to_owned(),
        position: at + 1,
        kind,
    })
}

fn rules_of<'r>(chain: &str, rules: &'r [Rule]) -> Vec<&'r Rule> {
    rules.iter().filter(|r| r.chain == chain).collect()
}

/// Compares two collections as multisets.
fn compare<'a, T: Ord + 'a>(
    desired: impl Iterator<Item = &'a T>,
    found: impl Iterator<Item = &'a T>,
) -> impl Iterator<Item = (&'a T, DifferenceKind)> {
    let mut balance: BTreeMap<&T, i32> = BTreeMap::new();
    desired.for_each(|t| *balance.entry(t).or_default() += 1);
    found.for_each(|t| *balance.entry(t).or_default() -= 1);
    balance.into_iter().filter_map(|(t, n)| match n.cmp(&0) {
        Ordering::Greater => Some((t, DifferenceKind::Missing)),
        Ordering::Less => Some((t, DifferenceKind::Unexpected)),
        Ordering::Equal => None,
    })
}

#[cfg(test)]
mod tests {
    use nft::{Element, Expr, Verdict};

    use super::*;
    use crate::capture::{diff, diff_with};
    use crate::driver::Exceptions;
    use crate::plan::{CaptureKind, Plan};
    use crate::rule_priorities::RulePriorities;
    use crate::sockets::TcpConnection;
    use crate::{nat, routed};

    fn plan(capture: CaptureKind) -> Plan {
        Plan {
            capture,
            ..Plan::for_pod([[10, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()])
        }
    }

    /// The state of a pod after the `routed` plan was applied.
    fn routed_state() -> ObservedState {
        let plan = plan(CaptureKind::Routed);
        ObservedState {
            table: Some(routed::table::table(&plan, &Exceptions::new())),
            rules: routed::table::policy_rules(&plan),
            routes: routed::table::routes(&plan),
            ..ObservedState::default()
        }
    }

    /// The state of a pod after the plan of an iptables backend was applied.
    fn iptables_state() -> ObservedState {
        let plan = plan(CaptureKind::NatIptablesNft);
        ObservedState {
            xtables: nat::xtables::tables(&plan),
            rules: crate::return_path::policy_rules(&plan),
            routes: nat::table::routes(&plan),
            ..ObservedState::default()
        }
    }

    /// The differences from the `routed` plan after a change to a pod's state.
    fn after(change: impl FnOnce(&mut ObservedState)) -> Vec<Difference> {
        let mut state = routed_state();
        change(&mut state);
        diff(&plan(CaptureKind::Routed), &state)
    }

    fn after_table(change: impl FnOnce(&mut Table)) -> Vec<Difference> {
        after(|state| change(state.table.as_mut().unwrap()))
    }

    fn after_iptables(change: impl FnOnce(&mut Vec<XtablesRules>)) -> Vec<Difference> {
        let mut state = iptables_state();
        change(&mut state.xtables);
        diff(&plan(CaptureKind::NatIptablesNft), &state)
    }

    #[test]
    fn an_applied_plan_has_no_differences() {
        assert_eq!(after(|_| {}), []);
        assert_eq!(after_iptables(|_| {}), []);
    }

    #[test]
    fn rules_and_sets_in_another_order_are_no_difference() {
        let reordered = after(|state| {
            state.rules.reverse();
            state.routes.reverse();
            state.table.as_mut().unwrap().sets.reverse();
            state.table.as_mut().unwrap().chains.reverse();
        });
        assert_eq!(reordered, []);
    }

    #[test]
    fn a_missing_or_unexpected_table_is_a_difference() {
        assert_eq!(after(|s| s.table = None), [Difference::NoTable]);
        let mut state = iptables_state();
        state.table = routed_state().table;
        let found = diff(&plan(CaptureKind::NatIptablesLegacy), &state);
        assert_eq!(found, [Difference::UnexpectedTable]);
    }

    #[test]
    fn a_missing_modified_or_unexpected_chain_is_a_difference() {
        let chain = |name: &str| [Difference::Chain(name.to_owned())];
        let missing = after_table(|t| t.chains.retain(|c| c.name != "guard"));
        assert_eq!(missing, chain("guard"));
        assert_eq!(after_table(|t| t.chains[0].priority += 1), chain("capture"));
        let unexpected = after_table(|t| {
            let copy = t.chains[0].clone();
            let name = "another".to_owned();
            t.chains.push(nft::Chain { name, ..copy });
        });
        assert_eq!(unexpected, chain("another"));
    }

    #[test]
    fn the_first_rule_that_differs_is_reported_with_its_chain() {
        let rule = |position, kind| {
            let chain = "capture".to_owned();
            [Difference::Rule {
                chain,
                position,
                kind,
            }]
        };
        let missing = after_table(|t| drop(t.rules.remove(2)));
        assert_eq!(missing, rule(3, DifferenceKind::Missing));
        let accept_all = Rule {
            chain: "capture".to_owned(),
            exprs: vec![Expr::Verdict(Verdict::Accept)],
        };
        let unexpected = after_table(|t| t.rules.insert(0, accept_all.clone()));
        assert_eq!(unexpected, rule(1, DifferenceKind::Unexpected));
        let modified = after_table(|t| t.rules[1] = accept_all);
        assert_eq!(modified, rule(2, DifferenceKind::Modified));
    }

    #[test]
    fn a_missing_set_or_other_elements_are_a_difference() {
        let set = [Difference::Set("own4".to_owned())];
        assert_eq!(after_table(|t| drop(t.sets.remove(0))), set);
        assert_eq!(after_table(|t| t.sets[0].elements.clear()), set);
        let added = after_table(|t| {
            t.sets[0]
                .elements
                .push(Element::Address([10, 0, 0, 9].into()))
        });
        assert_eq!(added, set);
    }

    #[test]
    fn missing_and_unexpected_ip_rules_and_routes_are_differences() {
        let (rule, route) = (
            routed_state().rules.remove(1),
            routed_state().routes.remove(1),
        );
        let missing = Difference::PolicyRule(rule.clone(), DifferenceKind::Missing);
        assert_eq!(after(|s| drop(s.rules.remove(1))), [missing]);
        let unexpected = Difference::PolicyRule(rule.clone(), DifferenceKind::Unexpected);
        assert_eq!(after(|s| s.rules.push(rule)), [unexpected], "a duplicate");
        let missing = Difference::Route(route, DifferenceKind::Missing);
        assert_eq!(after(|s| s.routes.truncate(1)), [missing]);
        let other = LocalRoute {
            source: [10, 0, 0, 9].into(),
            ..route
        };
        let unexpected = Difference::Route(other, DifferenceKind::Unexpected);
        assert_eq!(after(|s| s.routes.push(other)), [unexpected]);
    }

    #[test]
    fn exceptions_are_no_difference_if_the_guard_has_them() {
        let connection = TcpConnection {
            local_port: 40000,
            peer: ([10, 0, 0, 2], 443).into(),
        };
        let exception = PolicyRule::exception_for(RulePriorities::default(), connection);
        let plan = plan(CaptureKind::Routed);
        let table = routed::table::table(&plan, &Exceptions::from([connection]));
        let consistent = after(|s| {
            s.table = Some(table);
            s.rules.push(exception.clone());
        });
        assert_eq!(consistent, []);
        let mut iptables = iptables_state();
        iptables.rules.push(exception.clone());
        let unexpected = Difference::PolicyRule(exception.clone(), DifferenceKind::Unexpected);
        assert_eq!(
            diff(&self::plan(CaptureKind::NatIptablesNft), &iptables),
            [unexpected],
            "no capture but routed has exceptions"
        );
        let without_guard = after(|s| s.rules.push(exception));
        let rule = Difference::Rule {
            chain: "guard".to_owned(),
            position: 6,
            kind: DifferenceKind::Missing,
        };
        let set = Difference::Set("open4".to_owned());
        assert_eq!(without_guard, [rule, set]);
    }

    #[test]
    fn exceptions_that_the_record_has_are_required_and_no_others_accepted() {
        let connections = [40_000, 40_001].map(|local_port| TcpConnection {
            local_port,
            peer: ([10, 0, 0, 2], 443).into(),
        });
        let [known, added] = connections.map(|c| Exceptions::from([c]));
        let plan = plan(CaptureKind::Routed);
        let mut state = routed_state();
        state.table = Some(routed::table::table(&plan, &added));
        let rules = connections.map(|c| PolicyRule::exception_for(plan.priorities, c));
        state.rules.push(rules[1].clone());
        assert_eq!(diff(&plan, &state), [], "without a record");
        let found = diff_with(&plan, &known, &state);
        let [missing, unexpected] = [DifferenceKind::Missing, DifferenceKind::Unexpected];
        let expected = [
            Difference::Set("open4".to_owned()),
            Difference::PolicyRule(rules[0].clone(), missing),
            Difference::PolicyRule(rules[1].clone(), unexpected),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn whatever_else_is_in_the_table_is_a_difference() {
        let unknown = after_table(|t| t.unknown.push("flag dormant".to_owned()));
        assert_eq!(unknown, [Difference::Unknown("flag dormant".to_owned())]);
        let set = after_table(|t| {
            let copy = t.sets[0].clone();
            let name = "another".to_owned();
            t.sets.push(Set { name, ..copy });
        });
        assert_eq!(set, [Difference::Set("another".to_owned())]);
    }

    #[test]
    fn iptables_rules_are_compared_per_table_and_family() {
        let xtables = |family, table: &str, kind| {
            let table = table.to_owned();
            [Difference::Xtables {
                family,
                table,
                kind,
            }]
        };
        let missing = after_iptables(|t| drop(t.remove(0)));
        assert_eq!(
            missing,
            xtables(IpFamily::V4, "mangle", DifferenceKind::Missing)
        );
        let modified = after_iptables(|t| t.last_mut().unwrap().rules.reverse());
        assert_eq!(
            modified,
            xtables(IpFamily::V6, "filter", DifferenceKind::Modified)
        );
        let unexpected = after_iptables(|t| {
            let raw = XtablesRules {
                table: "raw".to_owned(),
                ..t[0].clone()
            };
            t.push(raw);
        });
        assert_eq!(
            unexpected,
            xtables(IpFamily::V4, "raw", DifferenceKind::Unexpected)
        );
        let mut routed = routed_state();
        routed.xtables = iptables_state().xtables;
        let found = diff(&plan(CaptureKind::Routed), &routed);
        assert_eq!(found.len(), routed.xtables.len(), "{found:?}");
    }

    #[test]
    fn foreign_redirection_is_a_difference() {
        let foreign = ForeignRedirection::Table("istio-ambient-nat".to_owned());
        let found = after(|s| s.foreign.push(foreign.clone()));
        assert_eq!(found, [Difference::Foreign(foreign)]);
    }

    #[test]
    fn an_empty_namespace_lacks_everything() {
        let found = diff(&plan(CaptureKind::Routed), &ObservedState::default());
        let state = routed_state();
        assert_eq!(found.len(), 1 + state.rules.len() + state.routes.len());
    }
}
