//! Captured datagrams: where each was going, and answers that seem to come from there.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// One datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// How many bytes of the buffer it has filled.
    pub length: usize,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
    /// Who sent it.
    pub from: SocketAddr,
    /// The destination in its headers: under tproxy, where the sender wanted to go; under NAT, what the rule made of it.
    pub to: SocketAddr,
}

/// Has the kernel tell the destination of every datagram: IP_RECVORIGDSTADDR, or IPV6_RECVORIGDSTADDR.
///
/// # Errors
/// Those of setsockopt(2).
pub fn tell_destination(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    match v6 {
        false => setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?,
        true => setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?,
    }
    Ok(())
}

/// Takes the next datagram of a socket on which [`tell_destination`] was called.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` on a socket that does not wait.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let got = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let to = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => Some(SocketAddr::V4(SockaddrIn::from(to).into())),
        ControlMessageOwned::Ipv6OrigDstAddr(to) => Some(SocketAddr::V6(SockaddrIn6::from(to).into())),
        _ => None,
    });
    let from = got.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4(SocketAddrV4::from(*a)));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6(SocketAddrV6::from(*a))))
    });
    match (from, to) {
        (Some(from), Some(to)) => {
            Ok(Received { length: got.bytes, truncated: got.flags.contains(MsgFlags::MSG_TRUNC), from, to })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram without its addresses")),
    }
}

/// Sends a datagram from the socket's own port, and from the address that is given: IP_PKTINFO, or IPV6_PKTINFO.
///
/// # Errors
/// Those of sendmsg(2); `InvalidInput` when the addresses are of different families.
pub fn send_from(socket: &impl AsFd, data: &[u8], from: IpAddr, to: SocketAddr) -> io::Result<()> {
    let (fd, parts, target) = (socket.as_fd().as_raw_fd(), [IoSlice::new(data)], SockaddrStorage::from(to));
    let send = |message| sendmsg(fd, &parts, &[message], MsgFlags::empty(), Some(&target));
    let sent = match (from, to) {
        (IpAddr::V4(from), SocketAddr::V4(_)) => {
            let any = libc::in_addr { s_addr: 0 };
            let own = libc::in_addr { s_addr: u32::from(from).to_be() };
            send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: own, ipi_addr: any }))
        }
        (IpAddr::V6(from), SocketAddr::V6(_)) => {
            let own = libc::in6_addr { s6_addr: from.octets() };
            send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_addr: own, ipi6_ifindex: 0 }))
        }
        _ => return Err(families_differ()),
    };
    sent.map(drop).map_err(Into::into)
}

/// Sends datagrams from any address and any port, in one family, by a raw socket. Needs CAP_NET_RAW.
///
/// A socket bound to that address and port could do the same, but would stand in the way of an application that listens
/// on the same port of all addresses, and would have to be kept for each of them.
#[derive(Debug)]
pub struct AnySource(Socket);

impl AnySource {
    /// Makes one in the namespace of the calling thread, whose packets have this mark. It never waits, and receives
    /// nothing (raw(7): IPPROTO_RAW).
    ///
    /// # Errors
    /// Those of socket(2) and setsockopt(2); `PermissionDenied` without the capability.
    pub fn open(v6: bool, mark: u32) -> io::Result<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let raw = Some(Protocol::from(libc::IPPROTO_RAW));
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), raw)?;
        socket.set_mark(mark)?;
        Ok(Self(socket))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// Those of sendto(2); `InvalidInput` when the addresses are of different families or the datagram is too long.
    pub fn send(&self, data: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let packet = packet(data, from, to)?;
        // The port is in the packet; where the raw socket looks for one, it must be none.
        self.0.send_to(&packet, &SocketAddr::new(to.ip(), 0).into()).map(drop)
    }
}

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;

/// IP header, UDP header (RFC 768) and data.
fn packet(data: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a datagram that is too long");
    let udp_length = u16::try_from(UDP_HEADER + data.len()).map_err(too_long)?;
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header4(udp_length, from, to).map_err(too_long)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => header6(udp_length, from, to),
        _ => return Err(families_differ()),
    };
    let udp = packet.len();
    for field in [from.port(), to.port(), udp_length, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(data);
    let checksum = match checksum(from.ip(), to.ip(), &packet[udp..]) {
        0 => 0xffff, // 0 means "none"
        sum => sum,
    };
    packet[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    Ok(packet)
}

/// RFC 791. The kernel puts in the identification and the checksum (raw(7)).
fn header4(udp_length: u16, from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<u8>, std::num::TryFromIntError> {
    let length = u16::try_from(20 + usize::from(udp_length))?;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, HOP_LIMIT, UDP, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    Ok(header)
}

/// RFC 8200.
fn header6(udp_length: u16, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(udp_length.to_be_bytes());
    header.extend([UDP, HOP_LIMIT]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// The checksum of RFC 768 and RFC 8200 section 8.1: over addresses, length, protocol, and the datagram itself.
fn checksum(from: IpAddr, to: IpAddr, datagram: &[u8]) -> u16 {
    let sum = |bytes: &[u8]| -> u64 {
        let words = bytes.chunks(2).map(|c| u64::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])));
        words.sum()
    };
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    let mut total = address(from) + address(to) + u64::from(UDP) + datagram.len() as u64 + sum(datagram);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn families_differ() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "addresses of different families")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn a_datagram_seems_to_come_from_anywhere() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a_datagram_seems_to_come_from_anywhere needs root");
            return;
        }
        let netns = crate::NetNs::create().unwrap();
        netns.run(loopback_up).unwrap();
        for (local, from) in [("127.0.0.1:0", "10.96.0.10:53"), ("[::1]:0", "[fd96::10]:53")] {
            let from: SocketAddr = from.parse().unwrap();
            let (socket, sender) = netns
                .run(|| (UdpSocket::bind(local).unwrap(), AnySource::open(from.is_ipv6(), 0x539).unwrap()))
                .unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let to = socket.local_addr().unwrap();
            // Odd and even lengths, none at all, and as much as loopback carries in one packet.
            for length in [0, 1, 2, 511, 65_480] {
                let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                sender.send(&data, from, to).unwrap();
                let mut got = vec![0; 65536];
                let (n, whom) = socket.recv_from(&mut got).unwrap();
                assert_eq!((&got[..n], whom), (&data[..], from));
            }
            assert!(sender.send(&[0; 65530], from, to).is_err(), "too long");
        }
    }

    #[test]
    fn a_datagram_tells_where_it_was_going_and_is_answered_from_there() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a_datagram_tells_where_it_was_going_and_is_answered_from_there needs root");
            return;
        }
        let netns = crate::NetNs::create().unwrap();
        netns.run(loopback_up).unwrap();
        for (any, to) in [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "::1")] {
            let (server, client) =
                netns.run(|| (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
            tell_destination(&server, any.starts_with('[')).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), server.local_addr().unwrap().port());
            client.connect(to).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            client.send(b"question").unwrap();
            let mut buffer = [0; 4];
            let got = receive(&server, &mut buffer).unwrap();
            assert_eq!(got, Received { length: 4, truncated: true, from: client.local_addr().unwrap(), to });
            send_from(&server, b"answer", got.to.ip(), got.from).unwrap();
            // A connected socket takes only what comes from there.
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer");
        }
    }

    fn loopback_up() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut name = [0; libc::IFNAMSIZ];
        name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
        let flags = (libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING) as libc::c_short;
        let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: the request is a whole ifreq with a name and flags, and the socket is open.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        assert_eq!(done, 0);
    }
}
