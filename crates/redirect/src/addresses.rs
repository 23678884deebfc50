//! The addresses of the calling thread's network namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nft::netlink::{Budget, NetlinkSocket, Protocol};

use crate::error::{RedirectError, failed};
use crate::netlink::{encode, request_encoded};

/// Returns those of the given addresses that no interface of the namespace has, in their order.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn missing_addresses(addresses: &[IpAddr]) -> Result<Vec<IpAddr>, RedirectError> {
    let list = || {
        let socket = NetlinkSocket::open(Protocol::Route)?;
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let request = encode(message, NLM_F_REQUEST | NLM_F_DUMP);
        request_encoded(&socket, &request, Budget::default(), |answer| {
            let RouteNetlinkMessage::NewAddress(m) = answer else {
                return None;
            };
            let found = local_address(&m)?;
            addresses.contains(&found).then_some(found)
        })
    };
    let present = list().map_err(failed("cannot list addresses"))?;
    let missing = addresses.iter().filter(|a| !present.contains(a));
    Ok(missing.copied().collect())
}

/// The address of the interface itself: on a point-to-point link, `IFA_ADDRESS` is the peer's.
pub(crate) fn local_address(m: &AddressMessage) -> Option<IpAddr> {
    let local = m.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        m.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_interfaces_and_not_its_peers() {
        let (own, peer) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let message = |attributes: &[AddressAttribute]| {
            let mut m = AddressMessage::default();
            m.attributes = attributes.to_vec();
            m
        };
        let (local, address) = (
            AddressAttribute::Local(own),
            AddressAttribute::Address(peer),
        );
        let both = message(&[address.clone(), local]);
        assert_eq!(local_address(&both), Some(own));
        assert_eq!(local_address(&message(&[address])), Some(peer));
        assert_eq!(local_address(&message(&[])), None);
    }

    /// Listing needs no privilege.
    #[test]
    fn addresses_of_no_interface_are_missing() {
        let documentation = IpAddr::from([192, 0, 2, 77]);
        let present = IpAddr::from([127, 0, 0, 1]);
        let missing = missing_addresses(&[documentation, present]).unwrap();
        assert_eq!(missing, [documentation]);
        assert_eq!(missing_addresses(&[]).unwrap(), [] as [IpAddr; 0]);
    }
}
