//! Being told by the kernel when somebody changes the firewall or the routing of a network namespace.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetNs;

/// RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE and RTNLGRP_IPV6_RULE (linux/rtnetlink.h), as bits.
const ROUTING: u32 = group(7) | group(8) | group(11) | group(19);
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h), as a bit.
const NF_TABLES: u32 = group(7);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Notifications of one namespace. Holds two descriptors, and costs nothing while nothing changes.
#[derive(Debug)]
pub struct Watch {
    routing: AsyncFd<OwnedFd>,
    nf_tables: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Begins to watch; changes from now on are told.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or a socket cannot be made.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let open = |protocol, groups| netns.run(|| listen(protocol, groups)).map_err(io::Error::other)?;
        Ok(Self {
            routing: open(SockProtocol::NetlinkRoute, ROUTING)?,
            nf_tables: open(SockProtocol::NetlinkNetFilter, NF_TABLES)?,
        })
    }

    /// Waits until something has changed since the last call. Safe to cancel.
    ///
    /// # Errors
    /// When the sockets fail; not when so much has changed that the kernel could not tell all of it.
    pub async fn changed(&self) -> io::Result<()> {
        tokio::select! {
            told = drain(&self.routing) => told,
            told = drain(&self.nf_tables) => told,
        }
    }
}

fn listen(protocol: SockProtocol, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    // SAFETY: an OwnedFd is its descriptor and returns the same open one for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}

/// Waits for a message and takes all that are there: what they say is found out by looking.
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0; 8192];
    let mut told = false;
    loop {
        let mut ready = socket.readable().await?;
        loop {
            match recv(socket.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => told = true,
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(e) => return Err(e.into()),
            }
        }
        ready.clear_ready();
        if told {
            return Ok(());
        }
    }
}
