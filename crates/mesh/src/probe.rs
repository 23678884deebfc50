//! How an agent asks the proxy of its node, from within a pod, whether the pod's connections still arrive there.
//!
//! The agent connects from the pod's namespace to a reserved address, as an application would, and sends a line with a
//! token; a proxy that gets the connection answers with the same token and the pod's uid. If capture is broken the
//! connection is refused by the guard, or ends in nothing: the addresses are link-local and nobody has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 128);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe);
const PORT: u16 = 15099;

/// A token is not longer than this, in bytes, with the line's end.
pub const LONGEST_QUESTION: usize = 64;

/// Where to connect to, for a pod that has an address of this family.
pub fn destination(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { V4.into() } else { V6.into() };
    SocketAddr::new(ip, PORT)
}

/// Whether a connection is a probe.
pub fn is_probe(orig_dst: crate::OrigDst) -> bool {
    orig_dst.0 == destination(orig_dst.ip())
}

/// What a proxy answers to a token.
pub fn answer(token: &str, uid: &str) -> String {
    format!("underpass {token} {uid}\n")
}
