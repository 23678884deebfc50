//! Where connections and packets arrive: at one of the proxy's listeners, or at their destination.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::sockopt::{original_dst, set_transparent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use redirect::ISTIO_PORTS;
use socket2::{Domain, Socket, Type};

use crate::listener::transparent;
use crate::sandbox::PATIENCE;

/// Where a connection or a packet can arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrivalPoint {
    /// The proxy's listener for outbound connections of the pod.
    Outbound,
    /// The proxy's listener for plaintext connections to the pod.
    Inbound,
    /// The proxy's listener for HBONE tunnels.
    Hbone,
    /// The proxy's listener for DNS.
    Dns,
    /// The original destination, bypassing the proxy.
    Direct,
}

/// The proxy's listeners in a pod, opened with the same socket options as the proxy's.
#[derive(Debug)]
pub struct ProxyListeners {
    tcp: [(ArrivalPoint, u16, TcpListener); 4],
    dns: Vec<UdpSocket>,
    netns: NetNs,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Arrival {
    /// The listener that accepted it.
    pub point: ArrivalPoint,
    /// The accepted socket.
    pub stream: TcpStream,
    /// The client's address.
    pub client: SocketAddr,
    /// The destination that the client connected to.
    pub destination: SocketAddr,
}

impl ProxyListeners {
    /// Listens on all of the proxy's ports.
    pub fn new(netns: &NetNs) -> Self {
        let listen = |point, port| (point, port, transparent(netns, port));
        let p = ISTIO_PORTS;
        Self {
            tcp: [
                listen(ArrivalPoint::Outbound, p.outbound),
                listen(ArrivalPoint::Inbound, p.inbound),
                listen(ArrivalPoint::Hbone, p.hbone),
                listen(ArrivalPoint::Dns, p.dns),
            ],
            dns: [
                IpAddr::from(Ipv4Addr::UNSPECIFIED),
                Ipv6Addr::UNSPECIFIED.into(),
            ]
            .map(|ip| marked_udp(netns, SocketAddr::new(ip, p.dns)).unwrap())
            .into(),
            netns: netns.try_clone().unwrap(),
        }
    }

    /// Accepts the next connection, here or at one of the `direct` listeners; `None` after
    /// [`PATIENCE`] without one.
    pub fn next(&self, direct: &[&TcpListener]) -> Option<Arrival> {
        let points = self.tcp.iter().map(|(point, port, l)| (*point, *port, l));
        let points: Vec<_> = points
            .chain(direct.iter().map(|l| (ArrivalPoint::Direct, 0, *l)))
            .collect();
        let mut polled: Vec<_> = points
            .iter()
            .map(|(_, _, l)| PollFd::new(l.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let ready = polled.iter().position(|p| p.any().unwrap_or(false))?;
        let (point, port, listener) = points[ready];
        let (stream, client) = listener.accept().unwrap();
        stream.set_nonblocking(false).unwrap();
        let local = canonical(stream.local_addr().unwrap());
        let destination = (local.port() == port)
            .then(|| original_dst(&stream))
            .flatten()
            .map_or(local, canonical);
        Some(Arrival {
            point,
            stream,
            client: canonical(client),
            destination,
        })
    }

    /// Accepts and drops all pending connections.
    pub fn drop_pending(&self) {
        for (_, _, listener) in &self.tcp {
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false).unwrap();
        }
    }

    /// Replies `answer` to one DNS query, as the proxy does. Returns the query and its original
    /// destination, or `None` after [`PATIENCE`] without a query. Under NAT the destination is
    /// the listener's own address, because the kernel does not report the original one for UDP.
    pub fn answer_dns(&self, answer: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
        let mut polled: Vec<_> = self
            .dns
            .iter()
            .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let ready = polled.iter().position(|p| p.any().unwrap_or(false))?;
        let (query, client, destination) = receive_with_destination(&self.dns[ready]).unwrap();
        let from = marked_udp(&self.netns, destination).unwrap();
        // Connected, so that it receives no other query while a forked child still holds it.
        from.connect(client).unwrap();
        from.send(answer).unwrap();
        Some((query, destination))
    }

    /// A UDP socket with the proxy's mark.
    pub fn marked_udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        marked_udp(&self.netns, local)
    }
}

/// Binds an address that a closed socket may have used before. A child that another test forks
/// holds all sockets of this process, including closed ones, until it calls execve.
fn bind_when_free(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match socket.bind(&local.into()) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn marked_udp(netns: &NetNs, local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = netns.run(|| {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_mark(istio::mark::PROXY)?;
        set_transparent(&socket, local.is_ipv6())?;
        match local {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?,
        }
        bind_when_free(&socket, local)?;
        Ok(UdpSocket::from(socket))
    });
    socket.unwrap()
}

fn receive_with_destination(socket: &UdpSocket) -> nix::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
    let mut buffer = [0; 512];
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let client = received.address.and_then(|a| address(&a)).unwrap();
    let destination = received.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => Some(SocketAddr::from((
            Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)),
            u16::from_be(a.sin_port),
        ))),
        ControlMessageOwned::Ipv6OrigDstAddr(a) => Some(SocketAddr::from((
            Ipv6Addr::from(a.sin6_addr.s6_addr),
            u16::from_be(a.sin6_port),
        ))),
        _ => None,
    });
    let length = received.bytes;
    Ok((buffer[..length].to_vec(), client, destination.unwrap()))
}

fn address(a: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = a
        .as_sockaddr_in()
        .map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| {
        a.as_sockaddr_in6()
            .map(|a| SocketAddr::from((a.ip(), a.port())))
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends one message in each direction of a connection.
///
/// # Errors
/// The error of the first direction that fails.
pub fn carries_both_ways(a: &mut TcpStream, b: &mut TcpStream) -> io::Result<()> {
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

/// Whether no connection arrives at a listener within 300 ms.
pub fn nothing_arrives(at: &TcpListener) -> bool {
    let mut polled = [PollFd::new(at.as_fd(), PollFlags::POLLIN)];
    let started = Instant::now();
    let none = poll(&mut polled, PollTimeout::from(300u16)).unwrap() == 0;
    none && started.elapsed() >= Duration::from_millis(290)
}
