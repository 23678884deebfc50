//! TCP sockets of the calling thread's network namespace, from a socket dump.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Nla};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use nft::netlink::{Budget, MAX_OBJECTS, NetlinkSocket, Protocol, TooMany};
use serde::{Deserialize, Serialize};

use crate::error::{RedirectError, failed};
use crate::netlink::{encode, request_encoded};
use crate::plan::Plan;

/// How many sockets of a family are read. An application may have a hundred thousand connections,
/// all of which are read when its pod joins or leaves.
const SOCKETS: Budget = Budget::of(1 << 18);
/// Maximum number of connections that have an ip rule each: packets are compared with one after the
/// other.
pub(crate) const MAX_RULES: usize = MAX_OBJECTS / 2;

/// An open TCP connection, as seen from this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpConnection {
    /// The local port.
    pub local_port: u16,
    /// The peer; IPv4-mapped addresses are converted to IPv4.
    pub peer: SocketAddr,
}

/// A listening TCP socket of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The listening address.
    pub address: SocketAddr,
    /// The socket mark; 0 if there is none or the kernel does not report it.
    pub mark: u32,
    /// Whether the socket accepts connections to non-local addresses; reported by Linux 5.10 and
    /// later.
    pub transparent: Option<bool>,
    /// The uid that created the socket.
    pub uid: u32,
}

/// A TCP socket of this namespace.
#[derive(Debug, Clone)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    mark: u32,
    transparent: Option<bool>,
    uid: u32,
    id: SocketId,
    family: u8,
}

/// Lists the connections that the routing rules affect: those whose peer is neither loopback nor
/// one of the `own` addresses.
pub(crate) fn open_connections(own: &[IpAddr]) -> Result<Vec<TcpConnection>, RedirectError> {
    let open = connected(|s| s.is_open(own).then(|| s.connection()));
    Ok(unique(
        open.map_err(failed("cannot list open connections"))?,
    ))
}

/// Aborts the connections of [`open_connections`]: the application gets ECONNABORTED, the peer a
/// reset. Returns their number.
///
/// # Errors
/// The kernel's error; EOPNOTSUPP on a kernel without CONFIG_INET_DIAG_DESTROY.
pub(crate) fn abort_open_connections(own: &[IpAddr]) -> Result<usize, RedirectError> {
    let open = connected(|s| s.is_open(own).then_some(s));
    abort(&open.map_err(failed("cannot list open connections"))?)
}

/// Aborts these connections; returns their number.
pub(crate) fn abort(sockets: &[TcpSocket]) -> Result<usize, RedirectError> {
    let destroyed = sockets
        .iter()
        .try_for_each(|s| destroy(s.family, s.id.clone()));
    destroyed.map_err(failed("cannot abort open connections"))?;
    Ok(sockets.len())
}

/// Lists the sockets of a pod's applications that are connected to other hosts and can send.
pub(crate) fn application_sockets(plan: &Plan) -> Result<Vec<TcpSocket>, RedirectError> {
    if sockets_in_use() == Some(0) {
        return Ok(Vec::new());
    }
    let is_marked = |mark: u32| mark & plan.mark.mask == plan.mark.value;
    let sockets = dump(StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT, |s| {
        (s.is_open(&plan.addresses) && !is_marked(s.mark)).then_some(s)
    });
    sockets.map_err(failed("cannot list open connections"))
}

/// Lists the connections of a pod that any proxy captured, as seen from the application's sockets.
/// A captured connection has a proxy socket with the proxy's mark, a pod address as peer and a
/// non-pod local address.
pub(crate) fn captured_connections(plan: &Plan) -> Result<Vec<TcpConnection>, RedirectError> {
    if has_only_listeners() {
        return Ok(Vec::new());
    }
    let captured = connected(|s| s.captured(plan));
    Ok(unique(
        captured.map_err(failed("cannot list captured connections"))?,
    ))
}

/// Lists the open connections of a pod that are not captured.
pub(crate) fn uncaptured_connections(plan: &Plan) -> Result<Vec<TcpConnection>, RedirectError> {
    let mut captured = BTreeSet::new();
    let open = connected(|s| {
        captured.extend(s.captured(plan));
        s.is_open(&plan.addresses).then(|| s.connection())
    });
    let mut open = unique(open.map_err(failed("cannot list open connections"))?);
    open.retain(|c| !captured.contains(c));
    Ok(open)
}

/// Whether there may be more open connections than can have an ip rule each.
pub(crate) fn may_exceed_rules() -> bool {
    sockets_in_use().is_none_or(|n| n > MAX_RULES)
}

/// Fails if a list has more connections than can have an ip rule each.
pub(crate) fn limited(
    connections: Vec<TcpConnection>,
) -> Result<Vec<TcpConnection>, RedirectError> {
    if connections.len() > MAX_RULES {
        return Err(failed("cannot add an ip rule for each open connection")(
            TooMany::of(MAX_RULES),
        ));
    }
    Ok(connections)
}

/// Lists the TCP listeners of the namespace.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn listeners() -> Result<Vec<Listener>, RedirectError> {
    dump(StateFlags::LISTEN, |s| {
        Some(Listener {
            address: s.local,
            mark: s.mark,
            transparent: s.transparent,
            uid: s.uid,
        })
    })
    .map_err(failed("cannot list listening sockets"))
}

impl TcpSocket {
    /// Whether the routing rules affect the connection.
    fn is_open(&self, own: &[IpAddr]) -> bool {
        let peer = self.peer.ip();
        !peer.is_loopback() && !peer.is_unspecified() && !own.contains(&peer)
    }

    pub(crate) fn connection(&self) -> TcpConnection {
        TcpConnection {
            local_port: self.local.port(),
            peer: self.peer,
        }
    }

    /// The captured connection, if this is the proxy's socket of one.
    fn captured(&self, plan: &Plan) -> Option<TcpConnection> {
        let (own, mark) = (&plan.addresses, plan.mark);
        let is_captured = self.mark & mark.mask == mark.value
            && own.contains(&self.peer.ip())
            && !own.contains(&self.local.ip());
        is_captured.then(|| TcpConnection {
            local_port: self.peer.port(),
            peer: self.local,
        })
    }
}

/// Lists what `select` makes of the sockets that have a peer.
///
/// The kernel walks the connections of all namespaces, which takes milliseconds even if this one
/// has none, so the dump is skipped if there cannot be any.
fn connected<T>(select: impl FnMut(TcpSocket) -> Option<T>) -> io::Result<Vec<T>> {
    if sockets_in_use() == Some(0) {
        return Ok(Vec::new());
    }
    /// TCP_NEW_SYN_RECV, half-open connections (include/net/tcp_states.h).
    const NEW_SYN_RECV: StateFlags = StateFlags::from_bits_retain(1 << 12);
    let connected =
        StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT);
    dump(connected | NEW_SYN_RECV, select)
}

/// Whether all sockets in use are listeners, so that no connection can be captured: each has an
/// application socket that counts as in use.
///
/// The kernel sums the counters of its processors one after the other, so a count is too low if
/// sockets are opened on one and closed on another meanwhile; and sockets may start to listen after
/// the count. Only a count that is the same after the list is used.
fn has_only_listeners() -> bool {
    let in_use = sockets_in_use();
    let listening = |n| dump(StateFlags::LISTEN, |_| Some(())).is_ok_and(|l| l.len() >= n);
    in_use.is_some_and(|n| n > 0 && listening(n)) && sockets_in_use() == in_use
}

/// Counts the listening and connected TCP sockets of this namespace, without those in TIME_WAIT and
/// half-open ones (which only exist if something listens). `None` if /proc has no counts.
/// Both files belong to the thread's namespace (Linux 3.17 and later).
fn sockets_in_use() -> Option<usize> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok();
    let count = |text: &str, of: &str| -> Option<usize> {
        text.lines()
            .find_map(|l| l.strip_prefix(of))?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    // The file does not exist without IPv6.
    let v6 = read("sockstat6").map_or(Some(0), |text| count(&text, "TCP6:"));
    Some(count(&read("sockstat")?, "TCP:")? + v6?)
}

fn unique(mut connections: Vec<TcpConnection>) -> Vec<TcpConnection> {
    connections.sort_unstable();
    connections.dedup();
    connections
}

fn inet_request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    })
}

/// Destroys a socket, unless it is already closed.
fn destroy(family: u8, id: SocketId) -> io::Result<()> {
    /// Message type (linux/sock_diag.h); the message is otherwise a dump request.
    const SOCK_DESTROY: u16 = 21;
    let socket = NetlinkSocket::open(Protocol::SockDiag)?;
    let message = inet_request(family, StateFlags::all(), id);
    let mut request = encode(message, NLM_F_REQUEST | NLM_F_ACK);
    request[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    match socket.request(&request, &mut Budget::default(), |_| Ok(())) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Lists what `select` makes of the TCP sockets in these states, of both families.
fn dump<T>(
    states: StateFlags,
    mut select: impl FnMut(TcpSocket) -> Option<T>,
) -> io::Result<Vec<T>> {
    let socket = NetlinkSocket::open(Protocol::SockDiag)?;
    let mut out = Vec::new();
    for (family, any) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let message = inet_request(family, StateFlags::from_bits_retain(states.bits()), any);
        let request = encode(message, NLM_F_REQUEST | NLM_F_DUMP);
        out.extend(request_encoded(&socket, &request, SOCKETS, |m| match m {
            SockDiagMessage::InetResponse(response) => select(tcp_socket(*response)),
            _ => None,
        })?);
    }
    Ok(out)
}

fn tcp_socket(response: InetResponse) -> TcpSocket {
    /// INET_DIAG_MARK, which the kernel adds for callers with CAP_NET_ADMIN (linux/inet_diag.h).
    const MARK: u16 = 15;
    /// INET_DIAG_SOCKOPT, a `struct inet_diag_sockopt` of bit fields (linux/inet_diag.h).
    const SOCKOPT: u16 = 22;
    /// The sixth bit field of the first byte; big-endian compilers allocate bit fields from the
    /// top.
    const TRANSPARENT: u8 = if cfg!(target_endian = "little") {
        1 << 5
    } else {
        1 << 2
    };
    let attribute = |kind: u16| {
        response.nlas.iter().find(|n| n.kind() == kind).map(|n| {
            let mut value = vec![0; n.value_len()];
            n.emit_value(&mut value);
            value
        })
    };
    let mark = attribute(MARK).and_then(|v| Some(u32::from_ne_bytes(v.try_into().ok()?)));
    let transparent =
        attribute(SOCKOPT).and_then(|v| v.first().map(|bits| bits & TRANSPARENT != 0));
    let id = response.header.socket_id;
    TcpSocket {
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        mark: mark.unwrap_or(0),
        transparent,
        uid: response.header.uid,
        family: response.header.family,
        id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_connections_get_an_ip_rule() {
        let connection = TcpConnection {
            local_port: 1,
            peer: ([10, 0, 0, 1], 2).into(),
        };
        let most = vec![connection; MAX_RULES];
        assert_eq!(limited(most.clone()).unwrap().len(), MAX_RULES);
        let error = limited([most, vec![connection]].concat()).unwrap_err();
        assert!(error.is_too_many(), "{error}");
        assert_eq!(error.code(), &error_code::redirect::TOO_MANY);
    }
}
