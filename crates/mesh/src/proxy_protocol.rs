//! PROXY protocol version 2: the header sent to an application behind an application tunnel.

use std::net::IpAddr;

use crate::address::ClientAddr;
use crate::admit::ProxyHeader;
use crate::identity::Identity;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Istio's TLV type for the client's SPIFFE id.
const TLV_IDENTITY: u8 = 0xd0;
/// Istio's TLV type for the host name of the destination service.
const TLV_SERVICE: u8 = 0xd1;

/// Encodes the header of one connection.
pub fn header(client: ClientAddr, identity: &Identity, fields: &ProxyHeader) -> Vec<u8> {
    let mut body = Vec::new();
    let family = match (client.ip(), fields.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            body.extend(as_ipv6(from));
            body.extend(as_ipv6(to));
            TCP_OVER_IPV6
        }
    };
    body.extend(client.port().to_be_bytes());
    body.extend(fields.destination.port().to_be_bytes());
    tlv(&mut body, TLV_IDENTITY, identity.to_string().as_bytes());
    if let Some(service) = &fields.service {
        tlv(&mut body, TLV_SERVICE, service.as_bytes());
    }
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX); // names are much shorter
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2_PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

/// Maps IPv4 to IPv6, because both addresses of a header must be of the same family.
fn as_ipv6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn tlv(body: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(0);
    body.push(kind);
    body.extend(length.to_be_bytes());
    body.extend(&value[..usize::from(length)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn header_of(client: &str, destination: &str, service: Option<&str>) -> Vec<u8> {
        let identity = "spiffe://t/ns/a/sa/b".parse().unwrap();
        let fields = ProxyHeader {
            destination: destination.parse().unwrap(),
            service: service.map(Into::into),
        };
        header(
            client.parse::<SocketAddr>().unwrap().into(),
            &identity,
            &fields,
        )
    }

    #[test]
    fn headers_encode_both_families_and_a_mix() {
        let v4 = header_of("10.0.0.1:258", "10.0.0.2:80", None);
        let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x23\x0a\0\0\x01\x0a\0\0\x02\x01\x02\0\x50\
            \xd0\0\x14spiffe://";
        assert_eq!(&v4[..start.len()], start);
        assert_eq!(v4.len(), 16 + 0x23);
        let v6 = header_of("[fd00::1]:1", "[fd00::2]:2", Some("web.example"));
        assert_eq!((v6[13], v6.len()), (0x21, 16 + 36 + 3 + 20 + 3 + 11));
        assert!(v6.ends_with(b"\xd1\0\x0bweb.example"));
        let mixed = header_of("10.0.0.1:1", "[fd00::2]:2", None);
        assert_eq!(&mixed[16..32], b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x01");
    }

    proptest::proptest! {
        #[test]
        fn encoded_lengths_match_the_bytes(
            client: SocketAddr,
            destination: SocketAddr,
            account in "[a-z]{1,300}",
            service in proptest::option::of(".{0,300}"),
        ) {
            let identity = format!("spiffe://t/ns/a/sa/{account}").parse().unwrap();
            let fields = ProxyHeader { destination, service: service.map(Into::into) };
            let header = header(client.into(), &identity, &fields);
            let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
            proptest::prop_assert_eq!(header.len(), 16 + length);
            let mut tlvs = &header[16 + if header[13] == TCP_OVER_IPV4 { 12 } else { 36 }..];
            while let [_, high, low, rest @ ..] = tlvs {
                tlvs = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
            }
            proptest::prop_assert!(tlvs.is_empty());
        }
    }
}
