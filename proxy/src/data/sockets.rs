//! Sockets inside a pod's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesh::{ClientAddr, OrigDst};
use netns::NetNs;
use netns::sockopt::{original_dst, set_transparent};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::inpod::Pod;

/// Istio's mark on a proxy's packets, which redirection leaves alone.
pub(crate) const MARK: u32 = 0x539;
/// How long connecting may take, as ztunnel's.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 1024;

/// How a peer that is gone is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tcp {
    /// When the kernel begins to look at a connection that carries nothing, how often it looks then, and how many times.
    pub(crate) keepalive: Option<(Duration, Duration, u32)>,
    /// How long what was sent may stay unacknowledged.
    pub(crate) user_timeout: Option<Duration>,
}

/// Listens on a port of every address in a pod, also on addresses that are not the pod's (where captured connections
/// go to). Accepted sockets inherit the mark.
pub(crate) fn listen(netns: &NetNs, port: u16, ipv6: bool) -> io::Result<std::net::TcpListener> {
    netns
        .run(|| match listen_here(port, ipv6) {
            // A pod without IPv6.
            Err(e) if ipv6 && e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => listen_here(port, false),
            Err(e) if ipv6 && e.kind() == io::ErrorKind::AddrNotAvailable => listen_here(port, false),
            done => done,
        })
        .map_err(io::Error::other)?
}

fn listen_here(port: u16, ipv6: bool) -> io::Result<std::net::TcpListener> {
    let (domain, any): (Domain, IpAddr) = match ipv6 {
        true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
        false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if ipv6 {
        socket.set_only_v6(false)?;
    }
    // So that the next proxy can take over before this one ends.
    socket.set_reuse_port(true)?;
    set_transparent(&socket, ipv6)?;
    socket.set_mark(MARK)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects from within a pod; as `source`, if one is given, so that the application sees who really connects.
pub(crate) async fn connect(pod: &Pod, to: SocketAddr, source: Option<ClientAddr>) -> io::Result<TcpStream> {
    let source = source.map(|s| s.ip()).filter(|s| *s != to.ip() && s.is_ipv4() == to.is_ipv4());
    let socket = pod.netns.run(|| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_mark(MARK)?;
        if let Some(source) = source {
            set_transparent(&socket, to.is_ipv6())?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
    });
    let socket = socket.map_err(io::Error::other)??;
    tune(&socket, &pod.tcp);
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    let too_long =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_DEADLINE.as_secs()));
    timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| too_long())?
}

/// No delay for small writes, and a peer that is gone is found out. Best effort: a socket that has just been reset
/// refuses, and says so when it is used.
pub(crate) fn tune<S: std::os::fd::AsFd>(socket: &S, tcp: &Tcp) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    if let Some((time, interval, retries)) = tcp.keepalive {
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }
    if tcp.user_timeout.is_some() {
        let _ = socket.set_tcp_user_timeout(tcp.user_timeout);
    }
}

/// Where a captured connection was going: its own local address; or, when that is the listener's port, what a NAT rule
/// rewrote. Serves captures of both kinds without being told.
pub(crate) fn orig_dst(accepted: &TcpStream, listener_port: u16) -> io::Result<OrigDst> {
    let local = accepted.local_addr()?;
    let before_nat = (local.port() == listener_port).then(|| original_dst(accepted)).flatten();
    Ok(before_nat.unwrap_or(local).into())
}
