//! The TCP connections that are open in the calling thread's network namespace, from a socket dump.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

/// An open TCP connection, seen from this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// The port at this end.
    pub local_port: u16,
    /// The other end, with an IPv4-mapped address written as the IPv4 address that it is.
    pub peer: SocketAddr,
}

/// Connections whose other end is neither loopback nor one of `own` addresses: those that routing rules concern.
pub(crate) fn open_connections(own: &[IpAddr]) -> io::Result<Vec<Connection>> {
    let closed = StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT;
    let mut out = dump(StateFlags::all() - closed)?;
    out.retain(|c| !c.peer.ip().is_loopback() && !c.peer.ip().is_unspecified() && !own.contains(&c.peer.ip()));
    out.sort();
    out.dedup();
    Ok(out)
}

/// The TCP ports on which something listens.
pub(crate) fn listening_ports() -> io::Result<BTreeSet<u16>> {
    Ok(dump(StateFlags::LISTEN)?.into_iter().map(|c| c.local_port).collect())
}

/// The TCP sockets in these states, of both families.
fn dump(states: StateFlags) -> io::Result<Vec<Connection>> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
    let mut out = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut packet = NetlinkMessage::from(SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::from_bits_retain(states.bits()),
            socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
        }));
        packet.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        packet.finalize();
        let mut buffer = vec![0u8; packet.buffer_len()];
        packet.serialize(&mut buffer);
        send(fd.as_raw_fd(), &buffer, MsgFlags::empty())?;
        receive_dump(fd.as_raw_fd(), &mut out)?;
    }
    Ok(out)
}

fn receive_dump(fd: std::os::fd::RawFd, out: &mut Vec<Connection>) -> io::Result<()> {
    let mut received = vec![0u8; 64 * 1024];
    loop {
        let n = recv(fd, &mut received, MsgFlags::empty())?;
        let mut rest = received.get(..n).unwrap_or_default();
        while !rest.is_empty() {
            let m = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match m.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(r)) => {
                    let id = &r.header.socket_id;
                    let peer = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
                    out.push(Connection { local_port: id.source_port, peer });
                }
                _ => {}
            }
            let len = (m.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}
