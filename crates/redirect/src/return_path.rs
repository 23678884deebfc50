//! The return path: keeps the application's replies to the proxy in the pod, by conntrack. The
//! proxy connects from the client's address, so only the mark of the connection distinguishes them
//! from replies to clients.

use nft::{Chain, ChainKind, Hook, Rule};

use crate::plan::{Plan, RETURN_MARK};
use crate::policy_rule::PolicyRule;
use crate::rule::{
    MANGLE, chain, ct_marked, in_chain, marked, not_marked, rule, set_ct_mark, set_mark,
};

pub(crate) const MARK_IN: &str = "mark-in";
const MARK_OUT: &str = "mark-out";

/// Renders the chains and rules that mark the application's replies to the proxy.
pub(crate) fn chains_and_rules(plan: &Plan) -> (Vec<Chain>, Vec<Rule>) {
    let chains = vec![
        chain(MARK_IN, ChainKind::Filter, Hook::Prerouting, MANGLE),
        chain(MARK_OUT, ChainKind::Route, Hook::Output, MANGLE),
    ];
    let remember = rule([marked(plan.mark), set_ct_mark(RETURN_MARK)]);
    let restore = rule([
        not_marked(plan.mark),
        ct_marked(RETURN_MARK),
        set_mark(RETURN_MARK),
    ]);
    let rules = in_chain(MARK_IN, [remember]).chain(in_chain(MARK_OUT, [restore]));
    (chains, rules.collect())
}

/// Renders the ip rules for marked replies: `fwmark 0x111/0xfff lookup 15001`, one per family.
pub(crate) fn policy_rules(plan: &Plan) -> Vec<PolicyRule> {
    let at = plan.priorities;
    let rule = |family| PolicyRule::return_path(at, family, RETURN_MARK, plan.table);
    plan.families().map(rule).collect()
}
