//! Socket options that no maintained crate covers: those of a transparent proxy for both address
//! families, and of netlink.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockRef;

/// Lets a socket accept connections to, and send from, non-local addresses: IP_TRANSPARENT, and on
/// an IPv6 socket also IPV6_TRANSPARENT (a dual-stack socket needs both). Needs CAP_NET_ADMIN.
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

/// The destination before NAT (SO_ORIGINAL_DST); `None` if conntrack has no entry for the
/// connection.
pub fn original_dst(socket: &impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let v4 = socket.original_dst_v4().ok().and_then(|a| a.as_socket());
    v4.or_else(|| socket.original_dst_v6().ok().and_then(|a| a.as_socket()))
}

/// Makes closing the socket send a reset: SO_LINGER with a zero timeout.
///
/// # Errors
/// Those of setsockopt(2).
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO))
}

/// Makes the kernel apply the filters of netlink dump requests: NETLINK_GET_STRICT_CHK, since Linux
/// 4.20.
///
/// # Errors
/// Those of setsockopt(2).
pub fn filter_dumps(socket: &impl AsFd) -> io::Result<()> {
    set_flag(socket, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK)
}

/// The number of bytes that were written to a TCP socket and that its peer has not acknowledged,
/// sent or not; an unacknowledged FIN counts as one (SIOCOUTQ, tcp(7)).
///
/// # Errors
/// Those of ioctl(2).
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ, writes an int to the pointer, which is valid.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A table of iptables-legacy as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTable {
    /// The offsets of the first and of the last rule of each built-in chain that the table has, by
    /// hook (linux/netfilter.h).
    pub hooks: [Option<(usize, usize)>; 5],
    /// The rules: `struct ipt_entry` or `struct ip6t_entry`, one after the other.
    pub entries: Vec<u8>,
}

/// Reads a table of iptables-legacy that exists; the kernel would create any other. `None` if it
/// has more than `limit` bytes. Needs CAP_NET_ADMIN in the socket's network namespace.
///
/// # Errors
/// Those of getsockopt(2); `WouldBlock` if the table's size changes meanwhile.
pub fn read_legacy_table(
    socket: &impl AsFd,
    v6: bool,
    table: &str,
    limit: usize,
) -> io::Result<Option<LegacyTable>> {
    // Both families have the same numbers: IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES.
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    let name = table
        .as_bytes()
        .get(..31.min(table.len()))
        .unwrap_or_default();
    // struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
    let mut info = [0; 84];
    info[..name.len()].copy_from_slice(name);
    get_xtables(socket, v6, GET_INFO, &mut info)?;
    let number = |at: usize| {
        let bytes = [info[at], info[at + 1], info[at + 2], info[at + 3]];
        u32::from_ne_bytes(bytes)
    };
    let hook = |n: usize| {
        let bounds = (number(36 + 4 * n) as usize, number(56 + 4 * n) as usize);
        (number(32) & 1 << n != 0).then_some(bounds)
    };
    let hooks = [hook(0), hook(1), hook(2), hook(3), hook(4)];
    let size = number(80) as usize;
    if size > limit {
        return Ok(None);
    }
    // struct ipt_get_entries: name, size, and the rules, which contain 64-bit numbers.
    let start = 36usize.next_multiple_of(align_of::<u64>());
    let mut value = vec![0; start + size];
    value[..name.len()].copy_from_slice(name);
    value[32..36].copy_from_slice(&number(80).to_ne_bytes());
    get_xtables(socket, v6, GET_ENTRIES, &mut value)?;
    let entries = value.split_off(start);
    Ok(Some(LegacyTable { hooks, entries }))
}

/// Passes a request of iptables-legacy, whose answer replaces it.
fn get_xtables(
    socket: &impl AsFd,
    v6: bool,
    name: libc::c_int,
    value: &mut [u8],
) -> io::Result<()> {
    let level = if v6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the pointers are valid for the call, and `length` is the size of `value`, beyond
    // which the kernel does not write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
