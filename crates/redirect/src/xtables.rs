//! The `nat` capture as iptables rules, as text. The same rules as [`crate::nat`], for kernels without nf_tables.
//!
//! Every line is written as `iptables -S` prints it, so that reading back is comparing.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::plan::{Plan, RETURN_MARK};
use crate::routed::families;

/// What every chain of ours is called by.
pub(crate) const PREFIX: &str = "UNDERPASS_";
const IN: &str = "UNDERPASS_IN";
const OUT: &str = "UNDERPASS_OUT";
const SYN: &str = "--tcp-flags FIN,SYN,RST,ACK SYN";
/// The tables that we have chains in.
pub(crate) const TABLES: [&str; 4] = ["raw", "mangle", "nat", "filter"];

/// The rules of ours in one table of one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct XtablesRules {
    /// IPv6 or IPv4.
    pub v6: bool,
    /// `raw`, `mangle`, `nat` or `filter`.
    pub table: String,
    /// `-A BUILTIN -j CHAIN`: the jumps to our chains, sorted.
    pub jumps: Vec<String>,
    /// `-A CHAIN …`: the rules of our chains, chain by chain in order of their names.
    pub rules: Vec<String>,
}

impl XtablesRules {
    /// Picks the chains called by a prefix, and the jumps to them, from what `iptables -S` prints.
    pub(crate) fn from_listing(v6: bool, table: &str, prefix: &str, lines: &[String]) -> Self {
        let mut found = Self { v6, table: table.to_owned(), jumps: Vec::new(), rules: Vec::new() };
        for line in lines {
            let line = line.trim_end();
            match line.strip_prefix("-A ") {
                Some(rest) if rest.starts_with(prefix) => found.rules.push(line.to_owned()),
                Some(rest) if rest.contains(&format!("-j {prefix}")) => found.jumps.push(line.to_owned()),
                _ => {}
            }
        }
        found.jumps.sort();
        found.rules.sort_by(|a, b| chain(a).cmp(chain(b)));
        found
    }

    /// Whether nothing of ours is in this table.
    pub fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.rules.is_empty()
    }

    /// What a restore program takes: our chains are replaced as a whole, jumps that are `present` are not added again.
    pub(crate) fn restore_input(&self, present: &[String]) -> String {
        let mut chains: Vec<&str> = self.rules.iter().map(|r| chain(r)).collect();
        chains.dedup();
        let declared = chains.iter().map(|c| format!(":{c} - [0:0]\n"));
        let jumps =
            self.jumps.iter().filter(|j| !present.contains(j)).map(|j| format!("{}\n", j.replacen("-A", "-I", 1)));
        let rules = self.rules.iter().map(|r| format!("{r}\n"));
        format!("*{}\n{}COMMIT\n", self.table, declared.chain(jumps).chain(rules).collect::<String>())
    }
}

/// The chain that a rule is in.
fn chain(rule: &str) -> &str {
    rule.split(' ').nth(1).unwrap_or_default()
}

/// Everything that a plan stands for.
pub(crate) fn tables(plan: &Plan) -> Vec<XtablesRules> {
    families(plan).flat_map(|v6| family(plan, v6)).collect()
}

/// What is left while connections that were captured go on after the pod has left; see [`crate::nat::leaving_table`].
pub(crate) fn leaving_tables(plan: &Plan) -> Vec<XtablesRules> {
    let mut tables = tables(plan);
    for table in tables.iter_mut().filter(|t| t.table == "nat" || t.table == "filter") {
        // Chains with one rule that does nothing: without any rule the restore programs would not declare them.
        table.rules =
            table.jumps.iter().filter_map(|j| j.rsplit(' ').next()).map(|c| format!("-A {c} -j RETURN")).collect();
        table.rules.sort();
    }
    tables
}

fn family(plan: &Plan, v6: bool) -> Vec<XtablesRules> {
    let mut out = Vec::new();
    if plan.dns {
        out.push(table(v6, "raw", raw_in(plan), raw_out(plan)));
    }
    out.push(table(v6, "mangle", mangle_in(plan), mangle_out(plan)));
    out.push(table(v6, "nat", nat_in(plan, v6), nat_out(plan, v6)));
    out.push(table(v6, "filter", Vec::new(), guard(plan, v6)));
    out
}

fn table(v6: bool, name: &str, inbound: Vec<String>, outbound: Vec<String>) -> XtablesRules {
    let jump = |hook: &str, chain: &str, rules: &[String]| (!rules.is_empty()).then(|| format!("-A {hook} -j {chain}"));
    let jumps = [jump("OUTPUT", OUT, &outbound), jump("PREROUTING", IN, &inbound)].into_iter().flatten().collect();
    let within = |chain: &'static str, rules: Vec<String>| rules.into_iter().map(move |r| format!("-A {chain} {r}"));
    let rules = within(IN, inbound).chain(within(OUT, outbound)).collect();
    XtablesRules { v6, table: name.to_owned(), jumps, rules }
}

fn proxy_mark(plan: &Plan) -> String {
    format!("--mark {:#x}/{:#x}", plan.mark.value, plan.mark.mask)
}

fn return_mark() -> String {
    format!("{:#x}/{:#x}", RETURN_MARK.value, RETURN_MARK.mask)
}

/// The answers to the proxy's own DNS queries go to the conntrack zone of the queries, told by the socket they are for.
fn raw_in(plan: &Plan) -> Vec<String> {
    vec![
        "-p udp -m udp --sport 53 -m socket --nowildcard --restore-skmark".to_owned(),
        format!("-p udp -m udp --sport 53 -m mark {} -j CT --zone 1", proxy_mark(plan)),
    ]
}

fn raw_out(plan: &Plan) -> Vec<String> {
    vec![format!("-p udp -m udp --dport 53 -m mark {} -j CT --zone 1", proxy_mark(plan))]
}

fn mangle_in(plan: &Plan) -> Vec<String> {
    vec![format!("-m mark {} -j CONNMARK --set-xmark {}", proxy_mark(plan), return_mark())]
}

fn mangle_out(plan: &Plan) -> Vec<String> {
    let (proxy, back) = (proxy_mark(plan), return_mark());
    vec![format!("-m mark ! {proxy} -m connmark --mark {back} -j MARK --set-xmark {back}")]
}

fn nat_in(plan: &Plan, v6: bool) -> Vec<String> {
    let redirect = |to: u16| format!("-p tcp -m tcp {SYN} -j REDIRECT --to-ports {to}");
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    rules.extend(plan.reroute_interfaces.iter().map(|i| format!("-i {i} {}", redirect(plan.ports.outbound))));
    rules.extend(probes(plan, v6).map(|p| format!("-s {p} -p tcp -j RETURN")));
    rules.push(format!("-p tcp -m tcp --dport {} -j RETURN", plan.ports.hbone));
    rules.extend(plan.exclude.inbound_ports.iter().map(|p| format!("-p tcp -m tcp --dport {p} -j RETURN")));
    rules.extend(nets(&plan.exclude.inbound_cidrs, v6).map(|n| format!("-s {n} -p tcp -j RETURN")));
    if !plan.bypass_inbound {
        rules.push(redirect(plan.ports.inbound));
    }
    rules
}

fn nat_out(plan: &Plan, v6: bool) -> Vec<String> {
    let mut rules = vec!["-o lo -j RETURN".to_owned(), format!("-m mark {} -j RETURN", proxy_mark(plan))];
    if plan.dns {
        let to = plan.ports.dns;
        rules.push(format!("-p udp -m udp --dport 53 -j REDIRECT --to-ports {to}"));
        rules.push(format!("-p tcp -m tcp --dport 53 {SYN} -j REDIRECT --to-ports {to}"));
    }
    rules.extend(left_alone(plan, v6));
    rules.push(format!("-p tcp -m tcp {SYN} -j REDIRECT --to-ports {}", plan.ports.outbound));
    rules
}

fn guard(plan: &Plan, v6: bool) -> Vec<String> {
    // What has been redirected: within this hook it still has the interface that it would have left by.
    let loopback = if v6 { "::1/128" } else { "127.0.0.0/8" };
    let mut rules = vec![
        "-o lo -j RETURN".to_owned(),
        format!("-d {loopback} -j RETURN"),
        format!("-m mark {} -j RETURN", proxy_mark(plan)),
    ];
    if plan.dns {
        let why = if v6 { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
        rules.push(format!("-p udp -m udp --dport 53 -j REJECT --reject-with {why}"));
    }
    rules.extend(left_alone(plan, v6));
    rules.push(format!("-p tcp -m tcp {SYN} -j REJECT --reject-with tcp-reset"));
    rules
}

/// Connections of the pod that are not redirected.
fn left_alone(plan: &Plan, v6: bool) -> Vec<String> {
    let ports = plan.exclude.outbound_ports.iter().map(|p| format!("-p tcp -m tcp --dport {p} -j RETURN"));
    let nets = nets(&plan.exclude.outbound_cidrs, v6).map(|n| format!("-d {n} -p tcp -j RETURN"));
    ports.chain(nets).chain(probes(plan, v6).map(|p| format!("-d {p} -p tcp -j RETURN"))).collect()
}

fn probes(plan: &Plan, v6: bool) -> impl Iterator<Item = String> + '_ {
    let of_family = plan.probe_sources.iter().filter(move |a: &&IpAddr| a.is_ipv6() == v6);
    of_family.map(|a| format!("{a}/{}", if a.is_ipv6() { 128 } else { 32 }))
}

fn nets(of: &std::collections::BTreeSet<IpNet>, v6: bool) -> impl Iterator<Item = String> + '_ {
    of.iter().filter(move |n| n.addr().is_ipv6() == v6).map(|n| n.trunc().to_string())
}
