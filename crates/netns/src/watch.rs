//! Being told by the kernel when somebody changes the firewall or the routing of a network namespace, and who it was.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
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

/// Who changed something, as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// What nf_tables tells.
    Process {
        /// In the initial pid namespace.
        pid: u32,
        /// Its name at that time (`comm`).
        name: String,
    },
    /// What rtnetlink tells: the port of the socket that asked, which is the process id for the first socket of a process.
    Port {
        /// The port.
        port: u32,
        /// Name of the process of that number, if there still is one in our pid namespace.
        name: Option<String>,
    },
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "{name} (pid {pid})"),
            Self::Port { port, name: Some(name) } => write!(f, "{name} (netlink port {port})"),
            Self::Port { port, name: None } => write!(f, "netlink port {port}"),
        }
    }
}

/// Notifications of one namespace. Holds a descriptor for each kind, and costs nothing while nothing changes.
#[derive(Debug)]
pub struct Watch {
    nf_tables: AsyncFd<OwnedFd>,
    routing: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Begins to watch nf_tables, ip rules and routes; changes from now on are told.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or a socket cannot be made.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let routing = netns.run(|| listen(SockProtocol::NetlinkRoute, ROUTING)).map_err(io::Error::other)??;
        Ok(Self { routing: Some(routing), ..Self::nf_tables(netns)? })
    }

    /// Begins to watch nf_tables alone.
    ///
    /// # Errors
    /// Those of [`Watch::open`].
    pub fn nf_tables(netns: &NetNs) -> io::Result<Self> {
        let nf_tables = netns.run(|| listen(SockProtocol::NetlinkNetFilter, NF_TABLES)).map_err(io::Error::other)??;
        Ok(Self { nf_tables, routing: None })
    }

    /// Waits until there is a change that [`Watch::take`] has not returned yet. Safe to cancel.
    ///
    /// # Errors
    /// When the sockets fail; not when so much has changed that the kernel could not tell all of it.
    pub async fn changed(&self) -> io::Result<()> {
        let routing = async {
            match &self.routing {
                Some(routing) => told(routing).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = told(&self.nf_tables) => told,
            told = routing => told,
        }
    }

    /// Takes every change that was told until now, and returns who made them, each once. Never blocks.
    ///
    /// What is read from the namespace afterwards has all of these changes.
    pub fn take(&self) -> Vec<Author> {
        let mut authors = Vec::new();
        drain(&self.nf_tables, |message| authors.extend(author_of_generation(message)));
        if let Some(routing) = &self.routing {
            drain(routing, |message| authors.extend(author_of_routing(message)));
        }
        let mut once: Vec<Author> = Vec::new();
        for author in authors {
            if !once.contains(&author) {
                once.push(author);
            }
        }
        once
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

/// Waits for a message, and leaves it there.
async fn told(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = socket.readable().await?;
        let looked = ready.try_io(|socket| match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
            // Messages were lost for want of room: a change, too.
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(e) => Err(e.into()),
        });
        match looked {
            Ok(told) => return told,
            Err(_would_block) => {}
        }
    }
}

/// Reads until nothing is left, whatever the runtime has heard of the socket so far.
fn drain(socket: &AsyncFd<OwnedFd>, mut each: impl FnMut(Message<'_>)) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(received) => messages(buffer.get(..received).unwrap_or_default(), &mut each),
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(_) => return, // nothing is there; a socket that fails says so where it is waited for
        }
    }
}

/// One netlink message: its type, the port of the socket that asked for the change, and what follows the header.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    kind: u16,
    port: u32,
    body: &'a [u8],
}

/// Splits what was received; stops at the first message that does not fit.
fn messages(mut received: &[u8], each: &mut impl FnMut(Message<'_>)) {
    while let Some(header) = received.get(..16) {
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = number(0) as usize;
        let Some(body) = received.get(16..len) else { return };
        each(Message { kind: u16::from_ne_bytes([header[4], header[5]]), port: number(12), body });
        received = received.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Every transaction ends with a message that says whose it was.
fn author_of_generation(message: Message<'_>) -> Option<Author> {
    const NEWGEN: u16 = 10 << 8 | 15; // NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN (linux/netfilter/nf_tables.h)
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
            PROC_NAME => name = value.split(|b| *b == 0).next().map(|n| String::from_utf8_lossy(n).into_owned()),
            _ => {}
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Author::Process { pid: pid?, name: name? })
}

/// Port 0 is the kernel itself, which changes routes with the interfaces.
fn author_of_routing(message: Message<'_>) -> Option<Author> {
    let port = message.port;
    let name = || std::fs::read_to_string(format!("/proc/{port}/comm")).ok().map(|n| n.trim_end().to_owned());
    (port != 0).then(|| Author::Port { port, name: name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_message_says_who_it_was_and_garbage_says_nothing() {
        let mut body = vec![0, 0, 0, 7];
        for (kind, value) in [(1u16, &[0u8, 0, 0, 9][..]), (2, &[0, 0, 1, 44]), (3, b"nft\0")] {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        let of = |body: &[u8]| author_of_generation(Message { kind: 0x0a0f, port: 0, body });
        assert_eq!(of(&body), Some(Author::Process { pid: 300, name: "nft".to_owned() }));
        assert_eq!(of(&body).unwrap().to_string(), "nft (pid 300)");
        for end in 0..body.len() {
            let _ = of(&body[..end]); // does not panic
        }
        assert_eq!(of(&[0, 0, 0, 0, 3, 0, 2, 0]), None, "a length shorter than its header");
        assert_eq!(author_of_generation(Message { kind: 0x0a06, port: 0, body: &body }), None, "a rule");
        let mut seen = 0;
        messages(&[15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut |_| seen += 1);
        assert_eq!(seen, 0, "a message shorter than its header");
    }
}
