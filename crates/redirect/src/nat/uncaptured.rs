//! Connections that bypass the proxy under `nat`, because they were opened before the pod joined or
//! while rules were missing: conntrack translates a connection by its first packet only.

use nft::{Socket, TrackedConnection, tracked_connection};

use crate::driver::Exceptions;
use crate::error::RedirectError;
use crate::plan::{Plan, RETURN_MARK};
use crate::sockets::{TcpSocket, abort, application_sockets};

/// Lists the open connections of a pod's applications that bypass the proxy, without those that the
/// plan excludes. None is listed if the kernel cannot tell (it lacks nf_conntrack_netlink).
fn uncaptured_sockets(plan: &Plan) -> Result<Vec<TcpSocket>, RedirectError> {
    let mut sockets = application_sockets(plan)?;
    sockets.retain(|s| !is_excluded(plan, s));
    if sockets.is_empty() {
        return Ok(sockets);
    }
    let (conntrack, mut out) = (Socket::open()?, Vec::new());
    for socket in sockets {
        match tracked_connection(&conntrack, socket.local, socket.peer) {
            Ok(tracked) if is_captured(plan, &socket, tracked) => {}
            Ok(_) => out.push(socket),
            Err(e) if e.errno() == Some(libc::EINVAL) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(out)
}

/// Lists these connections.
pub(crate) fn uncaptured(plan: &Plan) -> Result<Exceptions, RedirectError> {
    let sockets = uncaptured_sockets(plan)?;
    Ok(sockets.iter().map(TcpSocket::connection).collect())
}

/// Cuts these connections, but for the `exceptions`; returns their number.
pub(crate) fn cut(plan: &Plan, exceptions: &Exceptions) -> Result<usize, RedirectError> {
    let mut sockets = uncaptured_sockets(plan)?;
    sockets.retain(|s| !exceptions.contains(&s.connection()));
    abort(&sockets)
}

fn is_captured(plan: &Plan, socket: &TcpSocket, tracked: Option<TrackedConnection>) -> bool {
    let is_inbound = tracked.is_none_or(|t| t.opened_by == socket.peer);
    let passes =
        tracked.is_some_and(|t| t.is_redirected || t.mark & RETURN_MARK.mask == RETURN_MARK.value);
    passes || (plan.bypass_inbound && is_inbound)
}

fn is_excluded(plan: &Plan, socket: &TcpSocket) -> bool {
    let (exclude, peer) = (&plan.exclude, socket.peer.ip());
    let mut cidrs = exclude.inbound_cidrs.iter().chain(&exclude.outbound_cidrs);
    plan.probe_sources.contains(&peer)
        || exclude.inbound_ports.contains(&socket.local.port())
        || exclude.outbound_ports.contains(&socket.peer.port())
        || cidrs.any(|net| net.contains(&peer))
}
