//! Pods that run already join and leave the `routed` capture without losing a connection: neither one that is open, nor one
//! that is just being made.
//!
//! ip rules and the table cannot change at one moment. So each change has a table of its own for as long as it takes, with
//! which every packet that comes between two steps is right, or comes again.

use std::collections::BTreeSet;

use nft::{ChainKind, Hook, Table};

use crate::capture::{RedirectError, add, captured_here, delete, remove, replace_table, routing, rules, table_now};
use crate::nat;
use crate::plan::{Mark, Plan, RETURN_MARK};
use crate::routed::{CAPTURE, DNS, GUARD, chain, guard_rules, guarded, rerouted, rules_of_guard};
use crate::routing::PolicyRule;
use crate::rule::{
    End, accept, drop, from_interface, in_set, marked, not_marked, not_syn, not_tcp, reset, rule, set_ct_mark, sets,
    syn, tcp, to_lo, to_loopback, tproxy, udp_dport, unreachable,
};

/// As conntrack has it for a connection of which nothing is known.
const NO_MARK: Mark = Mark { value: 0, ..RETURN_MARK };

/// No guard: what was open when an agent was killed half way is not taken for captured by the next one.
const PAUSE: &str = "pause";

/// What a running pod has while it joins, `returning` if it had not quite left:
///
/// ```text
/// chain capture {
///   type filter hook prerouting priority mangle; policy accept;
///   iifname "lo" udp dport 53 tproxy to :15053 accept                           (with DNS)
///   tcp flags & (fin | syn | rst | ack) != syn accept
///   meta mark & 0xfff == 0x539 accept
///   ip daddr 127.0.0.0/8 accept
///   ip6 daddr ::1 accept
///   iifname "lo" ip daddr @own4 accept
///   iifname "lo" ip6 daddr @own6 accept
///   ip saddr @probe4 accept
///   ip6 saddr @probe6 accept
///   meta l4proto tcp drop
/// }
/// chain pause {
///   type filter hook output priority filter; policy accept;
///   oifname "lo" accept
///   meta mark & 0xfff == 0x539 accept
///   meta l4proto != tcp accept
///   ip daddr @probe4 accept
///   ip6 daddr @probe6 accept
///   tcp flags & (fin | syn | rst | ack) == syn drop
/// }
/// ```
///
/// Between two ip rules, and between them and the table, a new connection would be captured by half, or refused. Its SYN is
/// dropped; it is sent again a second later, when all is in place.
fn pausing_table(plan: &Plan, returning: bool) -> Table {
    let arriving = [
        vec![tcp(), not_syn(), accept()],
        vec![marked(plan.mark), accept()],
        vec![to_loopback(false), accept()],
        vec![to_loopback(true), accept()],
        vec![from_interface("lo"), in_set(false, End::Destination, "own4"), accept()],
        vec![from_interface("lo"), in_set(true, End::Destination, "own6"), accept()],
        vec![in_set(false, End::Source, "probe4"), accept()],
        vec![in_set(true, End::Source, "probe6"), accept()],
        vec![tcp(), drop()],
    ];
    let leaving = [
        vec![to_lo(), accept()],
        vec![marked(plan.mark), accept()],
        vec![not_tcp(), accept()],
        vec![in_set(false, End::Destination, "probe4"), accept()],
        vec![in_set(true, End::Destination, "probe6"), accept()],
        vec![tcp(), syn(), drop()],
    ];
    let asks = [vec![from_interface("lo"), udp_dport(DNS), tproxy(plan.ports.dns), accept()]];
    let (mut chains, mut rules) = if returning { nat::return_path(plan) } else { Default::default() };
    chains.extend([
        chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, -150),
        chain(PAUSE, ChainKind::Filter, Hook::Output, 0),
    ]);
    rules.extend(asks.iter().filter(|_| plan.dns).chain(&arriving).map(|parts| rule(CAPTURE, parts)));
    rules.extend(leaving.map(|parts| rule(PAUSE, &parts)));
    Table { chains, rules, sets: sets(plan) }
}

/// What a running pod has from the moment on when it begins to leave until nothing new is captured: the table as it was,
/// but that the guard lets new connections pass, and that conntrack knows the way back to the proxy.
fn closing_table<'e>(plan: &Plan, exceptions: impl IntoIterator<Item = &'e PolicyRule>) -> Table {
    let rules = guard_rules(plan, exceptions)
        .into_iter()
        .filter(|r| !r.ends_with(&[reset()]) && !r.ends_with(&[unreachable()]));
    let pass = [vec![marked(RETURN_MARK), accept()], vec![tcp(), syn(), accept()]];
    let mut table = guarded(plan, rules_of_guard(pass.into_iter().chain(rules)));
    let (chains, rules) = nat::return_path(plan);
    table.chains.extend(chains);
    table.rules.extend(rules);
    table
}

/// What a pod that has left has for as long as connections that were captured go on: what the application answers to the
/// proxy that has connected in a client's name stays here. The ip rules know those that were open when it left; conntrack
/// knows those that the proxy makes for what it had accepted by then.
///
/// ```text
/// chain mark-in {
///   type filter hook prerouting priority mangle; policy accept;
///   meta mark & 0xfff != 0x539 tcp flags & (fin | syn | rst | ack) == syn ct mark set 0
///   meta mark & 0xfff == 0x539 ct mark set 0x111
/// }
/// chain mark-out {
///   type route hook output priority mangle; policy accept;
///   meta mark & 0xfff != 0x539 tcp flags & (fin | syn | rst | ack) == syn ct mark set 0
///   meta mark & 0xfff != 0x539 ct mark & 0xfff == 0x111 meta mark set 0x111
/// }
/// chain capture {                                                               (for each rerouted interface)
///   type filter hook prerouting priority mangle; policy accept;
///   iifname IF socket transparent 1 meta mark set 0x111 accept
/// }
/// ```
fn leaving_table(plan: &Plan) -> Table {
    let (mut chains, mut rules) = nat::return_path(plan);
    // Conntrack sees only what comes while a pod joins or leaves: what it remembers of a connection that closed unseen must
    // not lead another astray.
    for chain in [nat::MARK_IN, nat::MARK_OUT] {
        rules.insert(0, rule(chain, &[not_marked(plan.mark), tcp(), syn(), set_ct_mark(NO_MARK)]));
    }
    if !plan.reroute_interfaces.is_empty() {
        chains.push(chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, -150));
        rules.extend(rerouted(plan).map(|parts| rule(CAPTURE, &parts)));
    }
    Table { chains, rules, sets: Vec::new() }
}

/// From now on no connection begins, until the table of the plan is written.
pub(crate) fn pause(plan: &Plan, observed: &[PolicyRule]) -> Result<(), RedirectError> {
    let returning = nat::policy_rules(plan).iter().any(|r| observed.contains(r));
    replace_table(&pausing_table(plan, returning))
}

/// Nothing new is captured from now on. Returns how many connections are.
pub(crate) fn leave(plan: &Plan, lingers: bool) -> Result<usize, RedirectError> {
    let routing = routing()?;
    let (observed, way_back) = (rules(&routing)?, nat::policy_rules(plan));
    // A packet that the table marks is routed by its mark alone.
    add(&routing, &way_back)?;
    let is_capturing = observed.iter().any(PolicyRule::captures);
    if is_capturing || table_now()?.is_some_and(|t| t.chains.iter().any(|c| c.name == GUARD)) {
        replace_table(&closing_table(plan, observed.iter().filter(|r| r.is_connection_exception())))?;
        add(&routing, &of_connections(plan)?)?;
        for rule in observed.iter().filter(|r| r.captures()) {
            delete(&routing, rule)?;
        }
    }
    // Nothing new is captured, so this is all.
    let captured = of_connections(plan)?;
    if captured.is_empty() && !lingers {
        remove()?;
        return Ok(0);
    }
    add(&routing, &captured)?;
    let stay: BTreeSet<&PolicyRule> = captured.iter().chain(&way_back).collect();
    for rule in rules(&routing)?.iter().filter(|r| !stay.contains(r)) {
        delete(&routing, rule)?;
    }
    let table = leaving_table(plan);
    if table_now()?.as_ref() != Some(&table) {
        replace_table(&table)?;
    }
    Ok(captured.len())
}

/// What keeps connections captured that are.
fn of_connections(plan: &Plan) -> Result<Vec<PolicyRule>, RedirectError> {
    Ok(captured_here(plan)?.into_iter().map(|c| PolicyRule::captured(c, plan.table)).collect())
}
