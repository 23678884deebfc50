//! Minimal listeners and clients, which show where a connection arrives and from which address.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netns::NetNs;
use socket2::{Domain, Socket, Type};

use crate::sandbox::{PATIENCE, until};

/// A listener like the proxy's inside a pod: dual-stack, transparent, marked.
pub fn transparent(netns: &NetNs, port: u16) -> TcpListener {
    bound(netns, || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.set_mark(istio::mark::PROXY)?;
        netns::sockopt::set_transparent(&socket, true)?;
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        socket.listen(16)?;
        Ok(TcpListener::from(socket))
    })
}

/// A listener that shares its port with other sockets of the same user (SO_REUSEPORT).
pub fn sharing(netns: &NetNs, port: u16, like_the_proxy: bool) -> TcpListener {
    bound(netns, || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_port(true)?;
        if like_the_proxy {
            socket.set_mark(istio::mark::PROXY)?;
            netns::sockopt::set_transparent(&socket, true)?;
        }
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        socket.listen(16)?;
        Ok(TcpListener::from(socket))
    })
}

/// A listener like an application's.
pub fn plain(netns: &NetNs, address: SocketAddr) -> TcpListener {
    bound(netns, || TcpListener::bind(address))
}

/// Binds in a namespace, and waits for the port: another thread's child process holds a copy of a
/// listener that was just closed, until it runs its program.
fn bound(netns: &NetNs, bind: impl Fn() -> io::Result<TcpListener>) -> TcpListener {
    until("the port is free", || match netns.run(&bind).unwrap() {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => None,
        bound => Some(bound.unwrap()),
    })
}

/// The ports on which something listens in a namespace.
pub fn listening_ports(netns: &NetNs) -> BTreeSet<u16> {
    netns
        .run(redirect::listeners)
        .unwrap()
        .unwrap()
        .into_iter()
        .map(|l| l.address.port())
        .collect()
}

/// Connects from inside a namespace; fails at once when the connection is refused.
///
/// # Errors
/// Those of connect(2); `TimedOut` after [`PATIENCE`].
pub fn connect(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    netns
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()
}

/// Connects with a short timeout, for a connection that is expected to be refused or lost.
///
/// # Errors
/// Those of connect(2); `TimedOut` after 300 ms.
pub fn connect_briefly(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    netns
        .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))
        .unwrap()
}

/// Connects from inside a namespace, with a mark if given, in an asynchronous task.
///
/// # Errors
/// Those of the socket calls; there is no timeout.
pub async fn connect_async(
    netns: &NetNs,
    to: SocketAddr,
    mark: Option<u32>,
) -> io::Result<tokio::net::TcpStream> {
    let socket = netns
        .run(|| Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None))
        .unwrap()?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket.connect(to).await
}

/// Connects with the proxy's mark, from an address that the namespace need not have.
///
/// # Errors
/// Those of the socket calls.
pub fn connect_marked(
    netns: &NetNs,
    from: Option<IpAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let connected = netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(istio::mark::PROXY)?;
        if let Some(from) = from {
            netns::sockopt::set_transparent(&socket, to.is_ipv6())?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(TcpStream::from(socket))
    });
    connected.unwrap()
}

/// Accepts the next connection; fails after [`PATIENCE`].
///
/// # Errors
/// `TimedOut`, and those of accept(2).
pub fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, PollTimeout::try_from(PATIENCE).unwrap())? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(false)?;
    Ok((
        stream,
        SocketAddr::new(peer.ip().to_canonical(), peer.port()),
    ))
}

/// The local address of an accepted socket: for a captured connection, its original destination.
pub fn own_address(stream: &TcpStream) -> SocketAddr {
    let address = stream.local_addr().unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends one message in each direction; proves that both directions work.
pub fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    send_message(a, b);
    send_message(b, a);
}

fn send_message(from: &mut TcpStream, to: &mut TcpStream) {
    let mut message = [0u8; 4];
    from.write_all(b"ping").unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    to.read_exact(&mut message).unwrap();
    assert_eq!(&message, b"ping");
}
