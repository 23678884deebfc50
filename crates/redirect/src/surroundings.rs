//! What a namespace contains besides Underpass's redirection, as far as a plan depends on it: its
//! addresses, interfaces and ip rules, no matter which process added them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::addresses::local_address;
use crate::error::{RedirectError, failed};
use crate::links::Link;
use crate::netlink::request;
use crate::plan::{InterfaceName, Network, Plan};
use crate::routing::Routing;
use crate::rule_priorities::RulePriorities;

/// The addresses and interfaces of a namespace, and where Underpass's ip rules belong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Addresses that connections can use, without those of loopback and link-local ones of IPv6.
    /// Those that the kernel chooses for destinations beyond the links come first.
    pub addresses: Vec<IpAddr>,
    /// Names of the interfaces, as far as [`InterfaceName`] covers them.
    pub interfaces: BTreeSet<InterfaceName>,
    /// The networks that the interfaces are connected to.
    pub networks: BTreeSet<Network>,
    /// The priorities for Underpass's ip rules.
    pub priorities: RulePriorities,
}

impl Surroundings {
    /// Reads the addresses of the calling thread's namespace, given its interfaces and the
    /// priorities for its ip rules.
    pub(crate) fn read(
        routing: &Routing,
        links: &[Link],
        priorities: RulePriorities,
    ) -> Result<Self, RedirectError> {
        let get = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = request(&routing.0, get, NLM_F_REQUEST | NLM_F_DUMP);
        let answers = answers.map_err(failed("cannot list addresses"))?;
        let listed = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(m) => {
                let net = IpNet::new(usable_address(m)?, m.header.prefix_len).ok()?;
                Some((m.header.index, net, has_route(m)))
            }
            _ => None,
        });
        let listed: Vec<(u32, IpNet, bool)> = listed.collect();
        let mut addresses: Vec<IpAddr> = listed.iter().map(|(_, net, _)| net.addr()).collect();
        // Stable, so that all others keep their order.
        let preferred = preferred_sources();
        addresses.sort_by_key(|a| !preferred.contains(a));
        let named = links
            .iter()
            .filter_map(|link| Some((link, link.name.parse().ok()?)));
        let named: Vec<(&Link, InterfaceName)> = named.collect();
        let bridges = named.iter().filter(|(link, _)| link.is_bridge());
        let bridges: BTreeMap<u32, &InterfaceName> =
            bridges.map(|(link, name)| (link.index, name)).collect();
        let networks = listed.iter().map(|(index, address, has_route)| {
            let bridge = bridges.get(index).map(|name| (*name).clone());
            let (address, has_route) = (*address, *has_route || bridge.is_some());
            has_route.then_some(Network { address, bridge })
        });
        Ok(Self {
            networks: networks.flatten().collect(),
            interfaces: named.into_iter().map(|(_, name)| name).collect(),
            addresses,
            priorities,
        })
    }
}

impl Plan {
    /// The plan as it is rendered in a namespace. All of its addresses are the pod's own, and their
    /// families are captured: a cluster's network may add an interface of a family that the pod's
    /// addresses do not have. Patterns of interfaces are replaced by the interfaces that match.
    pub(crate) fn within(&self, surroundings: &Surroundings) -> Self {
        let mut plan = self.clone();
        plan.addresses = self.addresses_within(surroundings);
        let (patterns, mut names): (BTreeSet<_>, BTreeSet<_>) = plan
            .reroute_interfaces
            .into_iter()
            .partition(InterfaceName::is_pattern);
        let is_wanted = |name: &&InterfaceName| patterns.iter().any(|p| p.matches(name));
        names.extend(surroundings.interfaces.iter().filter(is_wanted).cloned());
        plan.reroute_interfaces = names;
        // A bridge with one of the pod's own addresses leads out of the pod.
        let networks = surroundings.networks.iter().cloned().map(|mut network| {
            let leads_out = self.addresses.contains(&network.address.addr());
            network.bridge.take_if(|_| leads_out);
            network
        });
        plan.networks = networks.collect();
        plan.priorities = surroundings.priorities;
        plan
    }

    /// The addresses of the plan, followed by all others of a namespace.
    pub fn addresses_within(&self, surroundings: &Surroundings) -> Vec<IpAddr> {
        let mut addresses = self.addresses.clone();
        let mut known: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let found = surroundings.addresses.iter().copied();
        addresses.extend(found.filter(|a| known.insert(*a)));
        addresses
    }
}

fn usable_address(m: &AddressMessage) -> Option<IpAddr> {
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if m.header.flags.intersects(unusable) || m.header.scope == AddressScope::Host {
        return None;
    }
    local_address(m).filter(|address| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    })
}

/// Whether the kernel routes the network of an address by that address: not if another one is in
/// the same network, or if the network's routes are added by hand.
fn has_route(m: &AddressMessage) -> bool {
    let flags = m.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let without = AddressFlags::Noprefixroute;
    !m.header.flags.contains(AddressHeaderFlags::Secondary)
        && !flags.is_some_and(|f| f.intersects(without))
}

/// The source addresses of connections to destinations beyond the links, one per family with a
/// default route. Connecting a datagram socket sends nothing.
fn preferred_sources() -> Vec<IpAddr> {
    /// Destinations for documentation (RFC 5737, RFC 3849).
    const BEYOND: [(IpAddr, IpAddr); 2] = [
        (
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        ),
        (
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        ),
    ];
    let source = |(any, to): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    BEYOND.into_iter().filter_map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(addresses: &[&str], interfaces: &[&str]) -> Surroundings {
        Surroundings {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            interfaces: interfaces.iter().map(|i| i.parse().unwrap()).collect(),
            ..Surroundings::default()
        }
    }

    #[test]
    fn a_bridge_with_an_address_of_the_pod_is_not_within_it() {
        let plan = Plan::for_pod(["10.9.0.1".parse().unwrap()]);
        let bridge = |name: &str, address: &str| Network {
            address: address.parse().unwrap(),
            bridge: name.parse().ok(),
        };
        let bridges = [
            bridge("br0", "10.9.0.1/24"),
            bridge("docker0", "172.17.0.1/16"),
        ];
        let found = Surroundings {
            networks: bridges.into(),
            ..Surroundings::default()
        };
        let (docker0, net) = ("docker0".parse().unwrap(), "172.17.0.0/16".parse().unwrap());
        let plan = plan.within(&found);
        assert_eq!(Vec::from_iter(plan.bridges()), [(&docker0, net)]);
    }

    #[test]
    fn all_addresses_of_the_namespace_are_the_pods_and_its_own_come_first() {
        let plan = Plan::for_pod(["fd00::1".parse().unwrap()]);
        let found = surroundings(&["169.254.172.2", "fd00::1", "10.9.0.1"], &[]);
        let expected = ["fd00::1", "169.254.172.2", "10.9.0.1"].map(|a| a.parse().unwrap());
        assert_eq!(plan.within(&found), Plan::for_pod(expected));
        assert_eq!(plan.within(&Surroundings::default()), plan);
    }

    #[test]
    fn patterns_select_the_interfaces_that_exist() {
        let mut plan = Plan::for_pod([]);
        let names = ["vm0", "br-*"].map(|n| n.parse().unwrap());
        plan.reroute_interfaces = names.into();
        let found = surroundings(&[], &["lo", "eth0", "br-1a2b", "br-", "bridge0"]);
        let expected = ["br-", "br-1a2b", "vm0"].map(|n| n.parse().unwrap());
        assert_eq!(plan.within(&found).reroute_interfaces, expected.into());
    }
}
