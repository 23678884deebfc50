//! The `nat` capture as iptables rules: those of [`super::table`], for kernels without nf_tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nft::IpFamily;

use crate::plan::{PROBE_DESTINATIONS, PROBE_PORT, Plan, ProxyUser, RETURN_MARK};
use crate::xtables::XtablesRules;

const IN: &str = "UNDERPASS_IN";
const OUT: &str = "UNDERPASS_OUT";
const SYN: &str = "--tcp-flags FIN,SYN,RST,ACK SYN";

/// Renders all tables of a plan. As the input of the restore programs, with DNS capture, exclusions
/// and a rerouted interface:
///
#[doc = concat!("```text\n", include_str!("all_options.iptables"), "```")]
pub(crate) fn tables(plan: &Plan) -> Vec<XtablesRules> {
    plan.families()
        .flat_map(|family| of_family(plan, family))
        .collect()
}

/// Renders the tables of a leaving pod; see [`leaving_table`](super::table::leaving_table):
///
#[doc = concat!("```text\n", include_str!("leaving.iptables"), "```")]
pub(crate) fn leaving_tables(plan: &Plan) -> Vec<XtablesRules> {
    let mut tables = tables(plan);
    let captures = |t: &&mut XtablesRules| t.table == "nat" || t.table == "filter";
    for table in tables.iter_mut().filter(captures) {
        // A no-op rule per chain: restore programs do not declare chains without rules.
        let chains = table.jumps.iter().filter_map(|j| j.rsplit(' ').next());
        table.rules = chains.map(|c| format!("-A {c} -j RETURN")).collect();
        table.rules.sort();
    }
    tables
}

fn of_family(plan: &Plan, family: IpFamily) -> Vec<XtablesRules> {
    let mut out = Vec::new();
    if plan.dns {
        out.push(table(family, "raw", raw_in(plan), raw_out(plan)));
    }
    out.push(table(family, "mangle", mangle_in(plan), mangle_out(plan)));
    let (inbound, outbound) = (nat_in(plan, family), nat_out(plan, family));
    out.push(table(family, "nat", inbound, outbound));
    out.push(table(family, "filter", Vec::new(), guard(plan, family)));
    out
}

fn table(
    family: IpFamily,
    name: &str,
    inbound: Vec<String>,
    outbound: Vec<String>,
) -> XtablesRules {
    let jump = |hook: &str, chain: &str, rules: &[String]| {
        (!rules.is_empty()).then(|| format!("-A {hook} -j {chain}"))
    };
    let to_out = jump("OUTPUT", OUT, &outbound).into_iter();
    let jumps = to_out.chain(jump("PREROUTING", IN, &inbound)).collect();
    let within = |chain: &'static str, rules: Vec<String>| {
        rules.into_iter().map(move |r| format!("-A {chain} {r}"))
    };
    let rules = within(IN, inbound).chain(within(OUT, outbound)).collect();
    XtablesRules {
        family,
        table: name.to_owned(),
        jumps,
        rules,
    }
}

fn proxy_mark(plan: &Plan) -> String {
    format!("--mark {:#x}/{:#x}", plan.mark.value, plan.mark.mask)
}

fn return_mark() -> String {
    format!("{:#x}/{:#x}", RETURN_MARK.value, RETURN_MARK.mask)
}

/// Assigns replies to the proxy's DNS queries to the conntrack zone of the queries, by their
/// receiving socket.
fn raw_in(plan: &Plan) -> Vec<String> {
    let proxy = proxy_mark(plan);
    vec![
        "-p udp -m udp --sport 53 -m socket --nowildcard --restore-skmark".to_owned(),
        format!("-p udp -m udp --sport 53 -m mark {proxy} -j CT --zone 1"),
    ]
}

fn raw_out(plan: &Plan) -> Vec<String> {
    let proxy = proxy_mark(plan);
    vec![format!(
        "-p udp -m udp --dport 53 -m mark {proxy} -j CT --zone 1"
    )]
}

fn mangle_in(plan: &Plan) -> Vec<String> {
    let (proxy, back) = (proxy_mark(plan), return_mark());
    vec![format!("-m mark {proxy} -j CONNMARK --set-xmark {back}")]
}

fn mangle_out(plan: &Plan) -> Vec<String> {
    let (proxy, back) = (proxy_mark(plan), return_mark());
    vec![format!(
        "-m mark ! {proxy} -m connmark --mark {back} -j MARK --set-xmark {back}"
    )]
}

fn nat_in(plan: &Plan, family: IpFamily) -> Vec<String> {
    let redirect = |to: u16| format!("-p tcp -m tcp {SYN} -j REDIRECT --to-ports {to}");
    let port = |port: &u16| format!("-p tcp -m tcp --dport {port} -j RETURN");
    let source = |source: String| format!("-s {source} -p tcp -j RETURN");
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    rules.extend(within_bridges(plan, family));
    let rerouted = plan.reroute_interfaces.iter();
    rules.extend(rerouted.map(|i| format!("-i {i} {}", redirect(plan.ports.outbound))));
    rules.extend(probes(plan, family).map(source));
    rules.push(port(&plan.ports.hbone));
    rules.extend(plan.exclude.inbound_ports.iter().map(port));
    rules.extend(nets(&plan.exclude.inbound_cidrs, family).map(source));
    if !plan.bypass_inbound {
        rules.push(redirect(plan.ports.inbound));
    }
    rules
}

fn nat_out(plan: &Plan, family: IpFamily) -> Vec<String> {
    let mut rules = vec![
        "-o lo -j RETURN".to_owned(),
        format!("-m mark {} -j RETURN", proxy_mark(plan)),
    ];
    if plan.dns {
        let to = plan.ports.dns;
        rules.push(format!(
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports {to}"
        ));
        rules.push(format!(
            "-p tcp -m tcp --dport 53 {SYN} -j REDIRECT --to-ports {to}"
        ));
    }
    let to_outbound = format!("-j REDIRECT --to-ports {}", plan.ports.outbound);
    rules.extend(captured_probe(plan, family, &to_outbound));
    rules.extend(outbound_exceptions(plan, family));
    rules.push(format!("-p tcp -m tcp {SYN} {to_outbound}"));
    rules
}

fn guard(plan: &Plan, family: IpFamily) -> Vec<String> {
    // Redirected packets still have their old output interface in this hook.
    let loopback = match family {
        IpFamily::V4 => "127.0.0.0/8",
        IpFamily::V6 => "::1/128",
    };
    let mut rules = vec![
        "-o lo -j RETURN".to_owned(),
        format!("-d {loopback} -j RETURN"),
    ];
    rules.extend(accept_proxy(plan));
    if plan.dns {
        let why = match family {
            IpFamily::V4 => "icmp-port-unreachable",
            IpFamily::V6 => "icmp6-port-unreachable",
        };
        rules.push(format!(
            "-p udp -m udp --dport 53 -j REJECT --reject-with {why}"
        ));
    }
    let refuse = "-j REJECT --reject-with tcp-reset";
    rules.extend(captured_probe(plan, family, refuse));
    rules.extend(outbound_exceptions(plan, family));
    // A connection whose first SYN left before the pod joined; see the table.
    rules.push(format!(
        "-p tcp -m tcp {SYN} -m conntrack --ctstate NEW --ctstatus CONFIRMED -j RETURN"
    ));
    rules.push(format!("-p tcp -m tcp {SYN} {refuse}"));
    rules
}

/// Rules for the proxy's packets; see [`accept_proxy`](crate::rule::accept_proxy).
fn accept_proxy(plan: &Plan) -> Vec<String> {
    let marked = format!("-m mark --mark {:#x}", plan.mark.value); // no other bits
    match plan.proxy_user {
        None => vec![format!("{marked} -j RETURN")],
        Some(ProxyUser { uid, gid }) => vec![
            format!("{marked} -m owner --uid-owner {uid} --gid-owner {gid} -j RETURN"),
            format!("{marked} -m owner ! --socket-exists -j RETURN"),
        ],
    }
}

/// Rules for frames within a bridge; see [`within_bridges`](crate::rule::within_bridges).
fn within_bridges(plan: &Plan, family: IpFamily) -> impl Iterator<Item = String> + '_ {
    let of_family = plan
        .bridges()
        .filter(move |(_, net)| IpFamily::of(net.addr()) == family);
    of_family.map(|(bridge, net)| {
        format!("-d {net} -i {bridge} -m addrtype ! --dst-type LOCAL -j RETURN")
    })
}

/// The rule for probes, if exclusions could cover them.
fn captured_probe(plan: &Plan, family: IpFamily, then: &str) -> Option<String> {
    let is_family = |to: &IpAddr| IpFamily::of(*to) == family;
    let to = PROBE_DESTINATIONS.into_iter().find(is_family)?;
    let rule = || {
        let to = IpNet::from(to);
        format!("-d {to} -p tcp -m tcp --dport {PROBE_PORT} {SYN} {then}")
    };
    plan.exclude.has_outbound().then(rule)
}

/// Rules for outbound connections that are not redirected.
fn outbound_exceptions(plan: &Plan, family: IpFamily) -> Vec<String> {
    let ports = plan.exclude.outbound_ports.iter();
    let ports = ports.map(|p| format!("-p tcp -m tcp --dport {p} -j RETURN"));
    let destinations = nets(&plan.exclude.outbound_cidrs, family).chain(probes(plan, family));
    let destinations = destinations.map(|d| format!("-d {d} -p tcp -j RETURN"));
    ports.chain(destinations).collect()
}

fn probes(plan: &Plan, family: IpFamily) -> impl Iterator<Item = String> + '_ {
    let sources = plan.probe_sources.iter().copied();
    sources
        .filter(move |a| IpFamily::of(*a) == family)
        .map(|a| IpNet::from(a).to_string())
}

fn nets(of: &BTreeSet<IpNet>, family: IpFamily) -> impl Iterator<Item = String> + '_ {
    of.iter()
        .filter(move |n| IpFamily::of(n.addr()) == family)
        .map(|n| n.trunc().to_string())
}
