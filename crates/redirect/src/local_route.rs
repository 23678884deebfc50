//! The local routes of Underpass.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::Parseable;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nft::IpFamily;

use crate::policy_rule::{address_family, ip_family};
use crate::raw::{Content, body_of};

/// Index of the loopback interface in every network namespace.
pub(crate) const LO: u32 = 1;

/// `local DESTINATION dev lo src SOURCE table TABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalRoute {
    /// The source address of the pod's connections, which also determines the family. Unspecified
    /// (`0.0.0.0` or `::`) if the route has none.
    pub source: IpAddr,
    /// The destinations; `None` for all, `default`.
    pub to: Option<IpNet>,
    /// The routing table.
    pub table: u32,
}

impl LocalRoute {
    /// `local default dev lo table TABLE`.
    pub(crate) fn without_source(family: IpFamily, table: u32) -> Self {
        let source = match family {
            IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            source,
            to: None,
            table,
        }
    }

    pub(crate) fn message(self) -> RouteMessage {
        let mut m = RouteMessage::default();
        m.header.address_family = address_family(IpFamily::of(self.source));
        m.header.protocol = RouteProtocol::Static;
        m.header.scope = RouteScope::Host;
        m.header.kind = RouteType::Local;
        let source = route_address(self.source);
        m.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(LO)];
        if let Some(to) = self.to {
            m.header.destination_prefix_length = to.prefix_len();
            let to = RouteAttribute::Destination(route_address(to.addr()));
            m.attributes.push(to);
        }
        if !self.source.is_unspecified() {
            m.attributes.push(RouteAttribute::PrefSource(source));
        }
        m
    }

    /// Decodes the body of a message; `None` if Underpass never writes such a route.
    pub(crate) fn from_body(body: &[u8]) -> Option<Self> {
        let route = Self::from_message(&RouteMessage::parse(body).ok()?);
        let sent = body_of(&route.message());
        let is_known = content(Content::of(&sent)) == content(Content::of(body));
        is_known.then_some(route)
    }

    fn from_message(m: &RouteMessage) -> Self {
        let mut table = u32::from(m.header.table);
        let mut source = Self::without_source(ip_family(m.header.address_family), table).source;
        let mut to = None;
        for a in &m.attributes {
            match a {
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
                RouteAttribute::Destination(RouteAddress::Inet6(a)) => to = Some(IpAddr::V6(*a)),
                RouteAttribute::PrefSource(RouteAddress::Inet(a)) => source = IpAddr::V4(*a),
                RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => source = IpAddr::V6(*a),
                _ => {}
            }
        }
        let length = m.header.destination_prefix_length;
        let to = to.and_then(|to| IpNet::new(to, length).ok());
        Self { source, to, table }
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

/// Attributes (linux/rtnetlink.h).
const RTA_DST: u16 = 1;
const RTA_PRIORITY: u16 = 6;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_PREF: u16 = 20;
/// The metric of an IPv6 route that was added without one (IP6_RT_PRIO_USER).
const DEFAULT_METRIC: u32 = 1024;

/// What a route matches and does, without what the kernel adds.
fn content(mut route: Content<'_>) -> Content<'_> {
    let [family, to, from, tos, _, _, _, kind, ..] = route.header;
    route.header = [family, to, from, tos, 0, 0, 0, kind, 0, 0, 0, 0];
    route.attributes.remove(&RTA_CACHEINFO);
    if family == IpFamily::V6.number() {
        route.ignore(RTA_PRIORITY, &[&DEFAULT_METRIC.to_ne_bytes()]);
        route.ignore(RTA_PREF, &[&[0]]);
    }
    route
}

/// A route in Underpass's routing table that Underpass never writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherRoute(Vec<u8>);

impl OtherRoute {
    /// The routing table of a route, given the body of its message.
    pub(crate) fn table(body: &[u8]) -> u32 {
        let route = Content::of(body);
        route.number(RTA_TABLE).unwrap_or(route.header[4].into())
    }

    /// A route, by the body of the kernel's message.
    pub(crate) fn new(body: Vec<u8>) -> Self {
        Self(body)
    }

    /// The body of the kernel's message.
    pub(crate) fn body(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for OtherRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = Content::of(&self.0);
        let family = ip_family(route.header[0].into());
        let table = Self::table(&self.0);
        let address = route.attributes.get(&RTA_DST).and_then(|bytes| {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or(v6).ok()
        });
        match address {
            Some(to) => write!(f, "{family} route {to}/{} table {table}", route.header[1]),
            None => write!(f, "{family} route default, not Underpass's, table {table}"),
        }
    }
}

impl fmt::Display for LocalRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = IpFamily::of(self.source);
        write!(f, "{family} route local ")?;
        match self.to {
            Some(to) => write!(f, "{to}"),
            None => f.write_str("default"),
        }?;
        f.write_str(" dev lo")?;
        if !self.source.is_unspecified() {
            write!(f, " src {}", self.source)?;
        }
        write!(f, " table {}", self.table)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    #[test]
    fn routes_survive_the_round_trip_and_print_like_ip_route() {
        let v4 = LocalRoute {
            source: [10, 0, 0, 1].into(),
            to: None,
            table: 100,
        };
        let v6 = LocalRoute::without_source(IpFamily::V6, 300);
        let of_network = LocalRoute {
            to: Some("10.0.0.0/8".parse().unwrap()),
            ..v4
        };
        for (route, text) in [
            (v4, "IPv4 route local default dev lo src 10.0.0.1 table 100"),
            (v6, "IPv6 route local default dev lo table 300"),
            (
                of_network,
                "IPv4 route local 10.0.0.0/8 dev lo src 10.0.0.1 table 100",
            ),
        ] {
            assert_eq!(LocalRoute::from_body(&body(&route.message())), Some(route));
            assert_eq!(route.to_string(), text);
        }
    }

    fn body(message: &RouteMessage) -> Vec<u8> {
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        body
    }

    #[test]
    fn other_routes_are_not_decoded() {
        let route = LocalRoute::without_source(IpFamily::V4, 100);
        let mut unicast = route.message();
        unicast.header.kind = RouteType::Unicast;
        let mut narrower = route.message();
        narrower.header.destination_prefix_length = 8;
        let mut elsewhere = route.message();
        elsewhere.attributes.push(RouteAttribute::Oif(LO + 1));
        let mut ahead = route.message();
        ahead.attributes.push(RouteAttribute::Priority(1));
        let mut of_tos = route.message();
        of_tos.header.tos = 4;
        for other in [unicast, narrower, elsewhere, ahead, of_tos] {
            assert_eq!(LocalRoute::from_body(&body(&other)), None);
        }
        let other = LocalRoute::without_source(IpFamily::V6, 300).message();
        let other = OtherRoute::new(body(&other));
        assert_eq!(OtherRoute::table(other.body()), 300);
        let text = "IPv6 route default, not Underpass's, table 300";
        assert_eq!(other.to_string(), text);
    }
}
