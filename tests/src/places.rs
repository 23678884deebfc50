//! Every place where a packet of a walk may arrive, and where it did.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::sockopt::{original_dst, set_transparent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use redirect::ISTIO_PORTS;
use socket2::{Domain, Socket, Type};

use crate::listener::transparent;

const PATIENCE: Duration = Duration::from_secs(3);

/// Where a connection or a packet arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The proxy's listener for connections that the pod opens.
    Outbound,
    /// The proxy's listener for plaintext connections to the pod.
    Inbound,
    /// The proxy's listener for tunnels.
    Hbone,
    /// The proxy's listener for DNS.
    Dns,
    /// Where it was sent to, without the proxy.
    Direct,
}

/// The proxy's listeners in a pod, as a proxy makes them.
#[derive(Debug)]
pub struct Proxy {
    tcp: [(Place, u16, TcpListener); 4],
    dns: Vec<UdpSocket>,
    netns: NetNs,
}

/// A connection that has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Where.
    pub place: Place,
    /// The accepted end.
    pub stream: TcpStream,
    /// Who connected.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
}

impl Proxy {
    /// Listens on every port of the proxy.
    pub fn new(netns: &NetNs) -> Self {
        let listen = |place, port| (place, port, transparent(netns, port));
        let p = ISTIO_PORTS;
        Self {
            tcp: [
                listen(Place::Outbound, p.outbound),
                listen(Place::Inbound, p.inbound),
                listen(Place::Hbone, p.hbone),
                listen(Place::Dns, p.dns),
            ],
            dns: [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]
                .map(|ip| marked_udp(netns, SocketAddr::new(ip, p.dns)).unwrap())
                .into(),
            netns: netns.try_clone().unwrap(),
        }
    }

    /// The next connection, here or at one of the `direct` listeners; `None` when none comes within three seconds.
    pub fn next(&self, direct: &[&TcpListener]) -> Option<Arrived> {
        let places = self.tcp.iter().map(|(place, port, l)| (*place, *port, l));
        let places: Vec<_> = places.chain(direct.iter().map(|l| (Place::Direct, 0, *l))).collect();
        let mut polled: Vec<_> = places.iter().map(|(_, _, l)| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let ready = polled.iter().position(|p| p.any().unwrap_or(false))?;
        let (place, port, listener) = places[ready];
        let (stream, client) = listener.accept().unwrap();
        stream.set_nonblocking(false).unwrap();
        let local = canonical(stream.local_addr().unwrap());
        let destination = (local.port() == port).then(|| original_dst(&stream)).flatten().map_or(local, canonical);
        Some(Arrived { place, stream, client: canonical(client), destination })
    }

    /// Forgets the connections that wait to be accepted.
    pub fn forget_waiting(&self) {
        for (_, _, listener) in &self.tcp {
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false).unwrap();
        }
    }

    /// Answers one DNS query as the proxy does, saying `answer`; returns the query and where it was going, or `None`
    /// when none comes within three seconds. The kernel says nothing of NAT for UDP, so then it is the listener itself.
    pub fn answer_dns(&self, answer: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
        let mut polled: Vec<_> = self.dns.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let ready = polled.iter().position(|p| p.any().unwrap_or(false))?;
        let (query, client, destination) = receive_with_destination(&self.dns[ready]).unwrap();
        let from = marked_udp(&self.netns, destination).unwrap();
        from.connect(client).unwrap(); // so that it takes no other query, while a child of this process holds it, too
        from.send(answer).unwrap();
        Some((query, destination))
    }

    /// A socket with the proxy's mark.
    pub fn marked_udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        marked_udp(&self.netns, local)
    }
}

/// Binds where a closed socket may have been before: until a child that another test is starting calls execve, the child
/// holds every socket of this process, closed ones too.
fn bind_when_free(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match socket.bind(&local.into()) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => return bound,
        }
    }
}

fn marked_udp(netns: &NetNs, local: SocketAddr) -> io::Result<UdpSocket> {
    let made = netns.run(|| {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_mark(redirect::PROXY_MARK.value)?;
        set_transparent(&socket, local.is_ipv6())?;
        match local {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?,
        }
        bind_when_free(&socket, local)?;
        Ok(UdpSocket::from(socket))
    });
    made.unwrap()
}

fn receive_with_destination(socket: &UdpSocket) -> nix::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
    let mut buffer = [0; 512];
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let client = got.address.and_then(|a| address(&a)).unwrap();
    let destination = got.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => {
            Some(SocketAddr::from((Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)), u16::from_be(a.sin_port))))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(a) => {
            Some(SocketAddr::from((Ipv6Addr::from(a.sin6_addr.s6_addr), u16::from_be(a.sin6_port))))
        }
        _ => None,
    });
    let length = got.bytes;
    Ok((buffer[..length].to_vec(), client, destination.unwrap()))
}

fn address(a: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = a.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| a.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a connection still carries a word each way.
///
/// # Errors
/// That of the first direction that does not.
pub fn carries(a: &mut TcpStream, b: &mut TcpStream) -> io::Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut *a, &mut *b];
        let [x, y] = ends;
        let (from, to) = if from < to { (x, y) } else { (y, x) };
        let mut word = [0; 4];
        from.write_all(b"word")?;
        to.set_read_timeout(Some(PATIENCE))?;
        to.read_exact(&mut word)?;
    }
    Ok(())
}

/// Nothing arrives at a listener within a moment that is long for this machine.
pub fn nothing_arrives(at: &TcpListener) -> bool {
    let mut polled = [PollFd::new(at.as_fd(), PollFlags::POLLIN)];
    let started = Instant::now();
    let none = poll(&mut polled, PollTimeout::from(300u16)).unwrap() == 0;
    none && started.elapsed() >= Duration::from_millis(290)
}
