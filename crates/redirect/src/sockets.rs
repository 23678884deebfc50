//! The TCP connections that are open in the calling thread's network namespace, from a socket dump.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

use crate::plan::Mark;

/// An open TCP connection, seen from this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// The port at this end.
    pub local_port: u16,
    /// The other end, with an IPv4-mapped address written as the IPv4 address that it is.
    pub peer: SocketAddr,
}

/// A listening TCP socket of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its mark; 0 when it has none, or when the kernel does not tell.
    pub mark: u32,
    /// Whether it takes connections to addresses that are not the namespace's. Linux 5.10 and later tell.
    pub transparent: Option<bool>,
    /// The user who made it.
    pub uid: u32,
}

/// A TCP socket of this namespace.
#[derive(Debug, Clone)]
struct Entry {
    local: SocketAddr,
    peer: SocketAddr,
    mark: u32,
    transparent: Option<bool>,
    uid: u32,
    id: SocketId,
    family: u8,
}

/// Connections whose other end is neither loopback nor one of `own` addresses: those that routing rules concern.
pub(crate) fn open_connections(own: &[IpAddr]) -> io::Result<Vec<Connection>> {
    Ok(Connected::dump()?.open(own))
}

/// Cuts those connections: the application gets ECONNABORTED, the other end a reset. Returns how many there were.
///
/// # Errors
/// `Unsupported` (EOPNOTSUPP) from a kernel without CONFIG_INET_DIAG_DESTROY.
pub(crate) fn cut_open_connections(own: &[IpAddr]) -> io::Result<usize> {
    let connected = Connected::dump()?;
    let mut cut = 0;
    for entry in connected.open_sockets(own) {
        destroy(entry)?;
        cut += 1;
    }
    Ok(cut)
}

/// The connections of the application that the proxy has captured, as the application's sockets see them: the proxy's
/// socket has its mark, the pod as its peer, and an address that is not the pod's.
pub(crate) fn captured_connections(own: &[IpAddr], mark: Mark) -> io::Result<Vec<Connection>> {
    // The pod's own end of each is more than half open.
    if sockets_in_use().is_some_and(|n| n > 0 && dump(StateFlags::LISTEN).is_ok_and(|l| l.len() >= n)) {
        return Ok(Vec::new());
    }
    Ok(Connected::dump()?.captured(own, mark))
}

/// Those that are open and were never captured.
pub(crate) fn uncaptured_connections(own: &[IpAddr], mark: Mark) -> io::Result<Vec<Connection>> {
    let connected = Connected::dump()?;
    let captured = connected.captured(own, mark);
    let mut open = connected.open(own);
    open.retain(|c| !captured.contains(c));
    Ok(open)
}

/// Whatever listens for TCP.
pub(crate) fn listeners() -> io::Result<Vec<Listener>> {
    let listener = |e: Entry| Listener { address: e.local, mark: e.mark, transparent: e.transparent, uid: e.uid };
    Ok(dump(StateFlags::LISTEN)?.into_iter().map(listener).collect())
}

/// Every socket of this namespace that has a peer.
struct Connected(Vec<Entry>);

impl Connected {
    /// Such a dump walks the kernel's table of all connections of all namespaces, which takes milliseconds even when this
    /// one has none; so it is asked first whether there can be any.
    fn dump() -> io::Result<Self> {
        if sockets_in_use() == Some(0) {
            return Ok(Self(Vec::new()));
        }
        /// linux/net/tcp_states.h: TCP_NEW_SYN_RECV, those that are half open.
        const NEW_SYN_RECV: StateFlags = StateFlags::from_bits_retain(1 << 12);
        let without_end = StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT);
        dump(without_end | NEW_SYN_RECV).map(Self)
    }

    fn open_sockets(&self, own: &[IpAddr]) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(|e| {
            let peer = e.peer.ip();
            !peer.is_loopback() && !peer.is_unspecified() && !own.contains(&peer)
        })
    }

    fn open(&self, own: &[IpAddr]) -> Vec<Connection> {
        unique(self.open_sockets(own).map(|e| Connection { local_port: e.local.port(), peer: e.peer }))
    }

    fn captured(&self, own: &[IpAddr], mark: Mark) -> Vec<Connection> {
        let captured = self
            .0
            .iter()
            .filter(|e| e.mark & mark.mask == mark.value && own.contains(&e.peer.ip()) && !own.contains(&e.local.ip()));
        unique(captured.map(|e| Connection { local_port: e.peer.port(), peer: e.local }))
    }
}

/// How many TCP sockets of this namespace listen or are connected; not counted are those in TIME_WAIT, and those that are half
/// open, which there are only where something listens. None when /proc does not tell.
/// Both files follow the thread's namespace (Linux 3.17 and later).
fn sockets_in_use() -> Option<usize> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok();
    let count = |text: &str, of: &str| -> Option<usize> {
        text.lines().find_map(|l| l.strip_prefix(of))?.split_whitespace().nth(1)?.parse().ok()
    };
    // Without IPv6 there is no second file.
    let v6 = read("sockstat6").map_or(Some(0), |text| count(&text, "TCP6:"));
    Some(count(&read("sockstat")?, "TCP:")? + v6?)
}

fn unique(connections: impl Iterator<Item = Connection>) -> Vec<Connection> {
    connections.collect::<BTreeSet<_>>().into_iter().collect()
}

fn open() -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
    Ok(fd)
}

fn request(family: u8, states: StateFlags, socket_id: SocketId, flags: u16) -> Vec<u8> {
    let mut packet = NetlinkMessage::from(SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states.bits()),
        socket_id,
    }));
    packet.header.flags = flags;
    packet.finalize();
    let mut buffer = vec![0u8; packet.buffer_len()];
    packet.serialize(&mut buffer);
    buffer
}

/// Destroys one socket; one that has closed meanwhile is fine.
fn destroy(entry: &Entry) -> io::Result<()> {
    /// linux/sock_diag.h; the message is that of a request otherwise.
    const SOCK_DESTROY: u16 = 21;
    let fd = open()?;
    let mut message = request(entry.family, StateFlags::all(), entry.id.clone(), NLM_F_REQUEST | NLM_F_ACK);
    message[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    match receive_dump(fd.as_raw_fd(), &mut Vec::new()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// The TCP sockets in these states, of both families.
fn dump(states: StateFlags) -> io::Result<Vec<Entry>> {
    let fd = open()?;
    let mut out = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let message = request(family, StateFlags::from_bits_retain(states.bits()), any, NLM_F_REQUEST | NLM_F_DUMP);
        send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
        receive_dump(fd.as_raw_fd(), &mut out)?;
    }
    Ok(out)
}

fn receive_dump(fd: std::os::fd::RawFd, out: &mut Vec<Entry>) -> io::Result<()> {
    let mut received = vec![0u8; 64 * 1024];
    loop {
        let n = recv(fd, &mut received, MsgFlags::empty())?;
        let mut rest = received.get(..n).unwrap_or_default();
        while !rest.is_empty() {
            let m = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match m.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) if e.code.is_none() => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(r)) => out.push(entry(*r)),
                _ => {}
            }
            let len = (m.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

fn entry(response: InetResponse) -> Entry {
    /// linux/inet_diag.h: INET_DIAG_MARK, which the kernel adds for those who may see it.
    const MARK: u16 = 15;
    /// linux/inet_diag.h: INET_DIAG_SOCKOPT, a `struct inet_diag_sockopt` of bit fields.
    const SOCKOPT: u16 = 22;
    /// The sixth bit of the first byte; compilers count from the other end on big-endian machines.
    const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };
    let attribute = |kind: u16| {
        response.nlas.iter().find(|n| n.kind() == kind).map(|n| {
            let mut value = vec![0; n.value_len()];
            n.emit_value(&mut value);
            value
        })
    };
    let mark = attribute(MARK).and_then(|v| Some(u32::from_ne_bytes(v.try_into().ok()?)));
    let transparent = attribute(SOCKOPT).and_then(|v| v.first().map(|bits| bits & TRANSPARENT != 0));
    let id = response.header.socket_id;
    Entry {
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        mark: mark.unwrap_or(0),
        transparent,
        uid: response.header.uid,
        family: response.header.family,
        id,
    }
}
