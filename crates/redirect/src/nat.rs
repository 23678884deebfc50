//! The `nat` capture, as data: what istio-cni installs, with its known defects put right, and a guard.
//!
//! The first packet of a connection is redirected to the proxy, and conntrack remembers. Against istio-cni: DNS replies
//! are put into their own conntrack zone by the socket that they are for, so that forwarded DNS is left alone; all of
//! loopback is left alone, for TCP as for UDP; a connection that was open before conntrack was there is never taken for
//! a new one; and a guard refuses what should have been redirected and was not.

use nft::{Chain, ChainKind, Expr, Hook, Rule, Table};

use crate::plan::{Plan, RETURN_MARK};
use crate::routed::{PREF_CAPTURE, families};
use crate::routing::{LocalRoute, PolicyRule};
use crate::rule::{
    End, accept, ct_marked, for_socket_marked, from_interface, in_set, inbound_exclusions, marked, not_marked, not_syn,
    not_tcp, outbound_exclusions, redirect, reset, rule, set_ct_mark, set_mark, sets, syn, tcp, tcp_dport, to_lo,
    to_loopback, udp_dport, udp_sport, unreachable,
};

const DNS: u16 = 53;
/// The conntrack zone of the proxy's own DNS queries.
const DNS_ZONE: u16 = 1;

const ZONE_IN: &str = "zone-in";
const ZONE_OUT: &str = "zone-out";
pub(crate) const MARK_IN: &str = "mark-in";
pub(crate) const MARK_OUT: &str = "mark-out";
const NAT_IN: &str = "nat-in";
const NAT_OUT: &str = "nat-out";
const GUARD: &str = "guard";

/// The nf_tables half of a plan:
///
/// ```text
/// table inet underpass {
///   chain zone-out {                                                            (with DNS, as the next)
///     type filter hook output priority raw; policy accept;
///     udp dport 53 meta mark & 0xfff == 0x539 ct zone set 1
///   }
///   chain zone-in {
///     type filter hook prerouting priority raw; policy accept;
///     udp sport 53 socket mark & 0xfff == 0x539 ct zone set 1
///   }
///   chain mark-in {
///     type filter hook prerouting priority mangle; policy accept;
///     meta mark & 0xfff == 0x539 ct mark set 0x111
///   }
///   chain mark-out {
///     type route hook output priority mangle; policy accept;
///     meta mark & 0xfff != 0x539 ct mark & 0xfff == 0x111 meta mark set 0x111
///   }
///   chain nat-in {
///     type nat hook prerouting priority dstnat; policy accept;
///     iifname "lo" accept
///     meta l4proto != tcp accept
///     tcp flags & (fin | syn | rst | ack) != syn accept
///     iifname IF meta l4proto tcp redirect to :15001                            (for each rerouted interface)
///     ip saddr @probe4 accept
///     ip6 saddr @probe6 accept
///     tcp dport 15008 accept
///     tcp dport PORT accept                                                     (for each inbound exclusion)
///     meta l4proto tcp redirect to :15006                                       (unless inbound is bypassed)
///   }
///   chain nat-out {
///     type nat hook output priority -100; policy accept;
///     oifname "lo" accept
///     meta mark & 0xfff == 0x539 accept
///     udp dport 53 redirect to :15053                                           (with DNS)
///     meta l4proto != tcp accept
///     tcp flags & (fin | syn | rst | ack) != syn accept
///     tcp dport 53 redirect to :15053                                           (with DNS)
///     tcp dport PORT accept                                                     (for each outbound exclusion)
///     ip daddr @probe4 accept
///     ip6 daddr @probe6 accept
///     meta l4proto tcp redirect to :15001
///   }
///   chain guard {
///     type filter hook output priority filter; policy accept;
///     oifname "lo" accept
///     ip daddr 127.0.0.0/8 accept                                               (what has been redirected)
///     ip6 daddr ::1 accept
///     meta mark & 0xfff == 0x539 accept
///     udp dport 53 counter reject with icmpx port-unreachable                   (with DNS)
///     meta l4proto != tcp accept
///     tcp flags & (fin | syn | rst | ack) != syn accept
///     tcp dport PORT accept                                                     (for each outbound exclusion)
///     ip daddr @probe4 accept
///     ip6 daddr @probe6 accept
///     meta l4proto tcp counter reject with tcp reset
///   }
/// }
/// ```
pub(crate) fn table(plan: &Plan) -> Table {
    let mut chains = Vec::new();
    let mut rules = Vec::new();
    if plan.dns {
        chains.push(chain(ZONE_OUT, ChainKind::Filter, Hook::Output, -300));
        chains.push(chain(ZONE_IN, ChainKind::Filter, Hook::Prerouting, -300));
        let zone = || Expr::set_ct_zone(DNS_ZONE).to_vec();
        rules.push(rule(ZONE_OUT, &[udp_dport(DNS), marked(plan.mark), zone()]));
        rules.push(rule(ZONE_IN, &[udp_sport(DNS), for_socket_marked(plan.mark), zone()]));
    }
    let (mark_chains, mark_rules) = return_path(plan);
    chains.extend(mark_chains);
    chains.extend([
        chain(NAT_IN, ChainKind::Nat, Hook::Prerouting, -100),
        chain(NAT_OUT, ChainKind::Nat, Hook::Output, -100),
        chain(GUARD, ChainKind::Filter, Hook::Output, 0),
    ]);
    rules.extend(mark_rules);
    rules.extend(inbound(plan));
    rules.extend(outbound(plan));
    rules.extend(guard(plan));
    Table { chains, rules, sets: sets(plan) }
}

/// What the application answers to the proxy that has connected in a client's name is marked.
pub(crate) fn return_path(plan: &Plan) -> (Vec<Chain>, Vec<Rule>) {
    let chains = vec![
        chain(MARK_IN, ChainKind::Filter, Hook::Prerouting, -150),
        chain(MARK_OUT, ChainKind::Route, Hook::Output, -150),
    ];
    let rules = vec![
        rule(MARK_IN, &[marked(plan.mark), set_ct_mark(RETURN_MARK)]),
        rule(MARK_OUT, &[not_marked(plan.mark), ct_marked(RETURN_MARK), set_mark(RETURN_MARK)]),
    ];
    (chains, rules)
}

fn chain(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    Chain { name: name.to_owned(), kind, hook, priority }
}

fn inbound(plan: &Plan) -> Vec<Rule> {
    let mut rules: Vec<Vec<Vec<Expr>>> =
        vec![vec![from_interface("lo"), accept()], vec![not_tcp(), accept()], vec![tcp(), not_syn(), accept()]];
    for interface in &plan.reroute_interfaces {
        rules.push(vec![from_interface(interface.as_str()), tcp(), redirect(plan.ports.outbound)]);
    }
    rules.push(vec![in_set(false, End::Source, "probe4"), accept()]);
    rules.push(vec![in_set(true, End::Source, "probe6"), accept()]);
    rules.push(vec![tcp_dport(plan.ports.hbone), accept()]);
    rules.extend(inbound_exclusions(plan).into_iter().map(|excluded| vec![excluded, accept()]));
    if !plan.bypass_inbound {
        rules.push(vec![tcp(), redirect(plan.ports.inbound)]);
    }
    rules.into_iter().map(|parts| rule(NAT_IN, &parts)).collect()
}

fn outbound(plan: &Plan) -> Vec<Rule> {
    let mut rules = vec![vec![to_lo(), accept()], vec![marked(plan.mark), accept()]];
    if plan.dns {
        rules.push(vec![udp_dport(DNS), redirect(plan.ports.dns)]);
    }
    rules.push(vec![not_tcp(), accept()]);
    rules.push(vec![tcp(), not_syn(), accept()]);
    if plan.dns {
        rules.push(vec![tcp_dport(DNS), redirect(plan.ports.dns)]);
    }
    rules.extend(left_alone(plan));
    rules.push(vec![tcp(), redirect(plan.ports.outbound)]);
    rules.into_iter().map(|parts| rule(NAT_OUT, &parts)).collect()
}

fn guard(plan: &Plan) -> Vec<Rule> {
    // A redirected packet is routed again, but within this hook it still has the interface that it would have left by.
    let mut rules = vec![
        vec![to_lo(), accept()],
        vec![to_loopback(false), accept()],
        vec![to_loopback(true), accept()],
        vec![marked(plan.mark), accept()],
    ];
    if plan.dns {
        rules.push(vec![udp_dport(DNS), vec![Expr::Counter], unreachable()]);
    }
    rules.push(vec![not_tcp(), accept()]);
    rules.push(vec![tcp(), not_syn(), accept()]);
    rules.extend(left_alone(plan));
    rules.push(vec![tcp(), syn(), vec![Expr::Counter], reset()]);
    rules.into_iter().map(|parts| rule(GUARD, &parts)).collect()
}

/// Connections of the pod that are not redirected.
fn left_alone(plan: &Plan) -> Vec<Vec<Vec<Expr>>> {
    let mut rules: Vec<Vec<Vec<Expr>>> =
        outbound_exclusions(plan).into_iter().map(|excluded| vec![excluded, accept()]).collect();
    rules.push(vec![in_set(false, End::Destination, "probe4"), accept()]);
    rules.push(vec![in_set(true, End::Destination, "probe6"), accept()]);
    rules
}

/// What is left while connections that were captured go on after the pod has left: conntrack, which translates them and
/// knows those of the proxy to the application, and nothing that would take in another.
pub(crate) fn leaving_table(plan: &Plan) -> Table {
    let full = table(plan);
    let stays = |name: &str| ![GUARD, NAT_IN, NAT_OUT].contains(&name);
    Table {
        chains: full.chains.into_iter().filter(|c| c.name != GUARD).collect(),
        rules: full.rules.into_iter().filter(|r| stays(&r.chain)).collect(),
        sets: Vec::new(),
    }
}

/// The policy routing of a plan: what the application answers to the proxy that connected in a client's name stays here.
///
/// ```text
/// 32764: from all fwmark 0x111/0xfff lookup 100
/// ```
pub(crate) fn policy_rules(plan: &Plan) -> Vec<PolicyRule> {
    let stay = |v6| PolicyRule { priority: PREF_CAPTURE, table: plan.table, ..PolicyRule::for_mark(v6, RETURN_MARK) };
    families(plan).map(stay).collect()
}

/// The routes of a plan: `local default dev lo table 100`, one for each family.
pub(crate) fn routes(plan: &Plan) -> Vec<LocalRoute> {
    families(plan).map(|v6| LocalRoute::without_source(v6, plan.table)).collect()
}
