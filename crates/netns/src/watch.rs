//! Kernel notifications of changes to the firewall or routing of a network namespace, with their
//! author.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetNs;

/// RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE,
/// RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE and RTNLGRP_IPV6_RULE (linux/rtnetlink.h), as bits.
const ROUTING: u32 =
    group(1) | group(4) | group(5) | group(7) | group(8) | group(9) | group(11) | group(19);
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h), as a bit.
const NF_TABLES: u32 = group(7);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// The author of a change, as far as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// A process, as reported by nf_tables.
    Process {
        /// Process id in the initial pid namespace.
        pid: u32,
        /// Process name at that time (`comm`).
        name: String,
    },
    /// A netlink port, as reported by rtnetlink: that of the socket that made the change. For the
    /// first socket of a process it is the process id.
    Port {
        /// Netlink port.
        port: u32,
        /// Name of the process with that id, if it exists in the caller's pid namespace.
        name: Option<String>,
    },
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "{name} (pid {pid})"),
            Self::Port {
                port,
                name: Some(name),
            } => write!(f, "{name} (netlink port {port})"),
            Self::Port { port, name: None } => write!(f, "netlink port {port}"),
        }
    }
}

/// A subscription to the notifications of one namespace. Uses one or two sockets, and no CPU time
/// while nothing changes.
#[derive(Debug)]
pub struct Watch {
    nf_tables: AsyncFd<OwnedFd>,
    routing: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Watches nf_tables, ip rules, routes, addresses, interfaces and traffic control for changes
    /// from now on.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or a socket cannot be created.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let routing = netns
            .run(|| subscribe(SockProtocol::NetlinkRoute, ROUTING))
            .map_err(io::Error::other)??;
        Ok(Self {
            routing: Some(routing),
            ..Self::open_nf_tables(netns)?
        })
    }

    /// Watches nf_tables only.
    ///
    /// # Errors
    /// Those of [`Watch::open`].
    pub fn open_nf_tables(netns: &NetNs) -> io::Result<Self> {
        let nf_tables = netns
            .run(|| subscribe(SockProtocol::NetlinkNetFilter, NF_TABLES))
            .map_err(io::Error::other)??;
        Ok(Self {
            nf_tables,
            routing: None,
        })
    }

    /// Waits for a change that [`Watch::drain`] has not consumed yet. Cancel safe.
    ///
    /// # Errors
    /// If a socket fails. Lost notifications (ENOBUFS) count as a change, not as an error.
    pub async fn changed(&self) -> io::Result<()> {
        let routing = async {
            match &self.routing {
                Some(routing) => wait_readable(routing).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = wait_readable(&self.nf_tables) => result,
            result = routing => result,
        }
    }

    /// Consumes the pending notifications and returns their authors, each once. Never blocks, and
    /// ends even if there are always more.
    ///
    /// State read from the namespace afterwards includes all of these changes.
    pub fn drain(&self) -> Vec<Author> {
        let mut authors: Vec<Author> = Vec::new();
        read_messages(&self.nf_tables, |message| {
            let author = author_of_generation(message);
            authors.extend(author.filter(|a| !authors.contains(a)));
        });
        let mut ports = BTreeSet::new();
        if let Some(routing) = &self.routing {
            read_messages(routing, |message| _ = ports.insert(message.port));
        }
        authors.extend(ports.into_iter().filter_map(author_of_routing));
        authors
    }
}

fn subscribe(protocol: SockProtocol, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    // SAFETY: an OwnedFd owns its descriptor and returns the same open one for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}

/// Maximum number of receptions of one [`Watch::drain`]; the default receive buffer holds about 300
/// small messages. A process that changes something all the time would otherwise never let it end.
const MAX_RECEIVED: usize = 1024;

/// Waits for a message without consuming it.
async fn wait_readable(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = socket.readable().await?;
        let peeked =
            ready.try_io(
                |socket| match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
                    // Messages were lost because the buffer was full, so there was a change.
                    Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
                    Err(e) => Err(e.into()),
                },
            );
        match peeked {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Reads pending messages directly from the socket, regardless of the readiness cached by
/// tokio.
fn read_messages(socket: &AsyncFd<OwnedFd>, mut each: impl FnMut(NetlinkMessage<'_>)) {
    let mut buffer = vec![0; 32 * 1024];
    for _ in 0..MAX_RECEIVED {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(received) => split_messages(buffer.get(..received).unwrap_or_default(), &mut each),
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(_) => return, // no more messages; `changed` reports socket errors
        }
    }
}

/// A netlink message: its type, the port of the socket that made the change, and the bytes after
/// the header.
#[derive(Debug, Clone, Copy)]
struct NetlinkMessage<'a> {
    kind: u16,
    port: u32,
    body: &'a [u8],
}

/// Splits received bytes into messages; stops at the first truncated one.
fn split_messages(mut received: &[u8], each: &mut impl FnMut(NetlinkMessage<'_>)) {
    while let Some(header) = received.get(..16) {
        let number = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let len = number(0) as usize;
        let Some(body) = received.get(16..len) else {
            return;
        };
        each(NetlinkMessage {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            port: number(12),
            body,
        });
        received = received.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The author in the NEWGEN message that ends every transaction.
fn author_of_generation(message: NetlinkMessage<'_>) -> Option<Author> {
    // NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN (linux/netfilter/nf_tables.h)
    const NEWGEN: u16 = 10 << 8 | 15;
    const PROC_PID: u16 = 2;
    const PROC_NAME: u16 = 3;
    if message.kind != NEWGEN {
        return None;
    }
    let (mut pid, mut name) = (None, None);
    let mut attributes = message.body.get(4..)?; // after nfgenmsg
    while let Some(header) = attributes.get(..4) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        match u16::from_ne_bytes([header[2], header[3]]) {
            PROC_PID => pid = value.try_into().ok().map(u32::from_be_bytes),
            PROC_NAME => {
                name = value
                    .split(|b| *b == 0)
                    .next()
                    .map(|n| String::from_utf8_lossy(n).into_owned())
            }
            _ => {}
        }
        attributes = attributes
            .get(len.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some(Author::Process {
        pid: pid?,
        name: name?,
    })
}

/// The author of the routing changes of a port. Port 0 is the kernel, which updates routes when
/// interfaces change.
fn author_of_routing(port: u32) -> Option<Author> {
    let name = || {
        std::fs::read_to_string(format!("/proc/{port}/comm"))
            .ok()
            .map(|n| n.trim_end().to_owned())
    };
    (port != 0).then(|| Author::Port { port, name: name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_message_has_its_author_and_malformed_ones_have_none() {
        let mut body = vec![0, 0, 0, 7];
        for (kind, value) in [
            (1u16, &[0u8, 0, 0, 9][..]),
            (2, &[0, 0, 1, 44]),
            (3, b"nft\0"),
        ] {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        let author = |body: &[u8]| {
            author_of_generation(NetlinkMessage {
                kind: 0x0a0f,
                port: 0,
                body,
            })
        };
        assert_eq!(
            author(&body),
            Some(Author::Process {
                pid: 300,
                name: "nft".to_owned()
            })
        );
        assert_eq!(author(&body).unwrap().to_string(), "nft (pid 300)");
        for end in 0..body.len() {
            let _ = author(&body[..end]); // does not panic
        }
        assert_eq!(
            author(&[0, 0, 0, 0, 3, 0, 2, 0]),
            None,
            "a length shorter than its header"
        );
        assert_eq!(
            author_of_generation(NetlinkMessage {
                kind: 0x0a06,
                port: 0,
                body: &body
            }),
            None,
            "not a generation message"
        );
        let mut seen = 0;
        split_messages(
            &[15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &mut |_| seen += 1,
        );
        assert_eq!(seen, 0, "a message shorter than its header");
    }
}
