//! TCP sockets inside a pod's network namespace, as the proxy uses them for connections and for
//! DNS: listening on captured connections, connecting with the proxy's mark and in the name of a
//! client, and the original destination of a captured connection.

#![forbid(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use mesh::{ClientAddr, OrigDst, ServerAddr};
use netns::NetNs;
use netns::sockopt::{original_dst, reset_on_close, set_transparent};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connect timeout, like ztunnel's.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How many connections may wait to be accepted: as many as the pod's `net.core.somaxconn` allows.
const BACKLOG: i32 = i32::MAX;
/// Ports of connections in a client's name. They are below 32,768, where the ports begin that
/// kernels choose for clients: a client whose new connection has the port of such a connection to
/// the same server is not served until that one ends. Few servers listen on them.
const PORTS: RangeInclusive<u16> = 16_384..=32_767;
/// How many of them are tried for a connection.
const PORT_ATTEMPTS: usize = 16;

/// Options that detect unreachable peers of TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Idle time before the first keepalive probe, interval between probes, and number of probes.
    pub keepalive: Option<(Duration, Duration, u32)>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// A pod, as far as its sockets are concerned.
pub trait PodNetwork {
    /// The pod's network namespace.
    fn netns(&self) -> &NetNs;

    /// Options of the pod's TCP sockets.
    fn tcp_options(&self) -> &TcpOptions;
}

impl<P: PodNetwork> PodNetwork for Arc<P> {
    fn netns(&self) -> &NetNs {
        (**self).netns()
    }

    fn tcp_options(&self) -> &TcpOptions {
        (**self).tcp_options()
    }
}

/// Listens on a port in a pod, on all addresses including those that are not the pod's own, to
/// which captured connections are addressed. Accepted sockets inherit the mark and all options.
///
/// # Errors
/// If the port is in use, or the namespace cannot be entered.
pub fn listen(
    netns: &NetNs,
    port: u16,
    ipv6: bool,
    tcp: &TcpOptions,
) -> io::Result<std::net::TcpListener> {
    let listening = netns.run(|| match listen_in_current_netns(port, ipv6) {
        Err(e) if ipv6 && is_ipv6_missing(&e) => listen_in_current_netns(port, false),
        done => done,
    });
    let listener = listening.map_err(io::Error::other)??;
    set_options(&listener, tcp);
    Ok(listener)
}

/// Takes over a socket that another process opened with [`listen`]; `None` if it does not listen on
/// this port of all addresses, with or without IPv6 as given.
#[must_use]
pub fn adopt(
    socket: OwnedFd,
    port: u16,
    ipv6: bool,
    tcp: &TcpOptions,
) -> Option<std::net::TcpListener> {
    let socket = Socket::from(socket);
    let is_expected = socket.r#type().ok()? == Type::STREAM
        && socket.is_listener().ok()?
        && socket.local_addr().ok()?.as_socket() == Some(any_address(port, ipv6));
    set_options(&socket, tcp);
    is_expected.then(|| socket.into())
}

fn listen_in_current_netns(port: u16, ipv6: bool) -> io::Result<std::net::TcpListener> {
    let socket = listener(Type::STREAM, ipv6)?;
    if ipv6 {
        socket.set_only_v6(false)?;
    }
    socket.bind(&any_address(port, ipv6).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens a socket that can listen on an address of a pod, in the current network namespace.
pub fn listener(kind: Type, ipv6: bool) -> io::Result<Socket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
    // Lets the next proxy start listening before this one exits.
    socket.set_reuse_port(true)?;
    set_transparent(&socket, ipv6)?;
    socket.set_mark(istio::mark::PROXY)?;
    Ok(socket)
}

/// All addresses of a family, with this port.
pub fn any_address(port: u16, ipv6: bool) -> SocketAddr {
    if ipv6 {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}

/// Whether listening failed because the pod has no IPv6.
pub fn is_ipv6_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Connects from within a pod.
///
/// # Errors
/// If there is no answer within 10 s, or for any reason for which the kernel fails.
pub async fn connect(pod: &impl PodNetwork, to: impl Into<ServerAddr>) -> io::Result<TcpStream> {
    let ServerAddr(to) = to.into();
    connect_with(pod, to, pod.tcp_options(), |_| Ok(())).await
}

/// Connects from within a pod from one of its own addresses. An address that is not, or no longer,
/// the pod's is not used, nor one of the other family.
///
/// The port is chosen when connecting, so that every destination has all ports.
///
/// # Errors
/// As [`connect`].
pub async fn connect_from(
    source: IpAddr,
    pod: &impl PodNetwork,
    to: impl Into<ServerAddr>,
) -> io::Result<TcpStream> {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput};
    let ServerAddr(to) = to.into();
    connect_with(pod, to, pod.tcp_options(), |socket| {
        if source.is_ipv4() != to.is_ipv4() {
            return Ok(());
        }
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
        match socket.bind(&SocketAddr::new(source, 0).into()) {
            // Not the pod's, or link-local.
            Err(e) if matches!(e.kind(), AddrNotAvailable | InvalidInput) => Ok(()),
            done => done,
        }
    })
    .await
}

/// Connects to an application in a pod from the address of its client, so that the application sees
/// its real client.
///
/// The port is one of 16,384 to 32,767, or if many of them are in use, one that the kernel chooses.
/// bind(2) of a given port takes it for this destination only, and does not search: the kernel's
/// search takes milliseconds once half of its range is in use. Bound to `lo`, a socket may reuse
/// the port of one that closed a second ago (IPv4).
///
/// There are no keepalive probes: the same kernel has both ends, and closes one with the other.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(
    client: ClientAddr,
    pod: &impl PodNetwork,
    to: impl Into<ServerAddr>,
) -> io::Result<TcpStream> {
    let ServerAddr(to) = to.into();
    let source = client.ip();
    if source == to.ip() || source.is_ipv4() != to.is_ipv4() {
        return connect(pod, to).await;
    }
    let tcp = TcpOptions {
        keepalive: None,
        ..*pod.tcp_options()
    };
    let connect_from = |port| {
        connect_with(pod, to, &tcp, move |socket: &Socket| {
            set_transparent(socket, to.is_ipv6())?;
            if to.is_ipv4() {
                // Routes to own addresses of IPv6 are those of the interface.
                socket.bind_device(Some(b"lo"))?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(source, port).into())
        })
    };
    for _ in 0..PORT_ATTEMPTS {
        match connect_from(next_port()).await {
            Err(e) if is_port_in_use(&e) => {}
            done => return done,
        }
    }
    connect_from(0).await
}

fn is_port_in_use(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable};
    matches!(error.kind(), AddrInUse | AddrNotAvailable)
}

/// The next of [`PORTS`] in turn, so that a port is used again as late as possible.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end() - PORTS.start() + 1; // a power of two, which divides 65,536
    PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % count
}

async fn connect_with(
    pod: &impl PodNetwork,
    to: SocketAddr,
    tcp: &TcpOptions,
    bind: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let socket = pod.netns().run(|| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(to),
            Type::STREAM.nonblocking().cloexec(),
            None,
        )?;
        socket.set_mark(istio::mark::PROXY)?;
        bind(&socket)?;
        Ok(socket)
    });
    let socket = socket.map_err(io::Error::other)??;
    set_options(&socket, tcp);
    let connecting = establish(socket, to);
    let too_long = || {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_DEADLINE.as_secs()),
        )
    };
    timeout(CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| too_long())?
}

/// Connects a socket. The peer may accept the connection, send something and reset it before this
/// end notices that it is open. The result is then the connection, from which that is read,
/// followed by the reset: reading the error of the socket would clear it.
async fn establish(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
        connected => connected?,
    }
    let mut connecting = Connecting(Some(TcpStream::from_std(socket.into())?));
    if let Some(stream) = &connecting.0 {
        let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
        if ready.is_error() {
            SockRef::from(stream).peek(&mut [MaybeUninit::uninit()])?;
        }
    }
    connecting
        .0
        .take()
        .ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// A connection that is being opened. If the attempt ends before, its peer may have accepted it
/// already: it gets a reset instead of an orderly end.
struct Connecting(Option<TcpStream>);

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            let _ = reset_on_close(stream); // already closed
        }
    }
}

/// Disables Nagle's algorithm and sets the given options, which sockets that a listener accepts
/// inherit. Best effort: connections work without them.
fn set_options<S: std::os::fd::AsFd>(socket: &S, tcp: &TcpOptions) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    if let Some((time, interval, retries)) = tcp.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(time)
            .with_interval(interval)
            .with_retries(retries);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }
    if tcp.user_timeout.is_some() {
        let _ = socket.set_tcp_user_timeout(tcp.user_timeout);
    }
}

/// Returns the original destination of a captured connection: the local address of its socket or,
/// if that has the listener's port, the address that a NAT rule replaced. This covers both capture
/// modes.
///
/// # Errors
/// If the connection has been reset.
pub fn orig_dst(accepted: &TcpStream, listener_port: u16) -> io::Result<OrigDst> {
    let local = accepted.local_addr()?;
    let before_nat = (local.port() == listener_port)
        .then(|| original_dst(accepted))
        .flatten();
    Ok(before_nat.unwrap_or(local).into())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::io::AsyncReadExt;
    use tokio::runtime::Runtime;

    use super::*;

    /// The options are set once for each listener, not for each connection.
    #[test]
    fn accepted_connections_inherit_the_options_of_their_listener() {
        let second = Duration::from_secs(1);
        let tcp = TcpOptions {
            keepalive: Some((second * 77, second * 11, 5)),
            user_timeout: Some(second * 132),
        };
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert_ne!(address, "127.0.0.1:0");
                continue; // no IPv6 here
            };
            set_options(&listener, &tcp);
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let accepted = SockRef::from(&accepted);
            assert!(accepted.tcp_nodelay().unwrap());
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), second * 77);
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), second * 11);
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 5);
            assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(second * 132));
        }
    }

    /// A listener, its address, a socket to connect to it, and a runtime.
    fn about_to_connect() -> (TcpListener, SocketAddr, Socket, Runtime) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        (listener, to, socket, runtime.enable_all().build().unwrap())
    }

    /// Connects to a server that has done something with the connection before this end notices
    /// that it is open. Returns everything that it has sent, and the end.
    fn establish_late(serve: fn(TcpStream)) -> (io::Result<Vec<u8>>, Option<io::ErrorKind>) {
        let (listener, to, socket, runtime) = about_to_connect();
        runtime.block_on(async {
            let mut connecting = pin!(establish(socket, to));
            let mut context = Context::from_waker(Waker::noop());
            assert!(connecting.as_mut().poll(&mut context).is_pending());
            serve(listener.accept().unwrap().0);
            let mut stream = match connecting.await {
                Ok(stream) => stream,
                Err(error) => return (Err(error), None),
            };
            let mut all = Vec::new();
            let end = stream.read_to_end(&mut all).await;
            (Ok(all), end.err().map(|e| e.kind()))
        })
    }

    fn reset(stream: TcpStream) {
        reset_on_close(&stream).unwrap();
        drop(stream);
    }

    #[test]
    fn what_precedes_a_reset_before_the_connection_is_noticed_is_read_from_it() {
        let (sent, end) = establish_late(|mut stream| {
            stream.write_all(&[7; 5000]).unwrap();
            reset(stream);
        });
        assert_eq!(sent.unwrap(), [7; 5000]);
        assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
        let (sent, _) = establish_late(|mut stream| {
            stream.write_all(&[7; 5000]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            reset(stream);
        });
        assert_eq!(sent.unwrap(), [7; 5000]);
        let (sent, _) = establish_late(reset);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (sent, end) = establish_late(drop);
        assert_eq!((sent.unwrap(), end), (vec![], None));
    }

    #[test]
    fn an_attempt_that_ends_resets_the_connection_that_was_accepted() {
        let (listener, to, socket, runtime) = about_to_connect();
        let _context = runtime.enter();
        {
            let mut connecting = pin!(establish(socket, to));
            let mut context = Context::from_waker(Waker::noop());
            assert!(connecting.as_mut().poll(&mut context).is_pending());
        }
        let read = listener.accept().unwrap().0.read(&mut [0]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn only_sockets_that_listen_on_the_port_are_adopted() {
        let tcp = TcpOptions::default();
        let bound = |kind| {
            let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
            socket.bind(&any_address(0, false).into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            (socket, port)
        };
        let listening = || {
            let (socket, port) = bound(Type::STREAM);
            socket.listen(1).unwrap();
            (socket, port)
        };
        let (socket, port) = listening();
        assert!(adopt(socket.into(), port, false, &tcp).is_some());
        let (socket, port) = listening();
        assert!(adopt(socket.into(), port, true, &tcp).is_none());
        let (socket, port) = listening();
        assert!(adopt(socket.into(), port ^ 1, false, &tcp).is_none());
        for kind in [Type::STREAM, Type::DGRAM] {
            let (socket, port) = bound(kind);
            assert!(adopt(socket.into(), port, false, &tcp).is_none());
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(adopt(file.into(), port, false, &tcp).is_none());
    }
}
