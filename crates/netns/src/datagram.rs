//! Captured datagrams: receiving them with their original destination, and replying from it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Metadata of a received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedDatagram {
    /// Number of bytes written to the buffer.
    pub length: usize,
    /// Whether the datagram was longer than the buffer.
    pub truncated: bool,
    /// Address of the sender.
    pub from: SocketAddr,
    /// Destination in the packet headers: the original one under tproxy, the translated one under
    /// NAT.
    pub to: SocketAddr,
}

/// Makes the kernel report the destination of every datagram: IP_RECVORIGDSTADDR, or
/// IPV6_RECVORIGDSTADDR.
///
/// # Errors
/// Those of setsockopt(2).
pub fn enable_orig_dst(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?;
    }
    Ok(())
}

/// Receives the next datagram from a socket on which [`enable_orig_dst`] was called.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` if a non-blocking socket has no datagram.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedDatagram> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let message =
        recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            Some(SocketAddr::V4(SockaddrIn::from(to).into()))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            Some(SocketAddr::V6(SockaddrIn6::from(to).into()))
        }
        _ => None,
    });
    let from = message.address.as_ref().and_then(|address| {
        let v4 = address
            .as_sockaddr_in()
            .map(|a| SocketAddr::V4(SocketAddrV4::from(*a)));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|a| SocketAddr::V6(SocketAddrV6::from(*a)))
        })
    });
    match (from, to) {
        (Some(from), Some(to)) => {
            let truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
            Ok(ReceivedDatagram {
                length: message.bytes,
                truncated,
                from,
                to,
            })
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel did not report the addresses of a datagram",
        )),
    }
}

/// Sends a datagram from the socket's own port and the address `from`: IP_PKTINFO, or IPV6_PKTINFO.
///
/// # Errors
/// Those of sendmsg(2); `InvalidInput` when the addresses are of different families.
pub fn send_from(socket: &impl AsFd, data: &[u8], from: IpAddr, to: SocketAddr) -> io::Result<()> {
    let (fd, parts, target) = (
        socket.as_fd().as_raw_fd(),
        [IoSlice::new(data)],
        SockaddrStorage::from(to),
    );
    let send = |message| sendmsg(fd, &parts, &[message], MsgFlags::empty(), Some(&target));
    let sent = match (from, to) {
        (IpAddr::V4(from), SocketAddr::V4(_)) => {
            let any = libc::in_addr { s_addr: 0 };
            let own = libc::in_addr {
                s_addr: u32::from(from).to_be(),
            };
            send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: own,
                ipi_addr: any,
            }))
        }
        (IpAddr::V6(from), SocketAddr::V6(_)) => {
            let own = libc::in6_addr {
                s6_addr: from.octets(),
            };
            send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: own,
                ipi6_ifindex: 0,
            }))
        }
        _ => return Err(families_differ()),
    };
    sent.map(drop).map_err(Into::into)
}

/// A raw socket that sends UDP datagrams of one family from any address and port. Needs
/// CAP_NET_RAW.
///
/// A socket bound to that address and port would conflict with an application that listens on the
/// same port of all addresses, and each source would need one.
#[derive(Debug)]
pub struct RawUdpSocket(Socket);

impl RawUdpSocket {
    /// Opens a socket in the calling thread's namespace that sets `mark` on its packets. It is
    /// non-blocking and receives nothing (raw(7): IPPROTO_RAW).
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
    /// Those of sendto(2); `InvalidInput` when the addresses are of different families or the
    /// datagram is too long.
    pub fn send(&self, data: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let packet = packet(data, from, to)?;
        // The packet has the port; that of the socket address must be 0 (raw(7)).
        self.0
            .send_to(&packet, &SocketAddr::new(to.ip(), 0).into())
            .map(drop)
    }
}

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Builds an IP packet with a UDP header (RFC 768) and data.
fn packet(data: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the datagram is too long");
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
        0 => 0xffff, // 0 means "no checksum"
        sum => sum,
    };
    packet[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    Ok(packet)
}

/// Builds an IPv4 header (RFC 791). The kernel fills in the identification and the checksum
/// (raw(7)).
fn header4(
    udp_length: u16,
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> Result<Vec<u8>, std::num::TryFromIntError> {
    let length = u16::try_from(20 + usize::from(udp_length))?;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, HOP_LIMIT, UDP, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    Ok(header)
}

/// Builds an IPv6 header (RFC 8200).
fn header6(udp_length: u16, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(udp_length.to_be_bytes());
    header.extend([UDP, HOP_LIMIT]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// Computes the checksum of RFC 768 and RFC 8200 section 8.1, over the addresses, length, protocol
/// and datagram.
fn checksum(from: IpAddr, to: IpAddr, datagram: &[u8]) -> u16 {
    let sum = |bytes: &[u8]| -> u64 {
        let words = bytes
            .chunks(2)
            .map(|c| u64::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])));
        words.sum()
    };
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    let mut total =
        address(from) + address(to) + u64::from(UDP) + datagram.len() as u64 + sum(datagram);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn families_differ() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "source and destination are of different address families",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn a_datagram_is_sent_from_any_source() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a_datagram_is_sent_from_any_source needs root");
            return;
        }
        let netns = crate::NetNs::create().unwrap();
        netns.run(loopback_up).unwrap();
        for (local, from) in [
            ("127.0.0.1:0", "10.96.0.10:53"),
            ("[::1]:0", "[fd96::10]:53"),
        ] {
            let from: SocketAddr = from.parse().unwrap();
            let (socket, sender) = netns
                .run(|| {
                    (
                        UdpSocket::bind(local).unwrap(),
                        RawUdpSocket::open(from.is_ipv6(), 0x539).unwrap(),
                    )
                })
                .unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            let to = socket.local_addr().unwrap();
            // Empty, odd and even lengths, and the most that loopback carries in one packet.
            for length in [0, 1, 2, 511, 65_480] {
                let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                sender.send(&data, from, to).unwrap();
                let mut received = vec![0; 65536];
                let (n, source) = socket.recv_from(&mut received).unwrap();
                assert_eq!((&received[..n], source), (&data[..], from));
            }
            assert!(sender.send(&[0; 65530], from, to).is_err(), "too long");
        }
    }

    #[test]
    fn a_datagram_has_its_destination_and_is_answered_from_it() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a_datagram_has_its_destination_and_is_answered_from_it needs root");
            return;
        }
        let netns = crate::NetNs::create().unwrap();
        netns.run(loopback_up).unwrap();
        for (any, to) in [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "::1")] {
            let (server, client) = netns
                .run(|| (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap()))
                .unwrap();
            enable_orig_dst(&server, any.starts_with('[')).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), server.local_addr().unwrap().port());
            client.connect(to).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            client.send(b"question").unwrap();
            let mut buffer = [0; 4];
            let received = receive(&server, &mut buffer).unwrap();
            let from = client.local_addr().unwrap();
            assert_eq!(
                received,
                ReceivedDatagram {
                    length: 4,
                    truncated: true,
                    from,
                    to
                }
            );
            send_from(&server, b"answer", received.to.ip(), received.from).unwrap();
            // A connected socket accepts datagrams from that address only.
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
        let request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
        };
        // SAFETY: the request is a complete ifreq with a name and flags, and the socket is open.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        assert_eq!(result, 0);
    }
}
