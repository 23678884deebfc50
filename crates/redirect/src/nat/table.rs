//! The `nat` capture as data: renders a plan as nf_tables objects and routes.

use nft::{ChainKind, Hook, Rule, Table};

use crate::local_route::LocalRoute;
use crate::plan::Plan;
use crate::return_path;
use crate::rule::{
    AddressField, BEFORE_DSTNAT, DNS, FILTER, RAW, RuleSpec, TABLE_NAME, accept, accept_probes,
    accept_proxy, chain, count, from_interface, from_lo, in_chain, inbound_exclusions, marked,
    not_syn, not_tcp, outbound_exclusions, plan_sets, redirect, reset, rule, sent_again,
    set_ct_zone, syn, tcp, tcp_dport, to_lo, to_loopback, to_probe_destination,
    to_socket_with_mark, udp_dport, udp_sport, unreachable, within_bridges,
};

/// The conntrack zone of the proxy's own DNS queries.
const DNS_ZONE: u16 = 1;

const ZONE_IN: &str = "zone-in";
const ZONE_OUT: &str = "zone-out";
const NAT_IN: &str = "nat-in";
const NAT_OUT: &str = "nat-out";
const GUARD: &str = "guard";

/// Renders the nf_tables part of a plan:
///
#[doc = concat!("```text\n", include_str!("default.nft"), "```")]
///
/// With DNS capture, exclusions and a rerouted interface:
///
#[doc = concat!("```text\n", include_str!("all_options.nft"), "```")]
///
/// If plaintext connections to the pod bypass the proxy, `nat-in` lacks its last rule.
pub(crate) fn table(plan: &Plan) -> Table {
    let mut chains = Vec::new();
    let mut rules: Vec<Rule> = Vec::new();
    if plan.dns {
        chains.push(chain(ZONE_OUT, ChainKind::Filter, Hook::Output, RAW));
        chains.push(chain(ZONE_IN, ChainKind::Filter, Hook::Prerouting, RAW));
        let queries = [udp_dport(DNS), marked(plan.mark), set_ct_zone(DNS_ZONE)];
        let (of_proxy, zone) = (to_socket_with_mark(plan.mark), set_ct_zone(DNS_ZONE));
        rules.extend(in_chain(ZONE_OUT, [rule(queries)]));
        rules.extend(in_chain(ZONE_IN, [rule([udp_sport(DNS), of_proxy, zone])]));
    }
    let (return_chains, return_rules) = return_path::chains_and_rules(plan);
    chains.extend(return_chains);
    chains.extend([
        chain(NAT_IN, ChainKind::Nat, Hook::Prerouting, BEFORE_DSTNAT),
        chain(NAT_OUT, ChainKind::Nat, Hook::Output, BEFORE_DSTNAT),
        chain(GUARD, ChainKind::Filter, Hook::Output, FILTER),
    ]);
    rules.extend(return_rules);
    rules.extend(in_chain(NAT_IN, inbound(plan)));
    rules.extend(in_chain(NAT_OUT, outbound(plan)));
    rules.extend(in_chain(GUARD, guard(plan)));
    Table {
        name: TABLE_NAME.to_owned(),
        chains,
        rules,
        sets: plan_sets(plan),
        unknown: Vec::new(),
    }
}

fn inbound(plan: &Plan) -> Vec<RuleSpec> {
    let mut rules = vec![
        rule([from_lo(), accept()]),
        rule([not_tcp(), accept()]),
        rule([tcp(), not_syn(), accept()]),
    ];
    rules.extend(within_bridges(plan));
    for interface in &plan.reroute_interfaces {
        let came_in = from_interface(interface.as_str());
        rules.push(rule([came_in, tcp(), redirect(plan.ports.outbound)]));
    }
    rules.extend(accept_probes(AddressField::Source));
    rules.push(rule([tcp_dport(plan.ports.hbone), accept()]));
    rules.extend(inbound_exclusions(plan).map(|excluded| rule([excluded, accept()])));
    if !plan.bypass_inbound {
        rules.push(rule([tcp(), redirect(plan.ports.inbound)]));
    }
    rules
}

fn outbound(plan: &Plan) -> Vec<RuleSpec> {
    let mut rules = vec![
        rule([to_lo(), accept()]),
        rule([marked(plan.mark), accept()]),
    ];
    if plan.dns {
        rules.push(rule([udp_dport(DNS), redirect(plan.ports.dns)]));
    }
    rules.push(rule([not_tcp(), accept()]));
    rules.push(rule([tcp(), not_syn(), accept()]));
    if plan.dns {
        rules.push(rule([tcp_dport(DNS), redirect(plan.ports.dns)]));
    }
    let probes = to_probe_destination(plan);
    rules.extend(probes.map(|probe| rule([probe, redirect(plan.ports.outbound)])));
    rules.extend(outbound_exceptions(plan));
    rules.push(rule([tcp(), redirect(plan.ports.outbound)]));
    rules
}

fn guard(plan: &Plan) -> Vec<RuleSpec> {
    let mut rules = vec![rule([to_lo(), accept()])];
    // A redirected packet is rerouted, but still has its old output interface in this hook.
    rules.extend(to_loopback().map(|loopback| rule([loopback, accept()])));
    rules.extend(accept_proxy(plan));
    if plan.dns {
        rules.push(rule([udp_dport(DNS), count(), unreachable()]));
    }
    rules.push(rule([not_tcp(), accept()]));
    rules.push(rule([tcp(), not_syn(), accept()]));
    rules.extend(to_probe_destination(plan).map(|probe| rule([probe, reset()])));
    rules.extend(outbound_exceptions(plan));
    // The first SYN left before the pod joined, so conntrack does not redirect the others.
    rules.push(rule([sent_again(), accept()]));
    rules.push(rule([tcp(), syn(), count(), reset()]));
    rules
}

/// Rules for outbound connections that are not redirected.
fn outbound_exceptions(plan: &Plan) -> impl Iterator<Item = RuleSpec> + '_ {
    outbound_exclusions(plan)
        .map(|excluded| rule([excluded, accept()]))
        .chain(accept_probes(AddressField::Destination))
}

/// Renders the table of a running pod that is joining: the plan's table without the guard, which
/// would refuse a connection whose SYN passed the other chains just before the table was written:
///
#[doc = concat!("```text\n", include_str!("joining.nft"), "```")]
pub(crate) fn joining_table(plan: &Plan) -> Table {
    let mut table = table(plan);
    table.chains.retain(|c| c.name != GUARD);
    table.rules.retain(|r| r.chain != GUARD);
    table
}

/// Renders the table of a leaving pod, used while captured connections are open: the chains that
/// conntrack needs for them, without rules that would capture new ones. With DNS capture:
///
#[doc = concat!("```text\n", include_str!("leaving.nft"), "```")]
pub(crate) fn leaving_table(plan: &Plan) -> Table {
    let mut table = joining_table(plan);
    table
        .rules
        .retain(|r| ![NAT_IN, NAT_OUT].contains(&r.chain.as_str()));
    table.sets.clear();
    table
}

/// Renders the routes of a plan: `local default dev lo table 15001`, one per family.
pub(crate) fn routes(plan: &Plan) -> Vec<LocalRoute> {
    let route = |family| LocalRoute::without_source(family, plan.table);
    plan.families().map(route).collect()
}
