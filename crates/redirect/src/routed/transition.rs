//! The intermediate tables under which a running pod joins and leaves the `routed` capture without
//! losing connections, neither open ones nor those being established.
//!
//! ip rules and the table cannot change atomically. Under these tables, packets between two steps
//! are either handled correctly or retransmitted.

use nft::{ChainKind, Hook, Table};

use super::table::{CAPTURE, guard, rerouted, table_with_guard, to_own_address};
use crate::driver::Exceptions;
use crate::plan::{Mark, Plan, RETURN_MARK};
use crate::return_path;
use crate::rule::{
    AddressField, DNS, FILTER, MANGLE, RuleSpec, TABLE_NAME, accept, accept_probes, chain, drop,
    from_lo, in_chain, marked, not_marked, not_syn, not_tcp, plan_sets, rule, set_ct_mark, syn,
    tcp, to_lo, to_loopback, to_remote_address, tproxy, udp_dport,
};

/// The conntrack mark of an unknown connection.
const NO_MARK: Mark = Mark {
    value: 0,
    ..RETURN_MARK
};

/// The chain that pauses new connections. Not called `guard`: if the agent is killed during a join,
/// the next one must not take open connections for captured.
const PAUSE: &str = "pause";

/// Builds the table of a running pod that is joining:
///
#[doc = concat!("```text\n", include_str!("joining.nft"), "```")]
///
/// While ip rules and table are incomplete, a new connection would be partly captured or refused.
/// Its SYN is dropped instead, and retransmitted a second later, when the rules are complete.
///
/// `rejoining` is set for a pod that was still leaving. With DNS capture:
///
#[doc = concat!("```text\n", include_str!("rejoining.nft"), "```")]
pub(crate) fn joining_table(plan: &Plan, rejoining: bool) -> Table {
    let mut inbound = Vec::new();
    if plan.dns {
        let query = [from_lo(), udp_dport(DNS), tproxy(plan.ports.dns), accept()];
        inbound.push(rule(query));
    }
    inbound.extend([
        rule([tcp(), not_syn(), accept()]),
        rule([marked(plan.mark), accept()]),
    ]);
    inbound.extend(to_loopback().map(|loopback| rule([loopback, accept()])));
    inbound.extend(to_own_address());
    inbound.extend(accept_probes(AddressField::Source));
    inbound.push(rule([tcp(), drop()]));
    let mut outbound = vec![
        rule([to_lo(), accept()]),
        rule([marked(plan.mark), accept()]),
        rule([not_tcp(), accept()]),
    ];
    outbound.extend(accept_probes(AddressField::Destination));
    outbound.push(rule([tcp(), syn(), drop()]));

    let (mut chains, mut rules) = if rejoining {
        return_path::chains_and_rules(plan)
    } else {
        Default::default()
    };
    chains.extend([
        chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, MANGLE),
        chain(PAUSE, ChainKind::Filter, Hook::Output, FILTER),
    ]);
    rules.extend(in_chain(CAPTURE, inbound));
    rules.extend(in_chain(PAUSE, outbound));
    Table {
        name: TABLE_NAME.to_owned(),
        chains,
        rules,
        sets: plan_sets(plan),
        unknown: Vec::new(),
    }
}

/// Builds the table of a pod that starts to leave, used until new connections are no longer
/// captured: the plan's table without capture over lo, with a guard that lets new connections pass,
/// and with the return path to the proxy in conntrack.
///
#[doc = concat!("```text\n", include_str!("stop_capturing.nft"), "```")]
pub(crate) fn stop_capturing_table(plan: &Plan, exceptions: &Exceptions) -> Table {
    let pass = [
        rule([marked(RETURN_MARK), accept()]),
        rule([tcp(), syn(), accept()]),
    ];
    let guard = guard(plan, exceptions).into_iter().filter(|r| !r.rejects());
    let mut table = table_with_guard(plan, exceptions, pass.into_iter().chain(guard));
    let (chains, rules) = return_path::chains_and_rules(plan);
    table.chains.extend(chains);
    table.rules.extend(rules);
    table.rules.splice(0..0, in_chain(CAPTURE, [late(plan)]));
    table
}

/// Drops the SYN of a connection that was routed to the proxy but arrives over lo only afterwards,
/// when the list of captured connections is final or the capture chain is gone, which would refuse
/// it. It is sent again a second later, uncaptured.
fn late(plan: &Plan) -> RuleSpec {
    rule([
        from_lo(),
        not_marked(plan.mark),
        to_remote_address(),
        tcp(),
        syn(),
        drop(),
    ])
}

/// Builds the table of a leaving pod, used while captured connections are open. It keeps the
/// application's replies to the proxy, which connects from the client's address, inside the pod: ip
/// rules cover connections that were open when the pod left, conntrack covers those that the proxy
/// opens afterwards for clients that it had accepted. With a rerouted interface:
///
#[doc = concat!("```text\n", include_str!("leaving.nft"), "```")]
pub(crate) fn leaving_table(plan: &Plan) -> Table {
    let (mut chains, return_rules) = return_path::chains_and_rules(plan);
    // Conntrack only sees packets while a pod joins or leaves. A stale entry, of a connection whose
    // close it did not see, must not affect a new connection.
    let forget = rule([not_marked(plan.mark), tcp(), syn(), set_ct_mark(NO_MARK)]);
    let mut rules = Vec::new();
    for rule in return_rules {
        rules.extend(in_chain(&rule.chain, [forget.clone()]));
        rules.push(rule);
    }
    rules.splice(0..0, in_chain(return_path::MARK_IN, [late(plan)]));
    if !plan.reroute_interfaces.is_empty() {
        chains.push(chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, MANGLE));
        rules.extend(in_chain(CAPTURE, rerouted(plan)));
    }
    Table {
        name: TABLE_NAME.to_owned(),
        chains,
        rules,
        sets: Vec::new(),
        unknown: Vec::new(),
    }
}
