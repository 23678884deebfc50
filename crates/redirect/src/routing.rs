//! Policy routing over netlink: our ip rules and local routes, written, read back and removed.
//!
//! One blocking socket and netlink-packet-route's messages; the plugin has no runtime to run anything else on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use nix::sys::socket::{
    AddressFamily as SocketFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

use crate::plan::Mark;
use crate::routed::{PREF_CAPTURE, PREF_EXCEPTION, PREF_PROXY};

const TABLE_MAIN: u32 = 254;
/// The loopback interface has this index in every network namespace.
const LO: u32 = 1;

/// One ip rule of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// Family: IPv6 or IPv4.
    pub v6: bool,
    /// Its place in the list.
    pub priority: u32,
    /// `to ADDRESS`.
    pub to: Option<IpAddr>,
    /// `fwmark VALUE/MASK`.
    pub mark: Option<(u32, u32)>,
    /// `iif NAME`; `lo` means packets of the namespace's own sockets.
    pub iif: Option<String>,
    /// `ipproto PROTOCOL`.
    pub transport: Option<Transport>,
    /// `sport PORT`.
    pub source_port: Option<u16>,
    /// `dport PORT`.
    pub destination_port: Option<u16>,
    /// `lookup TABLE`.
    pub table: u32,
}

/// A transport protocol that a rule is for.
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
    /// `to ADDRESS lookup main`: replies to probes are not captured.
    pub(crate) fn exception_to(to: IpAddr) -> Self {
        Self { to: Some(to), ..Self::blank(to.is_ipv6(), PREF_EXCEPTION, TABLE_MAIN) }
    }

    /// `iif lo ipproto tcp sport X dport Y to PEER lookup main`: a connection that was open before the pod joined.
    ///
    /// Every rule of ours with a protocol or a port says `iif lo`. One that does not makes source validation compare
    /// ports, too (fib_rule_requires_fldissect), and then it finds the capturing rule: every peer would be a martian.
    pub(crate) fn exception_for(connection: crate::sockets::Connection) -> Self {
        Self { table: TABLE_MAIN, ..Self::captured(connection, TABLE_MAIN) }
    }

    /// `iif lo ipproto tcp sport X dport Y to PEER lookup TABLE`: a connection that stays captured after the pod left.
    pub(crate) fn captured(connection: crate::sockets::Connection, table: u32) -> Self {
        Self {
            to: Some(connection.peer.ip()),
            iif: Some("lo".to_owned()),
            transport: Some(Transport::Tcp),
            source_port: Some(connection.local_port),
            destination_port: Some(connection.peer.port()),
            ..Self::blank(connection.peer.is_ipv6(), PREF_EXCEPTION, table)
        }
    }

    /// `fwmark MARK lookup main`: the proxy's own packets.
    pub(crate) fn for_mark(v6: bool, mark: Mark) -> Self {
        Self { mark: Some((mark.value, mark.mask)), ..Self::blank(v6, PREF_PROXY, TABLE_MAIN) }
    }

    /// `iif lo ipproto PROTOCOL [dport PORT] lookup TABLE`: what the pod's own sockets send.
    ///
    /// Without `iif lo` the packets of peers would be martians: source validation would find the local route.
    pub(crate) fn capture(v6: bool, transport: Transport, port: Option<u16>, table: u32) -> Self {
        let rule = Self::blank(v6, PREF_CAPTURE, table);
        Self { iif: Some("lo".to_owned()), transport: Some(transport), destination_port: port, ..rule }
    }

    /// `iif NAME fwmark MARK lookup TABLE`: connections that come in by an interface and are taken for the pod's own.
    pub(crate) fn reroute(v6: bool, interface: &str, mark: Mark, table: u32) -> Self {
        let rule = Self::blank(v6, PREF_CAPTURE, table);
        Self { iif: Some(interface.to_owned()), mark: Some((mark.value, mark.mask)), ..rule }
    }

    /// Whether this is an exception for one open connection.
    pub(crate) fn is_connection_exception(&self) -> bool {
        self.priority == PREF_EXCEPTION && self.source_port.is_some() && self.table == TABLE_MAIN
    }

    /// Whether this captures what the pod's own sockets send.
    pub(crate) fn captures(&self) -> bool {
        self.priority == PREF_CAPTURE && self.iif.as_deref() == Some("lo")
    }

    fn blank(v6: bool, priority: u32, table: u32) -> Self {
        Self {
            v6,
            priority,
            to: None,
            mark: None,
            iif: None,
            transport: None,
            source_port: None,
            destination_port: None,
            table,
        }
    }

    fn message(&self) -> RuleMessage {
        let mut m = RuleMessage::default();
        m.header.family = family(self.v6);
        m.header.action = RuleAction::ToTable;
        let a = &mut m.attributes;
        a.push(RuleAttribute::Priority(self.priority));
        a.push(RuleAttribute::Table(self.table));
        if let Some(to) = self.to {
            m.header.dst_len = if self.v6 { 128 } else { 32 };
            a.push(RuleAttribute::Destination(to));
        }
        if let Some((value, mask)) = self.mark {
            a.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
        }
        a.extend(self.iif.clone().map(RuleAttribute::Iifname));
        a.extend(self.transport.map(|t| RuleAttribute::IpProtocol(t.number())));
        let port = |p| RulePortRange { start: p, end: p };
        a.extend(self.source_port.map(|p| RuleAttribute::SourcePortRange(port(p))));
        a.extend(self.destination_port.map(|p| RuleAttribute::DestinationPortRange(port(p))));
        m
    }

    /// `None` for a rule at one of our priorities that says something we never say.
    fn from_message(m: &RuleMessage) -> Option<Self> {
        let mut rule = Self::blank(m.header.family == AddressFamily::Inet6, 0, u32::from(m.header.table));
        for a in &m.attributes {
            match a {
                RuleAttribute::Priority(p) => rule.priority = *p,
                RuleAttribute::Table(t) => rule.table = *t,
                RuleAttribute::Destination(to) => rule.to = Some(*to),
                RuleAttribute::FwMark(v) => rule.mark = Some((*v, rule.mark.map_or(u32::MAX, |(_, m)| m))),
                RuleAttribute::FwMask(m) => rule.mark = Some((rule.mark.map_or(0, |(v, _)| v), *m)),
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::IpProtocol(IpProtocol::Tcp) => rule.transport = Some(Transport::Tcp),
                RuleAttribute::IpProtocol(IpProtocol::Udp) => rule.transport = Some(Transport::Udp),
                RuleAttribute::IpProtocol(_) => return None,
                RuleAttribute::SourcePortRange(r) => rule.source_port = Some(r.start),
                RuleAttribute::DestinationPortRange(r) => rule.destination_port = Some(r.start),
                RuleAttribute::Source(_) | RuleAttribute::Oifname(_) | RuleAttribute::UidRange(_) => return None,
                _ => {}
            }
        }
        Some(rule)
    }
}

impl std::fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rule {}:", if self.v6 { "IPv6" } else { "IPv4" }, self.priority)?;
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
        match self.table {
            TABLE_MAIN => f.write_str(" lookup main"),
            table => write!(f, " lookup {table}"),
        }
    }
}

/// `local default dev lo src SOURCE table TABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalRoute {
    /// The source address that the pod's connections get; says the family, too. Unspecified (`0.0.0.0` or `::`) when the
    /// route has none.
    pub source: IpAddr,
    /// The routing table.
    pub table: u32,
}

impl LocalRoute {
    /// `local default dev lo table TABLE`.
    pub(crate) fn without_source(v6: bool, table: u32) -> Self {
        let source = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self { source, table }
    }

    fn message(self) -> RouteMessage {
        let mut m = RouteMessage::default();
        m.header.address_family = family(self.source.is_ipv6());
        m.header.protocol = RouteProtocol::Static;
        m.header.scope = RouteScope::Host;
        m.header.kind = RouteType::Local;
        let source = match self.source {
            IpAddr::V4(a) => RouteAddress::Inet(a),
            IpAddr::V6(a) => RouteAddress::Inet6(a),
        };
        m.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(LO)];
        if !self.source.is_unspecified() {
            m.attributes.push(RouteAttribute::PrefSource(source));
        }
        m
    }

    fn from_message(m: &RouteMessage) -> Option<Self> {
        if m.header.kind != RouteType::Local || m.header.destination_prefix_length != 0 {
            return None;
        }
        let v6 = m.header.address_family == AddressFamily::Inet6;
        let mut table = u32::from(m.header.table);
        let mut source = Self::without_source(v6, table).source;
        for a in &m.attributes {
            match a {
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::PrefSource(RouteAddress::Inet(a)) => source = IpAddr::V4(*a),
                RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => source = IpAddr::V6(*a),
                RouteAttribute::Oif(index) if *index != LO => return None,
                _ => {}
            }
        }
        Some(Self { source, table })
    }
}

impl std::fmt::Display for LocalRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.source.is_ipv6() { "IPv6" } else { "IPv4" };
        write!(f, "{family} route local default dev lo")?;
        if !self.source.is_unspecified() {
            write!(f, " src {}", self.source)?;
        }
        write!(f, " table {}", self.table)
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// A routing socket in the namespace that the thread was in when it was opened.
#[derive(Debug)]
pub(crate) struct Routing(OwnedFd);

impl Routing {
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        let fd = socket(SocketFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
        Ok(Self(fd))
    }

    /// Brings the loopback interface up; captured packets travel over it.
    pub(crate) fn raise_loopback(&self) -> io::Result<()> {
        use netlink_packet_route::link::{LinkFlags, LinkMessage};
        let mut m = LinkMessage::default();
        m.header.index = LO;
        m.header.flags = LinkFlags::Up;
        m.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(m), NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// Adds a rule; one that is there already is fine.
    pub(crate) fn add_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        tolerate(self.request(RouteNetlinkMessage::NewRule(rule.message()), flags), libc::EEXIST)
    }

    /// Deletes a rule; one that is gone already is fine.
    pub(crate) fn delete_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        let gone = self.request(RouteNetlinkMessage::DelRule(rule.message()), NLM_F_REQUEST | NLM_F_ACK);
        tolerate(gone, libc::ENOENT)
    }

    /// Adds a route, or replaces the one with another source address.
    pub(crate) fn add_route(&self, route: LocalRoute) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewRoute(route.message()), flags).map(drop)
    }

    /// Deletes a route; one that is gone already is fine.
    pub(crate) fn delete_route(&self, route: LocalRoute) -> io::Result<()> {
        let gone = self.request(RouteNetlinkMessage::DelRoute(route.message()), NLM_F_REQUEST | NLM_F_ACK);
        tolerate(gone, libc::ESRCH)
    }

    /// The rules at our priorities, both families.
    pub(crate) fn rules(&self) -> io::Result<Vec<PolicyRule>> {
        let mut out = Vec::new();
        for v6 in [false, true] {
            let mut m = RuleMessage::default();
            m.header.family = family(v6);
            for answer in self.request(RouteNetlinkMessage::GetRule(m), NLM_F_REQUEST | NLM_F_DUMP)? {
                if let RouteNetlinkMessage::NewRule(m) = answer
                    && let Some(rule) = PolicyRule::from_message(&m)
                    && (PREF_EXCEPTION..=PREF_CAPTURE).contains(&rule.priority)
                {
                    out.push(rule);
                }
            }
        }
        out.sort();
        Ok(out)
    }

    /// The local default routes outside the kernel's own table, both families.
    pub(crate) fn local_routes(&self, table: u32) -> io::Result<Vec<LocalRoute>> {
        let mut out = Vec::new();
        for v6 in [false, true] {
            let mut m = RouteMessage::default();
            m.header.address_family = family(v6);
            for answer in self.request(RouteNetlinkMessage::GetRoute(m), NLM_F_REQUEST | NLM_F_DUMP)? {
                if let RouteNetlinkMessage::NewRoute(m) = answer
                    && let Some(route) = LocalRoute::from_message(&m)
                    && route.table == table
                {
                    out.push(route);
                }
            }
        }
        out.sort();
        Ok(out)
    }

    /// Sends one request and collects the answers until the acknowledgement or the end of the dump.
    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = flags;
        packet.header.sequence_number = 1;
        packet.finalize();
        let mut buffer = vec![0u8; packet.buffer_len()];
        packet.serialize(&mut buffer);
        send(self.0.as_raw_fd(), &buffer, MsgFlags::empty())?;

        let mut out = Vec::new();
        let mut received = vec![0u8; 64 * 1024];
        loop {
            let n = recv(self.0.as_raw_fd(), &mut received, MsgFlags::empty())?;
            let mut rest = received.get(..n).unwrap_or_default();
            while !rest.is_empty() {
                let m = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                match m.payload {
                    NetlinkPayload::Done(_) => return Ok(out),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(out),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(inner) => out.push(inner),
                    _ => {}
                }
                let len = (m.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(len..).unwrap_or_default();
            }
        }
    }
}

fn tolerate(result: io::Result<Vec<RouteNetlinkMessage>>, errno: i32) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(errno) => Ok(()),
        other => other.map(drop),
    }
}
