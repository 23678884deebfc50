//! The `routed` capture, as data: which nf_tables objects, ip rules and routes a plan stands for.
//!
//! TCP of the pod's own sockets is routed back over lo by an ip rule and a local route; its SYN meets a tproxy rule there
//! and is accepted by the proxy's transparent listener, whose accepted socket has the original destination as its own
//! address. No NAT, no conntrack. The guard lets no TCP of the pod leave some other way: not when an ip rule is missing,
//! not from a socket bound to a device, and not in a family that the plan does not cover.
//!
//! Only exclusions need conntrack, and only pods that have some: the answers of an application to a client that is left
//! alone look like those to the proxy that connects in a client's name.

use nft::{Chain, ChainKind, Expr, Hook, Payload, Rule, Table};

use crate::plan::{Plan, RETURN_MARK};
use crate::routing::{LocalRoute, PolicyRule, Transport};
use crate::rule::{
    End, accept, count_and_drop, ct_marked, for_elsewhere, for_transparent_socket, from_interface, in_set,
    inbound_exclusions, marked, not_syn, not_tcp, octets, outbound_exclusions, port_is, reset, rst, rule, set_ct_mark,
    set_mark, sets, syn, tcp, tcp_dport, to_lo, to_loopback, tproxy, udp_dport, unreachable,
};

pub(crate) const CAPTURE: &str = "capture";
pub(crate) const GUARD: &str = "guard";
const EXCLUDE: &str = "exclude";
pub(crate) const DNS: u16 = 53;

/// Priority of exceptions from the capture.
pub const PREF_EXCEPTION: u32 = 32762;
/// Priority of the rule for the proxy's own packets.
pub const PREF_PROXY: u32 = 32763;
/// Priority of the rule that captures.
pub const PREF_CAPTURE: u32 = 32764;

/// The nf_tables half of a plan, with `own4`/`own6` the pod's addresses and `probe4`/`probe6` the probe sources:
///
/// ```text
/// table inet underpass {
///   chain capture {
///     type filter hook prerouting priority mangle; policy accept;
///     iifname IF socket transparent 1 meta mark set 0x111 accept                (for each rerouted interface)
///     tcp flags & (fin | syn | rst | ack) != syn accept
///     meta l4proto != tcp accept                                                (without DNS)
///     meta mark & 0xfff == 0x539 accept
///     iifname "lo" ip daddr 127.0.0.0/8 accept
///     iifname "lo" ip6 daddr ::1 accept
///     iifname "lo" ip daddr @own4 accept
///     iifname "lo" ip6 daddr @own6 accept
///     iifname "lo" udp dport 53 tproxy to :15053 accept                         (with DNS, as the next two)
///     iifname "lo" udp dport 53 reject with icmpx port-unreachable
///     meta l4proto != tcp accept
///     iifname "lo" tcp dport 53 tproxy to :15053 accept                         (with DNS)
///     iifname "lo" tcp dport 53 reject with tcp reset                           (with DNS)
///     iifname "lo" meta l4proto tcp tproxy to :15001 accept
///     iifname "lo" meta l4proto tcp reject with tcp reset
///     iifname IF meta l4proto tcp meta mark set 0x111 tproxy to :15001 accept   (for each rerouted interface)
///     iifname IF meta l4proto tcp reject with tcp reset                         (for each rerouted interface)
///     ip saddr @probe4 accept
///     ip6 saddr @probe6 accept
///     fib daddr type != local meta l4proto tcp reject with tcp reset
///     tcp dport 15008 accept
///     tcp dport PORT ct mark set 0x539 accept                                   (for each inbound exclusion)
///     meta l4proto tcp ct mark set 0x539 accept                                 (inbound bypassed; else the next two)
///     meta l4proto tcp tproxy to :15006 accept
///     meta l4proto tcp reject with tcp reset
///   }
///   chain exclude {                                                             (with exclusions)
///     type route hook output priority mangle; policy accept;
///     meta mark & 0xfff == 0x539 accept
///     ct mark & 0xfff == 0x539 meta mark set 0x539 accept
///     tcp flags & (fin | syn | rst | ack) == syn tcp dport PORT ct mark set 0x539 meta mark set 0x539 accept
///   }
///   chain guard {
///     type filter hook output priority filter; policy accept;
///     oifname "lo" accept
///     meta mark & 0xfff == 0x539 accept
///     udp dport 53 counter reject with icmpx port-unreachable                   (with DNS)
///     meta l4proto != tcp accept
///     ip daddr @probe4 accept
///     ip6 daddr @probe6 accept
///     ip daddr PEER tcp sport X tcp dport Y accept                              (for each exception)
///     tcp flags & rst == rst accept
///     tcp flags & (fin | syn | rst | ack) == syn counter reject with tcp reset
///     meta l4proto tcp counter drop
///   }
/// }
/// ```
///
/// The guard drops what belongs to a connection that is captured and would leave after all, because an ip rule is gone:
/// the sender tries again, and goes on when the rule is back. A reset carries no data, and may be the kernel's answer.
pub(crate) fn table<'e>(plan: &Plan, exceptions: impl IntoIterator<Item = &'e PolicyRule>) -> Table {
    guarded(plan, guard(plan, exceptions))
}

pub(crate) fn guarded(plan: &Plan, guard: Vec<Rule>) -> Table {
    let mut rules = capture(plan);
    let mut chains = vec![chain(CAPTURE, ChainKind::Filter, Hook::Prerouting, -150)];
    if tracks_connections(plan) {
        chains.push(chain(EXCLUDE, ChainKind::Route, Hook::Output, -150));
        rules.extend(exclude(plan));
    }
    chains.push(chain(GUARD, ChainKind::Filter, Hook::Output, 0));
    rules.extend(guard);
    Table { chains, rules, sets: sets(plan) }
}

/// Whether something is left alone, which conntrack has to remember.
fn tracks_connections(plan: &Plan) -> bool {
    plan.bypass_inbound || !plan.exclude.is_empty()
}

pub(crate) fn chain(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    Chain { name: name.to_owned(), kind, hook, priority }
}

fn capture(plan: &Plan) -> Vec<Rule> {
    let on_lo = || from_interface("lo");
    let ports = plan.ports;
    let mut rules: Vec<Vec<Vec<Expr>>> = Vec::new();
    // Every packet passes here, so what most of them are comes first.
    rules.extend(rerouted(plan));
    rules.push(vec![tcp(), not_syn(), accept()]);
    if !plan.dns {
        rules.push(vec![not_tcp(), accept()]);
    }
    rules.extend([
        vec![marked(plan.mark), accept()],
        vec![on_lo(), to_loopback(false), accept()],
        vec![on_lo(), to_loopback(true), accept()],
        vec![on_lo(), in_set(false, End::Destination, "own4"), accept()],
        vec![on_lo(), in_set(true, End::Destination, "own6"), accept()],
    ]);
    if plan.dns {
        rules.push(vec![on_lo(), udp_dport(DNS), tproxy(ports.dns), accept()]);
        rules.push(vec![on_lo(), udp_dport(DNS), unreachable()]);
        rules.push(vec![not_tcp(), accept()]);
    }
    if plan.dns {
        rules.push(vec![on_lo(), tcp_dport(DNS), tproxy(ports.dns), accept()]);
        rules.push(vec![on_lo(), tcp_dport(DNS), reset()]);
    }
    rules.push(vec![on_lo(), tcp(), tproxy(ports.outbound), accept()]);
    rules.push(vec![on_lo(), tcp(), reset()]);
    for interface in &plan.reroute_interfaces {
        let came_in = || from_interface(interface.as_str());
        rules.push(vec![came_in(), tcp(), set_mark(RETURN_MARK), tproxy(ports.outbound), accept()]);
        rules.push(vec![came_in(), tcp(), reset()]);
    }
    rules.push(vec![in_set(false, End::Source, "probe4"), accept()]);
    rules.push(vec![in_set(true, End::Source, "probe6"), accept()]);
    // What the pod would forward: captured, its later segments would still be forwarded.
    rules.push(vec![for_elsewhere(), tcp(), reset()]);
    rules.push(vec![tcp_dport(ports.hbone), accept()]);
    for excluded in inbound_exclusions(plan) {
        rules.push(vec![excluded, set_ct_mark(plan.mark), accept()]);
    }
    if plan.bypass_inbound {
        rules.push(vec![tcp(), set_ct_mark(plan.mark), accept()]);
    } else {
        rules.push(vec![tcp(), tproxy(ports.inbound), accept()]);
        rules.push(vec![tcp(), reset()]);
    }
    rules.into_iter().map(|parts| rule(CAPTURE, &parts)).collect()
}

/// What belongs to connections that came in by an interface and were taken for the pod's own.
pub(crate) fn rerouted(plan: &Plan) -> impl Iterator<Item = Vec<Vec<Expr>>> + '_ {
    plan.reroute_interfaces.iter().map(|interface| {
        let came_in = from_interface(interface.as_str());
        vec![came_in, tcp(), for_transparent_socket(), set_mark(RETURN_MARK), accept()]
    })
}

fn exclude(plan: &Plan) -> Vec<Rule> {
    let mut rules = vec![
        rule(EXCLUDE, &[marked(plan.mark), accept()]),
        rule(EXCLUDE, &[ct_marked(plan.mark), set_mark(plan.mark), accept()]),
    ];
    for excluded in outbound_exclusions(plan) {
        let parts = [excluded, syn(), set_ct_mark(plan.mark), set_mark(plan.mark), accept()];
        rules.push(rule(EXCLUDE, &parts));
    }
    rules
}

fn guard<'e>(plan: &Plan, exceptions: impl IntoIterator<Item = &'e PolicyRule>) -> Vec<Rule> {
    rules_of_guard(guard_rules(plan, exceptions))
}

pub(crate) fn rules_of_guard(rules: impl IntoIterator<Item = Vec<Vec<Expr>>>) -> Vec<Rule> {
    rules.into_iter().map(|parts| rule(GUARD, &parts)).collect()
}

pub(crate) fn guard_rules<'e>(
    plan: &Plan,
    exceptions: impl IntoIterator<Item = &'e PolicyRule>,
) -> Vec<Vec<Vec<Expr>>> {
    let mut rules = vec![vec![to_lo(), accept()], vec![marked(plan.mark), accept()]];
    if plan.dns {
        rules.push(vec![udp_dport(DNS), vec![Expr::Counter], unreachable()]);
    }
    rules.push(vec![not_tcp(), accept()]);
    rules.push(vec![in_set(false, End::Destination, "probe4"), accept()]);
    rules.push(vec![in_set(true, End::Destination, "probe6"), accept()]);
    // In an order of its own, so that reading back compares; the kernel lists ip rules as it likes.
    let mut exceptions: Vec<&PolicyRule> = exceptions.into_iter().collect();
    exceptions.sort();
    rules.extend(exceptions.into_iter().filter_map(exception).map(|e| vec![e, accept()]));
    rules.push(vec![tcp(), rst(), accept()]);
    rules.push(vec![tcp(), syn(), vec![Expr::Counter], reset()]);
    rules.push(vec![tcp(), count_and_drop()]);
    rules
}

/// What matches the packets of a connection that was open before the pod joined.
fn exception(rule: &PolicyRule) -> Option<Vec<Expr>> {
    let (to, source, destination) = (rule.to?, rule.source_port?, rule.destination_port?);
    let field = if to.is_ipv6() { Payload::IP6_DADDR } else { Payload::IP_DADDR };
    let address = vec![Expr::Payload(field), Expr::Cmp(nft::Cmp::Eq, octets(to))];
    let ports = [port_is(Payload::TCP_SPORT, source), port_is(Payload::TCP_DPORT, destination)].concat();
    Some([Expr::family(to.is_ipv6()).to_vec(), address, tcp(), ports].concat())
}

/// The families that a plan captures: those that the pod has an address of.
pub(crate) fn families(plan: &Plan) -> impl Iterator<Item = bool> + '_ {
    [false, true].into_iter().filter(|v6| plan.addresses.iter().any(|a| a.is_ipv6() == *v6))
}

/// The policy routing rules of a plan, without the exceptions for open connections:
///
/// ```text
/// 32762: from all to 169.254.7.127 lookup main
/// 32763: from all fwmark 0x539/0xfff lookup main
/// 32764: from all iif lo ipproto tcp lookup 100
/// 32764: from all iif lo ipproto udp dport 53 lookup 100        (with DNS)
/// 32764: from all fwmark 0x111/0xfff iif IF lookup 100          (for each rerouted interface)
/// ```
pub(crate) fn policy_rules(plan: &Plan) -> Vec<PolicyRule> {
    let mut out = Vec::new();
    for v6 in families(plan) {
        let probes = plan.probe_sources.iter().filter(|a| a.is_ipv6() == v6);
        out.extend(probes.map(|to| PolicyRule::exception_to(*to)));
        out.push(PolicyRule::for_mark(v6, plan.mark));
        out.push(PolicyRule::capture(v6, Transport::Tcp, None, plan.table));
        if plan.dns {
            out.push(PolicyRule::capture(v6, Transport::Udp, Some(DNS), plan.table));
        }
        let rerouted = plan.reroute_interfaces.iter();
        out.extend(rerouted.map(|i| PolicyRule::reroute(v6, i.as_str(), RETURN_MARK, plan.table)));
    }
    out
}

/// The routes of a plan: `local default dev lo src POD_IP table 100`, one for each family.
///
/// Without `src` the kernel would take the destination as the source address of the pod's connections.
pub(crate) fn routes(plan: &Plan) -> Vec<LocalRoute> {
    let first = |v6: bool| plan.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    families(plan).filter_map(first).map(|source| LocalRoute { source, table: plan.table }).collect()
}
