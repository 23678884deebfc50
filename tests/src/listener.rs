//! Listeners and clients as small as can be: they say where a connection arrived, and as whom.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netns::NetNs;
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(3);

/// A listener as the proxy makes one inside a pod: both families, transparent, marked.
pub fn transparent(netns: &NetNs, port: u16) -> TcpListener {
    let listener = netns.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.set_mark(redirect::PROXY_MARK.value)?;
        netns::sockopt::set_transparent(&socket, true)?;
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        socket.listen(16)?;
        io::Result::Ok(TcpListener::from(socket))
    });
    listener.unwrap().unwrap()
}

/// A listener that shares its port with whoever has it and lets others do the same (SO_REUSEPORT; only of the same user).
pub fn sharing(netns: &NetNs, port: u16, like_the_proxy: bool) -> TcpListener {
    let listener = netns.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_port(true)?;
        if like_the_proxy {
            socket.set_mark(redirect::PROXY_MARK.value)?;
            netns::sockopt::set_transparent(&socket, true)?;
        }
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        socket.listen(16)?;
        io::Result::Ok(TcpListener::from(socket))
    });
    listener.unwrap().unwrap()
}

/// A listener as an application makes one.
pub fn plain(netns: &NetNs, address: SocketAddr) -> TcpListener {
    netns.run(|| TcpListener::bind(address)).unwrap().unwrap()
}

/// The ports on which something listens in a namespace.
pub fn listening_ports(netns: &NetNs) -> BTreeSet<u16> {
    netns.run(redirect::listeners).unwrap().unwrap().into_iter().map(|l| l.address.port()).collect()
}

/// Connects from inside a namespace; the error says at once when it is refused.
///
/// # Errors
/// Those of connect(2); `TimedOut` after three seconds.
pub fn connect(netns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    netns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()
}

/// Connects with the proxy's mark, from an address that need not be the namespace's own.
///
/// # Errors
/// Those of the socket calls.
pub fn connect_marked(netns: &NetNs, from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let connected = netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(redirect::PROXY_MARK.value)?;
        if let Some(from) = from {
            netns::sockopt::set_transparent(&socket, to.is_ipv6())?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(TcpStream::from(socket))
    });
    connected.unwrap()
}

/// The next connection, or an error after three seconds.
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
    Ok((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

/// The address that the accepted socket has: for a captured connection, where the client wanted to go.
pub fn own_address(stream: &TcpStream) -> SocketAddr {
    let address = stream.local_addr().unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends a word one way and the other; proves that both directions work.
pub fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    send_word(a, b);
    send_word(b, a);
}

fn send_word(from: &mut TcpStream, to: &mut TcpStream) {
    let mut word = [0u8; 4];
    from.write_all(b"ping").unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    to.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
}
