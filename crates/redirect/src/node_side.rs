//! The way from the node to a pod: whether the node's packets to an address of the pod go through
//! the pod's own interface, so that the node can probe it as another pod would connect.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nft::{IpFamily, octets};

use crate::error::{RedirectError, failed};
use crate::policy_rule::address_family;
use crate::raw::{Content, attributes};
use crate::routing::Routing;

/// Lengths of `struct ifaddrmsg` and of `struct ifinfomsg`.
const ADDRESS_HEADER: usize = 8;
const LINK_HEADER: usize = 16;

/// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// linux/if_link.h
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
/// linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;

/// An interface of a pod whose other end is in another network namespace (veth, netkit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodInterface {
    /// Its index in the pod.
    index: u32,
    /// The index of the other end, in the namespace of that end.
    peer: u32,
}

impl PodInterface {
    /// Finds the interface with an address in the network namespace of the calling thread; `None`
    /// if there is none, or it has no other end.
    ///
    /// # Errors
    /// [`RedirectError`] if the kernel does not answer.
    pub fn with_address(address: IpAddr) -> Result<Option<Self>, RedirectError> {
        let routing = Routing::open()?;
        let mut m = AddressMessage::default();
        m.header.family = address_family(IpFamily::of(address));
        let listed = routing.dump(RouteNetlinkMessage::GetAddress(m));
        let bytes = octets(address);
        let has_address = |body: &Vec<u8>| {
            let of_interface = attributes(body.get(ADDRESS_HEADER..).unwrap_or_default());
            let local = of_interface
                .get(&IFA_LOCAL)
                .or(of_interface.get(&IFA_ADDRESS));
            local == Some(&bytes.as_slice())
        };
        let listed = listed.map_err(failed("cannot list addresses"))?;
        let found = listed.iter().find(|body| has_address(body));
        let Some(index) = found.and_then(|body| number(body.get(4..8)?)) else {
            return Ok(None);
        };
        let link = Link::get(&routing, index)?;
        Ok(link.peer.map(|peer| Self { index, peer }))
    }

    /// Whether packets to an address of the pod, from the network namespace of the calling thread,
    /// leave through the other end of this interface, or through a bridge that it is a port of.
    ///
    /// # Errors
    /// [`RedirectError`] if the kernel does not answer.
    pub fn is_route_to(self, address: IpAddr) -> Result<bool, RedirectError> {
        let routing = Routing::open()?;
        let mut m = RouteMessage::default();
        m.header.address_family = address_family(IpFamily::of(address));
        m.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        let destination = match address {
            IpAddr::V4(a) => RouteAddress::Inet(a),
            IpAddr::V6(a) => RouteAddress::Inet6(a),
        };
        m.attributes.push(RouteAttribute::Destination(destination));
        let request = RouteNetlinkMessage::GetRoute(m);
        // Without a route the kernel answers with an error.
        let Ok(routes) = routing.get(request) else {
            return Ok(false);
        };
        let Some(route) = routes.first().map(|body| Content::of(body)) else {
            return Ok(false);
        };
        let by_gateway = [RTA_GATEWAY, RTA_VIA]
            .iter()
            .any(|kind| route.attributes.contains_key(kind));
        let Some(output) = route.number(RTA_OIF).filter(|_| !by_gateway) else {
            return Ok(false);
        };
        // An interface of another pod may have the same index as the other end.
        let link = Link::get(&routing, self.peer)?;
        Ok(link.peer == Some(self.index) && (output == self.peer || link.bridge == Some(output)))
    }
}

/// How an interface is attached to others.
#[derive(Debug, Default)]
struct Link {
    peer: Option<u32>,
    bridge: Option<u32>,
}

impl Link {
    /// Reads an interface; one that does not exist is attached to nothing.
    fn get(routing: &Routing, index: u32) -> Result<Self, RedirectError> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        let request = RouteNetlinkMessage::GetLink(m);
        let Ok(bodies) = routing.get(request) else {
            return Ok(Self::default());
        };
        let Some(body) = bodies.first() else {
            return Ok(Self::default());
        };
        let link = attributes(body.get(LINK_HEADER..).unwrap_or_default());
        let of_kind = |kind| link.get(&kind).and_then(|bytes| number(bytes));
        Ok(Self {
            peer: of_kind(IFLA_LINK),
            bridge: of_kind(IFLA_MASTER),
        })
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
