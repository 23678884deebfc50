//! What conntrack knows of a connection.

use std::net::SocketAddr;

use crate::attr::{Reader, Writer};
use crate::batch::{NLM_F_ACK, NLM_F_REQUEST, message};
use crate::netlink::Budget;
use crate::object::{IpFamily, address, octets};
use crate::socket::{NftError, Socket};

/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET (linux/netfilter/nfnetlink_conntrack.h).
const CT_GET: u16 = 1 << 8 | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// Source and destination of a family within CTA_TUPLE_IP.
const CTA_IP: [(u16, u16); 2] = [(1, 2), (3, 4)];
const IPPROTO_TCP: u8 = 6;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: (u16, u16) = (2, 3);
/// The destination was translated (linux/netfilter/nf_conntrack_common.h).
const IPS_DST_NAT: u32 = 1 << 5;

/// A connection that conntrack knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackedConnection {
    /// Whether its destination was rewritten.
    pub is_redirected: bool,
    /// Its mark.
    pub mark: u32,
    /// The source of its first packet.
    pub opened_by: SocketAddr,
}

/// Looks up a TCP connection by a packet of either direction; `None` if conntrack does not know it.
///
/// # Errors
/// [`NftError::Socket`] with the kernel's error: EINVAL if it lacks nf_conntrack_netlink.
pub fn tracked_connection(
    socket: &Socket,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<Option<TrackedConnection>, NftError> {
    let family = IpFamily::of(from.ip());
    let tuple = Writer::default().nested(CTA_TUPLE_ORIG, tuple(from, to));
    let request = message(
        CT_GET,
        NLM_F_REQUEST | NLM_F_ACK,
        1,
        [family.number(), 0, 0, 0],
        &tuple,
    );
    let mut found = None;
    let result = socket.0.request(&request, &mut Budget::default(), |m| {
        found = m.body.get(4..).and_then(|m| decode(family, Reader(m)));
        Ok(())
    });
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(NftError::Socket(e)),
        Ok(()) => Ok(found),
    }
}

fn tuple(from: SocketAddr, to: SocketAddr) -> Writer {
    let (source, destination) = CTA_IP[usize::from(from.is_ipv6())];
    let ip = Writer::default()
        .bytes(source, &octets(from.ip()))
        .bytes(destination, &octets(to.ip()));
    let ports = Writer::default()
        .bytes(CTA_PROTO_NUM, &[IPPROTO_TCP])
        .bytes(CTA_PROTO_PORTS.0, &from.port().to_be_bytes())
        .bytes(CTA_PROTO_PORTS.1, &to.port().to_be_bytes());
    Writer::default()
        .nested(CTA_TUPLE_IP, ip)
        .nested(CTA_TUPLE_PROTO, ports)
}

fn decode(family: IpFamily, m: Reader<'_>) -> Option<TrackedConnection> {
    let original = m.nested(CTA_TUPLE_ORIG)?;
    let (source, _) = CTA_IP[usize::from(family == IpFamily::V6)];
    let ip = address(original.nested(CTA_TUPLE_IP)?.find(source)?)?;
    let port = original.nested(CTA_TUPLE_PROTO)?.find(CTA_PROTO_PORTS.0)?;
    Some(TrackedConnection {
        is_redirected: m.be32(CTA_STATUS)? & IPS_DST_NAT != 0,
        mark: m.be32(CTA_MARK).unwrap_or(0),
        opened_by: SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_decoded_with_status_mark_and_opener() {
        for (from, to) in [
            ("10.0.0.1:40000", "10.0.0.2:80"),
            ("[fd00::1]:40000", "[fd00::2]:80"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let m = Writer::default()
                .nested(CTA_TUPLE_ORIG, tuple(from, to))
                .be32(CTA_STATUS, IPS_DST_NAT | 1)
                .be32(CTA_MARK, 0x111);
            let expected = TrackedConnection {
                is_redirected: true,
                mark: 0x111,
                opened_by: from,
            };
            let family = IpFamily::of(from.ip());
            assert_eq!(decode(family, Reader(&m.0)), Some(expected));
            for end in 0..m.0.len() {
                let _ = decode(family, Reader(&m.0[..end]));
            }
        }
    }
}
