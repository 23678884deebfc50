//! Probes by which an agent verifies that a pod's connections reach the node's proxy.
//!
//! The agent connects from the pod's network namespace, or from the node's, and sends a line with a
//! token. A proxy that receives the connection answers with the same token and the pod's uid. There
//! are three kinds:
//!
//! * *captured*: to a reserved address, like a connection of an application. If capture is broken,
//!   the guard refuses the connection, or it times out: the addresses are link-local and unused.
//! * *inbound*: from the node to a reserved port of the pod, like a connection of another pod.
//! * *direct*: from loopback to one of the proxy's listeners on the pod's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 128);
const V6: Ipv6Addr = Ipv6Addr::new(
    0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe,
);
const PORT: u16 = 15099;

/// Maximum length of the line with the token, in bytes, including the newline.
pub const MAX_PROBE_LINE: usize = 64;

/// The destination of a captured probe, for this address family.
pub fn destination(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { V4.into() } else { V6.into() };
    SocketAddr::new(ip, PORT)
}

/// Whether a connection is a captured probe.
pub fn is_probe(orig_dst: crate::OrigDst) -> bool {
    orig_dst.0 == destination(orig_dst.ip())
}

/// The destination of an inbound probe of a pod with this address.
pub fn inbound_destination(own: IpAddr) -> SocketAddr {
    SocketAddr::new(own, PORT)
}

/// Whether a plaintext connection to a pod is an inbound probe. Any client may send one, and learns
/// the pod's uid.
pub fn is_inbound_probe(orig_dst: crate::OrigDst) -> bool {
    orig_dst.port() == PORT
}

/// The source address of a direct probe.
pub fn source(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    }
}

/// Whether a connection to a listener of the proxy is a direct probe: its source is loopback and
/// its destination is not.
///
/// Applications do not connect like that by accident: for one of the pod's own addresses, the
/// kernel chooses that address as the source. Connections from elsewhere cannot: the kernel drops
/// incoming packets with a loopback source.
pub fn is_direct_probe(peer: SocketAddr, local: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback() && !local.ip().to_canonical().is_loopback()
}

/// The proxy's answer to a token.
pub fn answer(token: &str, uid: &str) -> String {
    format!("underpass {token} {uid}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_probes_differ_from_application_connections() {
        let address = |a: &str| a.parse::<SocketAddr>().unwrap();
        assert!(is_direct_probe(
            address("127.0.0.1:40000"),
            address("10.0.0.1:15006")
        ));
        assert!(is_direct_probe(
            address("[::ffff:127.0.0.1]:40000"),
            address("[::ffff:10.0.0.1]:15006")
        ));
        assert!(is_direct_probe(
            address("[::1]:40000"),
            address("[fd00::1]:15006")
        ));
        assert!(
            !is_direct_probe(address("10.0.0.1:40000"), address("10.0.0.1:15006")),
            "its own address"
        );
        assert!(
            !is_direct_probe(address("127.0.0.1:40000"), address("127.0.0.1:15006")),
            "loopback"
        );
        assert!(!is_direct_probe(
            address("[::1]:40000"),
            address("[::1]:15006")
        ));
        assert!(
            !is_direct_probe(address("10.0.0.2:40000"), address("10.0.0.1:15006")),
            "another client"
        );
    }
}
