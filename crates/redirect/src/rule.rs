//! The words that the rules of both captures are made of.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use nft::{Cmp, Expr, Lookup, MetaKey, Payload, Rule, Set, SetKey, Verdict};

use crate::plan::{Mark, Plan};

/// The one nf_tables table of ours in a namespace, in the family inet, whichever the capture.
pub const TABLE_NAME: &str = "underpass";

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const FIN_SYN_RST_ACK: u8 = 0x17;

/// A rule, from its parts in order.
pub(crate) fn rule(chain: &str, parts: &[Vec<Expr>]) -> Rule {
    Rule { chain: chain.to_owned(), exprs: parts.concat() }
}

pub(crate) fn accept() -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Accept)]
}

pub(crate) fn drop() -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Drop)]
}

pub(crate) fn count_and_drop() -> Vec<Expr> {
    vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]
}

pub(crate) fn reset() -> Vec<Expr> {
    vec![Expr::RejectTcpReset]
}

pub(crate) fn unreachable() -> Vec<Expr> {
    vec![Expr::RejectPortUnreachable]
}

pub(crate) fn tproxy(port: u16) -> Vec<Expr> {
    vec![Expr::Tproxy { port }]
}

pub(crate) fn redirect(port: u16) -> Vec<Expr> {
    vec![Expr::Redirect { port }]
}

pub(crate) fn from_interface(name: &str) -> Vec<Expr> {
    Expr::interface(MetaKey::IifName, name).to_vec()
}

pub(crate) fn to_lo() -> Vec<Expr> {
    Expr::interface(MetaKey::OifName, "lo").to_vec()
}

pub(crate) fn tcp() -> Vec<Expr> {
    Expr::tcp(Cmp::Eq).to_vec()
}

pub(crate) fn not_tcp() -> Vec<Expr> {
    Expr::tcp(Cmp::Neq).to_vec()
}

/// `tcp flags & (fin | syn | rst | ack) == syn`: the first packet of a connection.
pub(crate) fn syn() -> Vec<Expr> {
    flags(FIN_SYN_RST_ACK, Cmp::Eq, SYN)
}

pub(crate) fn not_syn() -> Vec<Expr> {
    flags(FIN_SYN_RST_ACK, Cmp::Neq, SYN)
}

pub(crate) fn rst() -> Vec<Expr> {
    flags(RST, Cmp::Eq, RST)
}

fn flags(mask: u8, cmp: Cmp, value: u8) -> Vec<Expr> {
    vec![Expr::Payload(Payload::TCP_FLAGS), Expr::Mask(vec![mask]), Expr::Cmp(cmp, vec![value])]
}

pub(crate) fn marked(mark: Mark) -> Vec<Expr> {
    Expr::mark(mark.value, mark.mask).to_vec()
}

pub(crate) fn not_marked(mark: Mark) -> Vec<Expr> {
    negated(Expr::mark(mark.value, mark.mask))
}

pub(crate) fn set_mark(mark: Mark) -> Vec<Expr> {
    Expr::set_mark(mark.value, mark.mask).to_vec()
}

pub(crate) fn ct_marked(mark: Mark) -> Vec<Expr> {
    Expr::ct_mark(mark.value, mark.mask).to_vec()
}

pub(crate) fn set_ct_mark(mark: Mark) -> Vec<Expr> {
    Expr::set_ct_mark(mark.value, mark.mask).to_vec()
}

/// `socket mark & MASK == VALUE`: the packet is for a socket of the proxy.
pub(crate) fn for_socket_marked(mark: Mark) -> Vec<Expr> {
    vec![
        Expr::SocketMark,
        Expr::Mask(mark.mask.to_ne_bytes().to_vec()),
        Expr::Cmp(Cmp::Eq, mark.value.to_ne_bytes().to_vec()),
    ]
}

/// `fib daddr type != local`: the packet is not for an address of this namespace, it would be forwarded.
pub(crate) fn for_elsewhere() -> Vec<Expr> {
    const RTN_LOCAL: u32 = 2; // linux/rtnetlink.h
    vec![Expr::FibDestinationType, Expr::Cmp(Cmp::Neq, RTN_LOCAL.to_ne_bytes().to_vec())]
}

/// `socket transparent 1`: the packet is for a connection that was captured.
pub(crate) fn for_transparent_socket() -> Vec<Expr> {
    vec![Expr::SocketTransparent, Expr::Cmp(Cmp::Eq, vec![1])]
}

fn negated<const N: usize>(mut exprs: [Expr; N]) -> Vec<Expr> {
    if let Some(Expr::Cmp(cmp, _)) = exprs.last_mut() {
        *cmp = Cmp::Neq;
    }
    exprs.to_vec()
}

pub(crate) fn tcp_dport(port: u16) -> Vec<Expr> {
    [tcp(), port_is(Payload::TCP_DPORT, port)].concat()
}

pub(crate) fn udp_dport(port: u16) -> Vec<Expr> {
    [Expr::udp().to_vec(), port_is(Payload::UDP_DPORT, port)].concat()
}

pub(crate) fn udp_sport(port: u16) -> Vec<Expr> {
    [Expr::udp().to_vec(), port_is(Payload::UDP_SPORT, port)].concat()
}

pub(crate) fn port_is(field: Payload, port: u16) -> Vec<Expr> {
    vec![Expr::Payload(field), Expr::Cmp(Cmp::Eq, port.to_be_bytes().to_vec())]
}

/// `ip daddr 127.0.0.0/8` or `ip6 daddr ::1`.
pub(crate) fn to_loopback(v6: bool) -> Vec<Expr> {
    if v6 {
        let one = Ipv6Addr::LOCALHOST.octets().to_vec();
        return [Expr::family(true).to_vec(), vec![Expr::Payload(Payload::IP6_DADDR), Expr::Cmp(Cmp::Eq, one)]]
            .concat();
    }
    let masked = vec![Expr::Payload(Payload::IP_DADDR), Expr::Mask(vec![255, 0, 0, 0])];
    [Expr::family(false).to_vec(), masked, vec![Expr::Cmp(Cmp::Eq, vec![127, 0, 0, 0])]].concat()
}

/// Which end of a packet an address is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    fn field(self, v6: bool) -> Payload {
        match (self, v6) {
            (Self::Source, false) => Payload::IP_SADDR,
            (Self::Source, true) => Payload::IP6_SADDR,
            (Self::Destination, false) => Payload::IP_DADDR,
            (Self::Destination, true) => Payload::IP6_DADDR,
        }
    }
}

/// `ip saddr @SET` and the like.
pub(crate) fn in_set(v6: bool, end: End, set: &str) -> Vec<Expr> {
    let lookup = vec![Expr::Payload(end.field(v6)), Expr::Lookup(Lookup { set: set.to_owned() })];
    [Expr::family(v6).to_vec(), lookup].concat()
}

/// `ip daddr NET` and the like.
pub(crate) fn in_net(net: IpNet, end: End) -> Vec<Expr> {
    let v6 = net.addr().is_ipv6();
    let load = vec![Expr::Payload(end.field(v6)), Expr::Mask(octets(net.netmask()))];
    [Expr::family(v6).to_vec(), load, vec![Expr::Cmp(Cmp::Eq, octets(net.network()))]].concat()
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// What matches a connection to the pod that is left alone, one for each exclusion.
pub(crate) fn inbound_exclusions(plan: &Plan) -> Vec<Vec<Expr>> {
    let ports = plan.exclude.inbound_ports.iter().map(|p| tcp_dport(*p));
    let nets = plan.exclude.inbound_cidrs.iter().map(|n| [in_net(*n, End::Source), tcp()].concat());
    ports.chain(nets).collect()
}

/// What matches a connection of the pod that is left alone, one for each exclusion.
pub(crate) fn outbound_exclusions(plan: &Plan) -> Vec<Vec<Expr>> {
    let ports = plan.exclude.outbound_ports.iter().map(|p| tcp_dport(*p));
    let nets = plan.exclude.outbound_cidrs.iter().map(|n| [in_net(*n, End::Destination), tcp()].concat());
    ports.chain(nets).collect()
}

/// Addresses of one family as a set.
pub(crate) fn set(name: &str, key: SetKey, addresses: &[IpAddr]) -> Set {
    let mut elements: Vec<IpAddr> =
        addresses.iter().copied().filter(|a| a.is_ipv6() == (key == SetKey::Ipv6)).collect();
    elements.sort();
    elements.dedup();
    Set { name: name.to_owned(), key, elements }
}

/// The sets that both captures have: the pod's own addresses, and where probes come from.
pub(crate) fn sets(plan: &Plan) -> Vec<Set> {
    vec![
        set("own4", SetKey::Ipv4, &plan.addresses),
        set("own6", SetKey::Ipv6, &plan.addresses),
        set("probe4", SetKey::Ipv4, &plan.probe_sources),
        set("probe6", SetKey::Ipv6, &plan.probe_sources),
    ]
}
