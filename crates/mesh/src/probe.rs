//! How an agent asks the proxy of its node, from within a pod, whether the pod's connections still arrive there.
//!
//! The agent connects from the pod's namespace, sends a line with a token, and a proxy that gets the connection answers
//! with the same token and the pod's uid. There are two kinds of probes:
//!
//! * *captured*: to a reserved address, as an application would connect. If capture is broken the connection is refused
//!   by the guard, or ends in nothing: the addresses are link-local and nobody has them.
//! * *direct*: to one of the proxy's listeners on the pod's own address, from loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 128);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe);
const PORT: u16 = 15099;

/// A token is not longer than this, in bytes, with the line's end.
pub const LONGEST_QUESTION: usize = 64;

/// Where a captured probe connects to, for a pod that has an address of this family.
pub fn destination(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { V4.into() } else { V6.into() };
    SocketAddr::new(ip, PORT)
}

/// Whether a connection is a captured probe.
pub fn is_probe(orig_dst: crate::OrigDst) -> bool {
    orig_dst.0 == destination(orig_dst.ip())
}

/// Where a direct probe comes from.
pub fn source(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Whether a connection to a listener of the proxy is a direct probe: it comes from loopback and goes to an address that is
/// not.
///
/// No application connects like that by accident: to one of the pod's addresses the kernel connects from that address. And
/// nobody elsewhere can: packets that come in with a loopback source are dropped.
pub fn is_direct(peer: SocketAddr, local: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback() && !local.ip().to_canonical().is_loopback()
}

/// What a proxy answers to a token.
pub fn answer(token: &str, uid: &str) -> String {
    format!("underpass {token} {uid}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_probe_is_told_from_what_an_application_does() {
        let address = |a: &str| a.parse::<SocketAddr>().unwrap();
        assert!(is_direct(address("127.0.0.1:40000"), address("10.0.0.1:15006")));
        assert!(is_direct(address("[::ffff:127.0.0.1]:40000"), address("[::ffff:10.0.0.1]:15006")));
        assert!(is_direct(address("[::1]:40000"), address("[fd00::1]:15006")));
        assert!(!is_direct(address("10.0.0.1:40000"), address("10.0.0.1:15006")), "its own address");
        assert!(!is_direct(address("127.0.0.1:40000"), address("127.0.0.1:15006")), "loopback");
        assert!(!is_direct(address("[::1]:40000"), address("[::1]:15006")));
        assert!(!is_direct(address("10.0.0.2:40000"), address("10.0.0.1:15006")), "somebody else");
    }
}
