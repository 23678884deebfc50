//! The ip rules of Underpass.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::Parseable;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use nft::IpFamily;

use crate::plan::{Mark, TABLE};
use crate::raw::{Content, body_of};
use crate::rule_priorities::RulePriorities;
use crate::sockets::TcpConnection;

pub(crate) const TABLE_MAIN: u32 = 254;
/// The protocol of Underpass's ip rules and of no other program's (/etc/iproute2/rt_protos), by
/// which they are recognised.
const PROTOCOL: u8 = 150;

/// An ip rule of Underpass, or another one at its priorities.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// The family.
    pub family: IpFamily,
    /// The priority; lower values are evaluated first.
    pub priority: u32,
    /// `to ADDRESS`.
    pub to: Option<IpAddr>,
    /// `fwmark VALUE/MASK`.
    pub mark: Option<(u32, u32)>,
    /// `iif NAME`; `lo` matches packets from local sockets.
    pub iif: Option<String>,
    /// `ipproto PROTOCOL`.
    pub transport: Option<Transport>,
    /// `sport PORT`.
    pub source_port: Option<u16>,
    /// `dport PORT`.
    pub destination_port: Option<u16>,
    /// What happens to packets that match.
    pub action: Action,
    /// The body of the kernel's message, if the rule has anything that Underpass never writes: a
    /// range of ports, a prefix, another action, another protocol. Empty otherwise.
    pub other: Vec<u8>,
}

/// What an ip rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `lookup TABLE`.
    Lookup(u32),
    /// `goto PRIORITY`.
    Goto(u32),
    /// `nop`: a target of `goto`.
    Nop,
}

/// The transport protocol that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn number(self) -> IpProtocol {
        match self {
            Self::Tcp => IpProtocol::Tcp,
            Self::Udp => IpProtocol::Udp,
        }
    }
}

impl PolicyRule {
    /// `to ADDRESS lookup main`, or `goto` the rules of other programs: exempts replies to probes.
    pub(crate) fn exception_to(at: RulePriorities, to: IpAddr) -> Self {
        Self {
            to: Some(to),
            ..Self::blank(IpFamily::of(to), at.exception(), at.uncaptured())
        }
    }

    /// `iif lo ipproto tcp sport X dport Y to PEER lookup main`, or `goto`: exempts a connection
    /// that was open before the pod joined.
    ///
    /// Every rule with a protocol or a port needs `iif lo`. Otherwise source validation also
    /// compares ports (fib_rule_requires_fldissect) and finds the capturing rule, which makes
    /// packets from all peers martians.
    pub(crate) fn exception_for(at: RulePriorities, connection: TcpConnection) -> Self {
        Self::for_connection(at, connection, at.uncaptured())
    }

    /// `iif lo ipproto tcp sport X dport Y to PEER lookup TABLE`: keeps a connection captured after
    /// the pod left.
    pub(crate) fn keep_captured(at: RulePriorities, connection: TcpConnection, table: u32) -> Self {
        Self::for_connection(at, connection, Action::Lookup(table))
    }

    fn for_connection(at: RulePriorities, connection: TcpConnection, action: Action) -> Self {
        Self {
            to: Some(connection.peer.ip()),
            iif: Some("lo".to_owned()),
            transport: Some(Transport::Tcp),
            source_port: Some(connection.local_port),
            destination_port: Some(connection.peer.port()),
            ..Self::blank(IpFamily::of(connection.peer.ip()), at.exception(), action)
        }
    }

    /// `fwmark MARK lookup main`, or `goto`: exempts the proxy's packets.
    pub(crate) fn for_proxy(at: RulePriorities, family: IpFamily, mark: Mark) -> Self {
        Self {
            mark: Some((mark.value, mark.mask)),
            ..Self::blank(family, at.proxy(), at.uncaptured())
        }
    }

    /// `nop`, where packets continue that are not captured. The kernel ignores a `goto` without a
    /// target.
    pub(crate) fn resume(at: RulePriorities, family: IpFamily) -> Self {
        Self::blank(family, at.resume(), Action::Nop)
    }

    /// `iif lo ipproto PROTOCOL [dport PORT] lookup TABLE`: captures packets from the pod's
    /// sockets.
    ///
    /// Without `iif lo`, source validation would find the local route and treat packets from peers
    /// as martians.
    pub(crate) fn capture(
        at: RulePriorities,
        family: IpFamily,
        transport: Transport,
        port: Option<u16>,
        table: u32,
    ) -> Self {
        Self {
            iif: Some("lo".to_owned()),
            transport: Some(transport),
            destination_port: port,
            ..Self::blank(family, at.capture(), Action::Lookup(table))
        }
    }

    /// `fwmark MARK lookup TABLE`: captures replies to the proxy.
    pub(crate) fn return_path(
        at: RulePriorities,
        family: IpFamily,
        mark: Mark,
        table: u32,
    ) -> Self {
        Self {
            mark: Some((mark.value, mark.mask)),
            ..Self::blank(family, at.capture(), Action::Lookup(table))
        }
    }

    /// `iif NAME fwmark MARK lookup TABLE`: captures connections that come in by an interface and
    /// are treated as outbound.
    pub(crate) fn reroute(
        at: RulePriorities,
        family: IpFamily,
        interface: &str,
        mark: Mark,
        table: u32,
    ) -> Self {
        Self {
            iif: Some(interface.to_owned()),
            ..Self::return_path(at, family, mark, table)
        }
    }

    /// The connection that this rule exempts, if it is the rule of [`Self::exception_for`].
    pub(crate) fn exempted_connection(&self) -> Option<TcpConnection> {
        let connection = self.connection()?;
        let at = RulePriorities::from(self.priority)?;
        let exempts = [Action::Lookup(TABLE_MAIN), Action::Goto(at.resume())];
        let is_exception = exempts.contains(&self.action)
            && *self == Self::for_connection(at, connection, self.action);
        is_exception.then_some(connection)
    }

    /// The only connection that this rule matches, if it matches only one.
    pub(crate) fn connection(&self) -> Option<TcpConnection> {
        Some(TcpConnection {
            local_port: self.source_port?,
            peer: SocketAddr::new(self.to?, self.destination_port?),
        })
    }

    /// Whether this rule captures packets from the pod's sockets.
    pub(crate) fn captures(&self) -> bool {
        self.iif.as_deref() == Some("lo") && self.to.is_none() && self.leads_to_proxy()
    }

    /// Whether this rule captures replies to the proxy.
    pub(crate) fn returns(&self) -> bool {
        self.iif.is_none() && self.to.is_none() && self.leads_to_proxy()
    }

    /// Whether Underpass wrote this rule, and it leads to the proxy.
    pub(crate) fn leads_to_proxy(&self) -> bool {
        self.action == Action::Lookup(TABLE) && self.other.is_empty()
    }

    fn blank(family: IpFamily, priority: u32, action: Action) -> Self {
        Self {
            family,
            priority,
            to: None,
            mark: None,
            iif: None,
            transport: None,
            source_port: None,
            destination_port: None,
            action,
            other: Vec::new(),
        }
    }

    pub(crate) fn message(&self) -> RuleMessage {
        let mut m = RuleMessage::default();
        m.header.family = address_family(self.family);
        let a = &mut m.attributes;
        a.push(RuleAttribute::Priority(self.priority));
        a.push(RuleAttribute::Protocol(PROTOCOL.into()));
        m.header.action = match self.action {
            Action::Lookup(table) => {
                a.push(RuleAttribute::Table(table));
                RuleAction::ToTable
            }
            Action::Goto(target) => {
                a.push(RuleAttribute::Goto(target));
                RuleAction::Goto
            }
            Action::Nop => RuleAction::Nop,
        };
        if let Some(to) = self.to {
            m.header.dst_len = match self.family {
                IpFamily::V4 => 32,
                IpFamily::V6 => 128,
            };
            a.push(RuleAttribute::Destination(to));
        }
        if let Some((value, mask)) = self.mark {
            a.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
        }
        a.extend(self.iif.clone().map(RuleAttribute::Iifname));
        let protocol = self.transport.map(Transport::number);
        a.extend(protocol.map(RuleAttribute::IpProtocol));
        let port = |p| RulePortRange { start: p, end: p };
        let (source, destination) = (self.source_port, self.destination_port);
        a.extend(source.map(port).map(RuleAttribute::SourcePortRange));
        a.extend(
            destination
                .map(port)
                .map(RuleAttribute::DestinationPortRange),
        );
        m
    }

    /// Decodes the body of a message; a rule that Underpass never writes has [`Self::other`].
    pub(crate) fn from_body(body: &[u8]) -> Self {
        let rule = RuleMessage::parse(body).map(|m| Self::from_message(&m));
        let rule = rule.unwrap_or_else(|_| {
            let content = Content::of(body);
            let family = ip_family(content.header[0].into());
            let number = |kind| content.number(kind).unwrap_or(0);
            let action = Action::Lookup(number(FRA_TABLE));
            Self::blank(family, number(FRA_PRIORITY), action)
        });
        let sent = body_of(&rule.message());
        let is_known = content(Content::of(&sent)) == content(Content::of(body));
        Self {
            other: if is_known { Vec::new() } else { body.to_vec() },
            ..rule
        }
    }

    fn from_message(m: &RuleMessage) -> Self {
        let family = ip_family(m.header.family);
        let (mut table, mut target) = (u32::from(m.header.table), 0);
        let mut rule = Self::blank(family, 0, Action::Nop);
        for a in &m.attributes {
            match a {
                RuleAttribute::Priority(p) => rule.priority = *p,
                RuleAttribute::Table(t) => table = *t,
                RuleAttribute::Goto(priority) => target = *priority,
                RuleAttribute::Destination(to) => rule.to = Some(*to),
                RuleAttribute::FwMark(v) => {
                    rule.mark = Some((*v, rule.mark.map_or(u32::MAX, |(_, m)| m)))
                }
                RuleAttribute::FwMask(m) => rule.mark = Some((rule.mark.map_or(0, |(v, _)| v), *m)),
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::IpProtocol(IpProtocol::Tcp) => rule.transport = Some(Transport::Tcp),
                RuleAttribute::IpProtocol(IpProtocol::Udp) => rule.transport = Some(Transport::Udp),
                RuleAttribute::SourcePortRange(r) => rule.source_port = Some(r.start),
                RuleAttribute::DestinationPortRange(r) => rule.destination_port = Some(r.start),
                _ => {}
            }
        }
        rule.action = match m.header.action {
            RuleAction::Goto => Action::Goto(target),
            RuleAction::Nop => Action::Nop,
            _ => Action::Lookup(table),
        };
        rule
    }
}

/// Whether the body of a rule's message has the protocol of Underpass's rules.
pub(crate) fn is_marked_as_own(body: &[u8]) -> bool {
    let protocol = Content::of(body).attributes.remove(&FRA_PROTOCOL);
    protocol.is_some_and(|p| p == [PROTOCOL])
}

/// Attributes (linux/fib_rules.h).
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
/// Flag of a rule that matches the other packets.
const FIB_RULE_INVERT: u32 = 2;

/// What a rule matches and does, without what the kernel adds and what changes nothing.
fn content(mut rule: Content<'_>) -> Content<'_> {
    const NONE: &[u8] = &[0xff; 4];
    rule.ignore(FRA_SUPPRESS_IFGROUP, &[NONE]);
    rule.ignore(FRA_SUPPRESS_PREFIXLEN, &[NONE]);
    rule.ignore(FRA_SPORT_MASK, &[&[0xff; 2]]);
    rule.ignore(FRA_DPORT_MASK, &[&[0xff; 2]]);
    rule.ignore(FRA_TABLE, &[&[0; 4]]);
    let [family, to, from, tos, _, _, _, action, flags @ ..] = rule.header;
    let [a, b, c, d] = (u32::from_ne_bytes(flags) & FIB_RULE_INVERT).to_ne_bytes();
    rule.header = [family, to, from, tos, 0, 0, 0, action, a, b, c, d];
    rule
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}:", self.family, self.priority)?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        match self.transport {
            Some(Transport::Tcp) => f.write_str(" ipproto tcp")?,
            Some(Transport::Udp) => f.write_str(" ipproto udp")?,
            None => {}
        }
        if let Some(port) = self.source_port {
            write!(f, " sport {port}")?;
        }
        if let Some(port) = self.destination_port {
            write!(f, " dport {port}")?;
        }
        match self.action {
            Action::Lookup(TABLE_MAIN) => f.write_str(" lookup main"),
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Goto(target) => write!(f, " goto {target}"),
            Action::Nop => f.write_str(" nop"),
        }?;
        if !self.other.is_empty() {
            f.write_str(" with other selectors or actions")?;
        }
        Ok(())
    }
}

pub(crate) fn address_family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

/// Returns the family of a rule or route; the kernel has no others in the tables that are listed.
pub(crate) fn ip_family(family: AddressFamily) -> IpFamily {
    match family {
        AddressFamily::Inet6 => IpFamily::V6,
        _ => IpFamily::V4,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::rule::RuleFlags;

    use super::*;
    use crate::plan::{PROXY_MARK, RETURN_MARK};

    fn rules() -> Vec<(PolicyRule, &'static str)> {
        let connection = TcpConnection {
            local_port: 80,
            peer: ([10, 0, 0, 2], 40000).into(),
        };
        let to = [0xfd00, 0, 0, 0, 0, 0, 0, 2].into();
        let at = RulePriorities::default();
        vec![
            (
                PolicyRule::exception_to(at, to),
                "IPv6 rule 32762: to fd00::2 lookup main",
            ),
            (
                PolicyRule::exception_for(at, connection),
                "IPv4 rule 32762: to 10.0.0.2 iif lo ipproto tcp sport 80 dport 40000 lookup main",
            ),
            (
                PolicyRule::keep_captured(at, connection, 100),
                "IPv4 rule 32762: to 10.0.0.2 iif lo ipproto tcp sport 80 dport 40000 lookup 100",
            ),
            (
                PolicyRule::for_proxy(at, IpFamily::V4, PROXY_MARK),
                "IPv4 rule 32763: fwmark 0x539/0xfff lookup main",
            ),
            (
                PolicyRule::capture(at, IpFamily::V6, Transport::Udp, Some(53), TABLE),
                "IPv6 rule 32764: iif lo ipproto udp dport 53 lookup 15001",
            ),
            (
                PolicyRule::reroute(at, IpFamily::V4, "vm0", RETURN_MARK, 100),
                "IPv4 rule 32764: fwmark 0x111/0xfff iif vm0 lookup 100",
            ),
            (PolicyRule::resume(at, IpFamily::V6), "IPv6 rule 32765: nop"),
        ]
    }

    #[test]
    fn rules_survive_the_round_trip_and_print_like_ip_rule() {
        for (rule, text) in rules() {
            assert_eq!(PolicyRule::from_body(&body_of(&rule.message())), rule);
            assert_eq!(rule.to_string(), text);
        }
    }

    #[test]
    fn a_rule_with_anything_else_is_not_read_as_its_simple_form() {
        let range = |start, end| RulePortRange { start, end };
        let changes: [&dyn Fn(&mut RuleMessage); 11] = [
            &|m| m.attributes.push(RuleAttribute::Protocol(3.into())),
            &|m| {
                m.attributes
                    .push(RuleAttribute::Source([10, 0, 0, 1].into()))
            },
            &|m| m.header.dst_len = 24,
            &|m| m.header.src_len = 8,
            &|m| m.header.tos = 4,
            &|m| m.header.flags |= RuleFlags::Invert,
            &|m| m.header.action = RuleAction::Prohibit,
            &|m| m.attributes.push(RuleAttribute::Goto(7)),
            &|m| m.attributes.push(RuleAttribute::SuppressPrefixLen(0)),
            &|m| {
                m.attributes
                    .push(RuleAttribute::SourcePortRange(range(80, 90)))
            },
            &|m| {
                m.attributes
                    .push(RuleAttribute::DestinationPortRange(range(1, 65_535)))
            },
        ];
        for change in changes {
            let mut message = rules()[1].0.message();
            change(&mut message);
            let rule = PolicyRule::from_body(&body_of(&message));
            assert!(!rule.other.is_empty(), "{message:?}");
            assert_eq!(rule.exempted_connection(), None, "{message:?}");
            assert!(rule.to_string().ends_with("other selectors or actions"));
        }
    }

    #[test]
    fn what_the_kernel_adds_to_a_rule_changes_nothing() {
        for (rule, _) in rules() {
            let mut message = rule.message();
            message.header.table = 100;
            message.header.flags |= RuleFlags::IifDetached;
            if rule.action == Action::Nop {
                message.attributes.push(RuleAttribute::Table(0));
            }
            let suppressed = RuleAttribute::SuppressPrefixLen(u32::MAX);
            message.attributes.push(suppressed);
            assert_eq!(PolicyRule::from_body(&body_of(&message)), rule);
        }
    }

    #[test]
    fn a_rule_that_cannot_be_parsed_keeps_its_priority() {
        let mut body = body_of(&rules()[4].0.message());
        let name = body.windows(2).position(|w| w == b"lo").unwrap();
        body[name] = 0xff;
        let rule = PolicyRule::from_body(&body);
        assert_eq!((rule.priority, rule.family), (32_764, IpFamily::V6));
        assert_eq!(rule.other, body);
    }

    #[test]
    fn only_rules_for_open_connections_are_exceptions() {
        let exempted = rules()
            .into_iter()
            .filter_map(|(r, _)| r.exempted_connection());
        let connection = TcpConnection {
            local_port: 80,
            peer: ([10, 0, 0, 2], 40_000).into(),
        };
        assert_eq!(exempted.collect::<Vec<_>>(), [connection]);
        let captures = rules().into_iter().map(|(r, _)| r.captures());
        let expected = [false, false, false, false, true, false, false];
        assert_eq!(captures.collect::<Vec<_>>(), expected);
    }
}
