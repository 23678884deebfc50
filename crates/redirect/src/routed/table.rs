//! The `routed` capture as data: renders a plan as nf_tables objects, ip rules and routes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nft::{ChainKind, Element, Hook, IpFamily, Rule, Set, SetKey, Table};

use crate::driver::Exceptions;
use crate::local_route::LocalRoute;
use crate::plan::{Plan, RETURN_MARK};
use crate::policy_rule::{PolicyRule, Transport};
use crate::rule::{
    AddressField, DNS, FILTER, MANGLE, OWN, RuleSpec, TABLE_NAME, accept, accept_probes,
    accept_proxy, chain, count, ct_marked, drop, from_interface, from_lo, in_chain,
    in_connection_set, in_set, inbound_exclusions, marked, not_syn, not_tcp, outbound_exclusions,
    plan_sets, reset, rst, rule, set, set_ct_mark, set_exact_mark, set_mark, set_name, syn, tcp,
    tcp_dport, to_lo, to_loopback, to_probe_destination, to_remote_address, to_transparent_socket,
    tproxy, udp_dport, unreachable, within_bridges,
};
use crate::sockets::TcpConnection;

pub(crate) const CAPTURE: &str = "capture";
pub(crate) const GUARD: &str = "guard";
const EXCLUDE: &str = "exclude";
/// The sets of connections that were open before the pod joined, if there are any: `open4` and
/// `open6`.
const OPEN: &str = "open";

/// Renders the nf_tables part of a plan; `own4` and `own6` contain the pod's addresses, `probe4`
/// and `probe6` the probe sources:
///
#[doc = concat!("```text\n", include_str!("default.nft"), "```")]
///
/// With DNS capture, exclusions, a rerouted interface, and connections that were open before:
///
#[doc = concat!("```text\n", include_str!("all_options.nft"), "```")]
///
/// If plaintext connections to the pod bypass the proxy, the last rules of `capture` differ:
///
#[doc = concat!("```text\n", include_str!("bypass_inbound.nft"), "```")]
///
/// The guard drops packets of captured connections that would leave the pod because an ip rule is
/// missing; the sender retransmits, and continues when the rule is restored. Resets pass: they
/// carry no data and may be the kernel's reply.
pub(crate) fn table(plan: &Plan, exceptions: &Exceptions) -> Table {
    table_with_guard(plan, exceptions, guard(plan, exceptions))
}

pub(crate) fn table_with_guard(
    plan: &Plan,
    exceptions: &Exceptions,
    guard: impl IntoIterator<Item = RuleSpec>,
) -> Table {
    let mut rules: Vec<Rule> = in_chain(CAPTURE, capture(plan)).collect();
    let mut chains = vec![chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, MANGLE)];
    if tracks_connections(plan) {
        chains.push(chain(EXCLUDE, ChainKind::Route, Hook::Output, MANGLE));
        rules.extend(in_chain(EXCLUDE, exclude(plan)));
    }
    chains.push(chain(GUARD, ChainKind::Filter, Hook::Output, FILTER));
    rules.extend(in_chain(GUARD, guard));
    Table {
        name: TABLE_NAME.to_owned(),
        chains,
        rules,
        sets: plan_sets(plan)
            .into_iter()
            .chain(open(exceptions))
            .collect(),
        unknown: Vec::new(),
    }
}

/// Whether the plan has exclusions, which require conntrack.
fn tracks_connections(plan: &Plan) -> bool {
    plan.bypass_inbound || !plan.exclude.is_empty()
}

fn capture(plan: &Plan) -> Vec<RuleSpec> {
    let ports = plan.ports;
    let mut rules: Vec<RuleSpec> = Vec::new();
    // Every packet traverses this chain, so the rules for most packets come first.
    rules.extend(rerouted(plan));
    rules.push(rule([tcp(), not_syn(), accept()]));
    if !plan.dns {
        rules.push(rule([not_tcp(), accept()]));
    }
    rules.push(rule([marked(plan.mark), accept()]));
    rules.extend(to_loopback().map(|loopback| rule([from_lo(), loopback, accept()])));
    rules.extend(to_own_address());
    if plan.dns {
        rules.extend([
            rule([from_lo(), udp_dport(DNS), tproxy(ports.dns), accept()]),
            rule([from_lo(), udp_dport(DNS), unreachable()]),
            rule([not_tcp(), accept()]),
            rule([from_lo(), tcp_dport(DNS), tproxy(ports.dns), accept()]),
            rule([from_lo(), tcp_dport(DNS), reset()]),
        ]);
    }
    rules.push(rule([from_lo(), tcp(), tproxy(ports.outbound), accept()]));
    rules.push(rule([from_lo(), tcp(), reset()]));
    rules.extend(within_bridges(plan));
    for interface in &plan.reroute_interfaces {
        let came_in = from_interface(interface.as_str());
        rules.push(rule([
            came_in.clone(),
            tcp(),
            set_mark(RETURN_MARK),
            tproxy(ports.outbound),
            accept(),
        ]));
        rules.push(rule([came_in, tcp(), reset()]));
    }
    rules.extend(accept_probes(AddressField::Source));
    // Refuse what the pod would forward: only the SYN would be captured, the rest forwarded.
    rules.push(rule([to_remote_address(), tcp(), reset()]));
    rules.push(rule([tcp_dport(ports.hbone), accept()]));
    let excluded = inbound_exclusions(plan);
    rules.extend(excluded.map(|excluded| rule([excluded, set_ct_mark(plan.mark), accept()])));
    if plan.bypass_inbound {
        rules.push(rule([tcp(), set_ct_mark(plan.mark), accept()]));
    } else {
        rules.push(rule([tcp(), tproxy(ports.inbound), accept()]));
        rules.push(rule([tcp(), reset()]));
    }
    rules
}

/// Rules for packets from the pod to itself, which are not captured.
pub(crate) fn to_own_address() -> [RuleSpec; 2] {
    IpFamily::ALL.map(|family| {
        let own = in_set(AddressField::Destination, OWN, family);
        rule([from_lo(), own, accept()])
    })
}

/// Rules for packets of connections that came in by a rerouted interface and are treated as
/// outbound.
pub(crate) fn rerouted(plan: &Plan) -> impl Iterator<Item = RuleSpec> + '_ {
    plan.reroute_interfaces.iter().map(|interface| {
        rule([
            from_interface(interface.as_str()),
            tcp(),
            to_transparent_socket(),
            set_mark(RETURN_MARK),
            accept(),
        ])
    })
}

fn exclude(plan: &Plan) -> impl Iterator<Item = RuleSpec> + '_ {
    let known = [
        rule([marked(plan.mark), accept()]),
        rule([ct_marked(plan.mark), set_exact_mark(plan.mark), accept()]),
    ];
    let new = outbound_exclusions(plan).map(|excluded| {
        let (connection, packet) = (set_ct_mark(plan.mark), set_exact_mark(plan.mark));
        rule([excluded, syn(), connection, packet, accept()])
    });
    let probes = to_probe_destination(plan).map(|probe| rule([probe, accept()]));
    known.into_iter().chain(probes).chain(new)
}

pub(crate) fn guard(plan: &Plan, exceptions: &Exceptions) -> Vec<RuleSpec> {
    let mut rules = vec![rule([to_lo(), accept()])];
    if plan.proxy_user.is_some() && tracks_connections(plan) {
        // Packets of excluded connections have the proxy's mark.
        rules.push(rule([ct_marked(plan.mark), accept()]));
    }
    rules.extend(accept_proxy(plan));
    if plan.dns {
        rules.push(rule([udp_dport(DNS), count(), unreachable()]));
    }
    rules.push(rule([not_tcp(), accept()]));
    rules.extend(accept_probes(AddressField::Destination));
    rules.extend(open(exceptions).map(|set| {
        let family = set.key.family();
        rule([in_connection_set(OPEN, family), accept()])
    }));
    rules.push(rule([tcp(), rst(), accept()]));
    rules.push(rule([tcp(), syn(), count(), reset()]));
    rules.push(rule([tcp(), count(), drop()]));
    rules
}

/// Builds the sets of the connections that were open before the pod joined, one for each family
/// that has any. Every packet that the guard blocks otherwise is looked up, so a set takes the same
/// time for any number of connections.
fn open(exceptions: &Exceptions) -> impl Iterator<Item = Set> {
    let of_family = |family| {
        let connections = exceptions.iter().copied();
        let of_family = connections.filter(move |c| IpFamily::of(c.peer.ip()) == family);
        let elements = of_family.map(packets_of);
        set(set_name(OPEN, family), SetKey::Connection(family), elements)
    };
    let sets = IpFamily::ALL.map(of_family).into_iter();
    sets.filter(|set| !set.elements.is_empty())
}

/// The packets that the pod sends on a connection.
fn packets_of(connection: TcpConnection) -> Element {
    Element::Connection {
        peer: connection.peer.ip(),
        source_port: connection.local_port,
        destination_port: connection.peer.port(),
    }
}

/// Renders the policy routing rules of a plan, without the exceptions for open connections; with
/// DNS capture and a rerouted interface:
///
#[doc = concat!("```text\n", include_str!("all_options.rules"), "```")]
pub(crate) fn policy_rules(plan: &Plan) -> Vec<PolicyRule> {
    let (mut out, at) = (Vec::new(), plan.priorities);
    for family in plan.families() {
        let of_family = |a: &&IpAddr| IpFamily::of(**a) == family;
        let probes = plan.probe_sources.iter().filter(of_family);
        out.extend(probes.map(|to| PolicyRule::exception_to(at, *to)));
        out.push(PolicyRule::for_proxy(at, family, plan.mark));
        let capture =
            |transport, port| PolicyRule::capture(at, family, transport, port, plan.table);
        out.push(capture(Transport::Tcp, None));
        if plan.dns {
            out.push(capture(Transport::Udp, Some(DNS)));
        }
        let rerouted = plan.reroute_interfaces.iter();
        out.extend(
            rerouted.map(|i| PolicyRule::reroute(at, family, i.as_str(), RETURN_MARK, plan.table)),
        );
        out.extend(at.has_resume().then(|| PolicyRule::resume(at, family)));
    }
    out
}

/// How many networks have a route of their own.
const MAX_NETWORKS: usize = 64;

/// Renders the routes of a plan: `local default dev lo src POD_IP table 15001`, one per family, and
/// `local NETWORK dev lo src ADDRESS table 15001` for networks in which the pod has another
/// address.
///
/// Without `src` the kernel would use the destination as the source address of the pod's
/// connections.
pub(crate) fn routes(plan: &Plan) -> Vec<LocalRoute> {
    let first = |family| {
        let mut addresses = plan.addresses.iter().copied();
        addresses.find(|a| IpFamily::of(*a) == family)
    };
    let table = plan.table;
    let route = |source, to| LocalRoute { source, to, table };
    let mut routes: Vec<LocalRoute> = Vec::new();
    for default in plan.families().filter_map(first) {
        routes.push(route(default, None));
        let family = IpFamily::of(default);
        let networks = plan.networks.iter().map(|n| n.address);
        let networks = networks.filter(|n| IpFamily::of(n.addr()) == family);
        let of_default = networks.clone().filter(|n| n.addr() == default);
        let mut known: BTreeSet<IpNet> = of_default.map(|n| n.trunc()).collect();
        let others = networks.filter(|n| n.prefix_len() < n.max_prefix_len());
        let others = others.filter(|n| known.insert(n.trunc()));
        routes.extend(
            others
                .take(MAX_NETWORKS)
                .map(|n| route(n.addr(), Some(n.trunc()))),
        );
    }
    routes
}
