//! The socket options of a transparent proxy that no well-kept crate covers for both families.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockRef;

/// Lets a socket accept connections to, and send from, addresses that are not the host's: IP_TRANSPARENT, and
/// IPV6_TRANSPARENT on an IPv6 socket (an IPv6 socket that also serves IPv4 takes both). Needs CAP_NET_ADMIN.
///
/// # Errors
/// Those of setsockopt(2); `PermissionDenied` without the capability.
pub fn set_transparent(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    set_flag(socket, libc::SOL_IP, libc::IP_TRANSPARENT)?;
    if v6 {
        set_flag(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT)?;
    }
    Ok(())
}

/// The destination before a NAT rule rewrote it (SO_ORIGINAL_DST), or `None` when conntrack has no such entry.
pub fn original_dst(socket: &impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let v4 = socket.original_dst_v4().ok().and_then(|a| a.as_socket());
    v4.or_else(|| socket.original_dst_v6().ok().and_then(|a| a.as_socket()))
}

/// Makes `close` on this socket send a reset: SO_LINGER with a zero time.
///
/// # Errors
/// Those of setsockopt(2).
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO))
}

fn set_flag(socket: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
