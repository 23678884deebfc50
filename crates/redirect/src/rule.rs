//! Building blocks of the rules of all tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use nft::{
    Chain, ChainKind, Cmp, Element, Expr, Field, Hook, IpFamily, Rule, Set, SetKey, Verdict, octets,
};

use crate::plan::{Mark, PROBE_DESTINATIONS, PROBE_PORT, Plan};

/// The only nf_tables table of Underpass in a pod's namespace, in the family inet, for every
/// capture kind.
pub const TABLE_NAME: &str = "underpass";

/// The sets with the pod's addresses, one per family: `own4` and `own6`.
pub(crate) const OWN: &str = "own";
/// The sets with the sources of probes: `probe4` and `probe6`.
const PROBE: &str = "probe";
pub(crate) const DNS: u16 = 53;

/// Priorities of base chains (linux/netfilter_ipv4.h).
pub(crate) const RAW: i32 = -300;
pub(crate) const MANGLE: i32 = -150;
/// Ahead of the chains in which other programs translate destinations, those of iptables included:
/// the first translation of a connection is its only one.
pub(crate) const BEFORE_DSTNAT: i32 = -101;
pub(crate) const FILTER: i32 = 0;

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const FIN_SYN_RST_ACK: u8 = 0x17;

/// A part of a rule: a match, a statement or a verdict.
#[derive(Debug, Clone)]
pub(crate) struct Part(Vec<Expr>);

impl Part {
    /// Both parts, in order.
    fn and(self, other: Self) -> Self {
        Self([self.0, other.0].concat())
    }
}

impl<const N: usize> From<[Expr; N]> for Part {
    fn from(exprs: [Expr; N]) -> Self {
        Self(exprs.into())
    }
}

/// A rule without its chain.
#[derive(Debug, Clone)]
pub(crate) struct RuleSpec(Vec<Expr>);

impl RuleSpec {
    /// Whether the rule answers a packet with an error.
    pub(crate) fn rejects(&self) -> bool {
        matches!(
            self.0.last(),
            Some(Expr::RejectTcpReset | Expr::RejectPortUnreachable)
        )
    }
}

/// Builds a rule from its parts, in order.
pub(crate) fn rule<const N: usize>(parts: [Part; N]) -> RuleSpec {
    RuleSpec(parts.into_iter().flat_map(|p| p.0).collect())
}

/// Adds rules to a chain, in order.
pub(crate) fn in_chain(
    chain: &str,
    rules: impl IntoIterator<Item = RuleSpec>,
) -> impl Iterator<Item = Rule> {
    rules.into_iter().map(|RuleSpec(exprs)| Rule {
        chain: chain.to_owned(),
        exprs,
    })
}

pub(crate) fn chain(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    Chain {
        name: name.to_owned(),
        kind,
        hook,
        priority,
    }
}

pub(crate) fn accept() -> Part {
    [Expr::Verdict(Verdict::Accept)].into()
}

pub(crate) fn drop() -> Part {
    [Expr::Verdict(Verdict::Drop)].into()
}

pub(crate) fn count() -> Part {
    [Expr::Counter].into()
}

pub(crate) fn reset() -> Part {
    [Expr::RejectTcpReset].into()
}

pub(crate) fn unreachable() -> Part {
    [Expr::RejectPortUnreachable].into()
}

pub(crate) fn tproxy(port: u16) -> Part {
    [Expr::Tproxy { port }].into()
}

pub(crate) fn redirect(port: u16) -> Part {
    [Expr::Redirect { port }].into()
}

pub(crate) fn source_nat(to: IpAddr) -> Part {
    [Expr::SourceNat(to)].into()
}

/// `FIELD OPERATOR VALUE`.
fn compare<const N: usize>(field: Field, cmp: Cmp, value: [u8; N]) -> Part {
    [Expr::Load(field), Expr::Cmp(cmp, value.into())].into()
}

/// `FIELD & MASK OPERATOR VALUE`.
fn masked<const N: usize>(field: Field, mask: [u8; N], cmp: Cmp, value: [u8; N]) -> Part {
    let (mask, bits) = (mask.into(), vec![0; N]);
    let mask = Expr::Bitwise { mask, bits };
    [Expr::Load(field), mask, Expr::Cmp(cmp, value.into())].into()
}

pub(crate) fn from_interface(name: &str) -> Part {
    interface(Field::IIFNAME, name)
}

pub(crate) fn from_lo() -> Part {
    from_interface("lo")
}

pub(crate) fn to_lo() -> Part {
    interface(Field::OIFNAME, "lo")
}

/// `iifname NAME` or `oifname NAME`.
fn interface(field: Field, name: &str) -> Part {
    let mut padded = [0u8; 16];
    let len = name.len().min(15);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    compare(field, Cmp::Eq, padded)
}

pub(crate) fn tcp() -> Part {
    compare(Field::L4PROTO, Cmp::Eq, [TCP])
}

pub(crate) fn not_tcp() -> Part {
    compare(Field::L4PROTO, Cmp::Neq, [TCP])
}

/// `tcp flags & (fin | syn | rst | ack) == syn`: matches the first packet of a connection.
pub(crate) fn syn() -> Part {
    masked(Field::TCP_FLAGS, [FIN_SYN_RST_ACK], Cmp::Eq, [SYN])
}

pub(crate) fn not_syn() -> Part {
    masked(Field::TCP_FLAGS, [FIN_SYN_RST_ACK], Cmp::Neq, [SYN])
}

pub(crate) fn rst() -> Part {
    masked(Field::TCP_FLAGS, [RST], Cmp::Eq, [RST])
}

/// `FIELD & MASK OPERATOR VALUE`, for a field with a mark.
fn compare_mark(field: Field, cmp: Cmp, mark: Mark) -> Part {
    masked(
        field,
        mark.mask.to_ne_bytes(),
        cmp,
        mark.value.to_ne_bytes(),
    )
}

pub(crate) fn marked(mark: Mark) -> Part {
    compare_mark(Field::MARK, Cmp::Eq, mark)
}

/// Matches packets with this mark and no other bits: applications may set those for themselves.
fn marked_exactly(mark: Mark) -> Part {
    compare(Field::MARK, Cmp::Eq, mark.value.to_ne_bytes())
}

/// Accepts the proxy's packets: those with exactly its mark, and of its user if that is known. The
/// mark of another process's packets is cleared, so that they are treated like its other packets.
///
/// A socket that was closed has no owner. What it still sends belongs to a connection whose first
/// packet had one.
pub(crate) fn accept_proxy(plan: &Plan) -> Vec<RuleSpec> {
    let marked = || marked_exactly(plan.mark);
    let mut rules = Vec::new();
    if let Some(user) = plan.proxy_user {
        let uid = compare(Field::SKUID, Cmp::Eq, user.uid.to_ne_bytes());
        let gid = compare(Field::SKGID, Cmp::Eq, user.gid.to_ne_bytes());
        rules.push(rule([marked(), uid, gid, accept()]));
        let no_mark = Mark {
            value: 0,
            ..plan.mark
        };
        rules.push(rule([
            marked(),
            from_local_socket(),
            set_exact_mark(no_mark),
        ]));
    }
    rules.push(rule([marked(), accept()]));
    rules
}

pub(crate) fn not_marked(mark: Mark) -> Part {
    compare_mark(Field::MARK, Cmp::Neq, mark)
}

pub(crate) fn ct_marked(mark: Mark) -> Part {
    compare_mark(Field::CT_MARK, Cmp::Eq, mark)
}

/// Matches packets for sockets with this mark.
pub(crate) fn to_socket_with_mark(mark: Mark) -> Part {
    compare_mark(Field::SOCKET_MARK, Cmp::Eq, mark)
}

/// `meta mark set VALUE`, for packets that the guard must accept.
pub(crate) fn set_exact_mark(mark: Mark) -> Part {
    [
        Expr::Constant(mark.value.to_ne_bytes().into()),
        Expr::SetMark,
    ]
    .into()
}

/// `meta mark set meta mark & ~MASK | VALUE`.
pub(crate) fn set_mark(mark: Mark) -> Part {
    [Expr::Load(Field::MARK), replace_bits(mark), Expr::SetMark].into()
}

/// `ct mark set ct mark & ~MASK | VALUE`.
pub(crate) fn set_ct_mark(mark: Mark) -> Part {
    [
        Expr::Load(Field::CT_MARK),
        replace_bits(mark),
        Expr::SetCtMark,
    ]
    .into()
}

/// Replaces the bits under the mask in the loaded number.
fn replace_bits(mark: Mark) -> Expr {
    Expr::Bitwise {
        mask: (!mark.mask).to_ne_bytes().into(),
        bits: mark.value.to_ne_bytes().into(),
    }
}

/// `ct state new ct status confirmed`: matches what a connection without a reply sends again.
pub(crate) fn sent_again() -> Part {
    const NEW: u32 = 8; // NF_CT_STATE_BIT(IP_CT_NEW)
    const CONFIRMED: u32 = 8; // IPS_CONFIRMED
    let has = |field, bit: u32| masked(field, bit.to_ne_bytes(), Cmp::Neq, [0; 4]);
    has(Field::CT_STATE, NEW).and(has(Field::CT_STATUS, CONFIRMED))
}

/// `ct zone set ZONE`.
pub(crate) fn set_ct_zone(zone: u16) -> Part {
    [Expr::Constant(zone.to_ne_bytes().into()), Expr::SetCtZone].into()
}

/// `fib daddr type != local`: matches packets that this namespace would forward.
pub(crate) fn to_remote_address() -> Part {
    const RTN_LOCAL: u32 = 2; // linux/rtnetlink.h
    compare(Field::FIB_DADDR_TYPE, Cmp::Neq, RTN_LOCAL.to_ne_bytes())
}

/// `iifname BRIDGE ip daddr NET fib daddr type != local`: matches what one port of a bridge in the
/// pod sends to another. With br_netfilter, such frames traverse the chains of the namespace, as if
/// the bridge had received them (`bridge-nf-call-iptables`).
///
/// A lookup of the route back to the bridge would not do: it finds the route of captured packets.
pub(crate) fn within_bridges(plan: &Plan) -> impl Iterator<Item = RuleSpec> + '_ {
    plan.bridges().map(|(bridge, net)| {
        let to_other_port = in_net(net, AddressField::Destination);
        let from_bridge = from_interface(bridge.as_str());
        rule([from_bridge, to_other_port, to_remote_address(), accept()])
    })
}

/// `socket transparent 1`: matches packets of captured connections.
pub(crate) fn to_transparent_socket() -> Part {
    compare(Field::SOCKET_TRANSPARENT, Cmp::Eq, [1])
}

/// `meta skuid >= 0`: matches packets of local sockets, because only those have a uid.
pub(crate) fn from_local_socket() -> Part {
    compare(Field::SKUID, Cmp::Gte, [0; 4])
}

pub(crate) fn tcp_dport(port: u16) -> Part {
    tcp().and(port_eq(Field::DPORT, port))
}

pub(crate) fn udp_dport(port: u16) -> Part {
    udp().and(port_eq(Field::DPORT, port))
}

pub(crate) fn udp_sport(port: u16) -> Part {
    udp().and(port_eq(Field::SPORT, port))
}

fn udp() -> Part {
    compare(Field::L4PROTO, Cmp::Eq, [UDP])
}

fn port_eq(field: Field, port: u16) -> Part {
    compare(field, Cmp::Eq, port.to_be_bytes())
}

/// The address field of a packet that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressField {
    Source,
    Destination,
}

impl AddressField {
    fn of(self, family: IpFamily) -> Field {
        match (self, family) {
            (Self::Source, IpFamily::V4) => Field::IP_SADDR,
            (Self::Source, IpFamily::V6) => Field::IP6_SADDR,
            (Self::Destination, IpFamily::V4) => Field::IP_DADDR,
            (Self::Destination, IpFamily::V6) => Field::IP6_DADDR,
        }
    }

    /// Checks the family and loads the field.
    fn load(self, family: IpFamily) -> Part {
        is_family(family).and([Expr::Load(self.of(family))].into())
    }
}

fn is_family(family: IpFamily) -> Part {
    compare(Field::NFPROTO, Cmp::Eq, [family.number()])
}

/// Matches the packets of the connections in a set: `ip daddr . tcp sport . tcp dport @SET` etc.
pub(crate) fn in_connection_set(set: &str, family: IpFamily) -> Part {
    // Registers have four bytes; the address takes the first or the first four.
    let first_port = match family {
        IpFamily::V4 => 1,
        IpFamily::V6 => 4,
    };
    let key = [
        Expr::Load(AddressField::Destination.of(family)),
        Expr::LoadInto(first_port, Field::SPORT),
        Expr::LoadInto(first_port + 1, Field::DPORT),
        Expr::Lookup(set_name(set, family)),
    ];
    is_family(family).and(tcp()).and(key.into())
}

/// `ip daddr 127.0.0.0/8` and `ip6 daddr ::1`.
pub(crate) fn to_loopback() -> [Part; 2] {
    const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    [
        in_net(V4.into(), AddressField::Destination),
        is_address(Ipv6Addr::LOCALHOST.into(), AddressField::Destination),
    ]
}

/// Matches an address in a set: `ip saddr @SET` etc.
pub(crate) fn in_set(field: AddressField, set: &str, family: IpFamily) -> Part {
    let lookup = Expr::Lookup(set_name(set, family));
    field.load(family).and([lookup].into())
}

/// Matches an address: `ip daddr ADDRESS` etc.
pub(crate) fn is_address(address: IpAddr, field: AddressField) -> Part {
    let value = Expr::Cmp(Cmp::Eq, octets(address));
    field.load(IpFamily::of(address)).and([value].into())
}

/// Matches an address in a network: `ip daddr NET` etc.
fn in_net(net: IpNet, field: AddressField) -> Part {
    let loaded = field.load(IpFamily::of(net.addr()));
    let mask = octets(net.netmask());
    let bits = vec![0; mask.len()];
    let value = Expr::Cmp(Cmp::Eq, octets(net.network()));
    loaded.and([Expr::Bitwise { mask, bits }, value].into())
}

/// Accepts packets to or from the sources of probes.
pub(crate) fn accept_probes(field: AddressField) -> [RuleSpec; 2] {
    IpFamily::ALL.map(|family| rule([in_set(field, PROBE, family), accept()]))
}

/// Matches the agent's probes from within the pod, which are captured whatever is excluded; nothing
/// if no exclusion could cover them.
pub(crate) fn to_probe_destination(plan: &Plan) -> impl Iterator<Item = Part> + use<> {
    let destinations = plan.exclude.has_outbound().then_some(PROBE_DESTINATIONS);
    destinations.into_iter().flatten().map(|to| {
        let address = is_address(to, AddressField::Destination);
        address.and(tcp_dport(PROBE_PORT))
    })
}

/// Returns the matches for connections to the pod that bypass the proxy, one per exclusion.
pub(crate) fn inbound_exclusions(plan: &Plan) -> impl Iterator<Item = Part> + '_ {
    let ports = plan.exclude.inbound_ports.iter().map(|p| tcp_dport(*p));
    let nets = plan.exclude.inbound_cidrs.iter();
    ports.chain(nets.map(|n| in_net(*n, AddressField::Source).and(tcp())))
}

/// Returns the matches for connections from the pod that bypass the proxy, one per exclusion.
pub(crate) fn outbound_exclusions(plan: &Plan) -> impl Iterator<Item = Part> + '_ {
    let ports = plan.exclude.outbound_ports.iter().map(|p| tcp_dport(*p));
    let nets = plan.exclude.outbound_cidrs.iter();
    ports.chain(nets.map(|n| in_net(*n, AddressField::Destination).and(tcp())))
}

/// Builds the two sets of a name from the addresses of each family.
pub(crate) fn address_sets(name: &str, addresses: &[IpAddr]) -> [Set; 2] {
    IpFamily::ALL.map(|family| {
        let of_family = addresses.iter().filter(|a| IpFamily::of(**a) == family);
        set(
            set_name(name, family),
            SetKey::Address(family),
            of_family.copied().map(Element::Address),
        )
    })
}

/// Builds a set from elements in any order.
pub(crate) fn set(name: String, key: SetKey, elements: impl Iterator<Item = Element>) -> Set {
    let elements: BTreeSet<Element> = elements.collect();
    Set {
        name,
        key,
        elements: elements.into_iter().collect(),
    }
}

/// The name of the set for one family.
pub(crate) fn set_name(name: &str, family: IpFamily) -> String {
    match family {
        IpFamily::V4 => format!("{name}4"),
        IpFamily::V6 => format!("{name}6"),
    }
}

/// Builds the sets of both capture kinds: the pod's addresses and the sources of probes.
pub(crate) fn plan_sets(plan: &Plan) -> Vec<Set> {
    let own = address_sets(OWN, &plan.addresses);
    let probes = address_sets(PROBE, &plan.probe_sources);
    own.into_iter().chain(probes).collect()
}
