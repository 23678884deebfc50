//! A netlink socket for nf_tables, and what can go wrong on it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket could not be opened or used. Likely cause: no CAP_NET_ADMIN, or a kernel without nf_tables.
    #[error("nf_tables cannot be reached over netlink: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused one object of a batch; nothing of the batch was applied.
    #[error("the kernel refused {what}: {source}")]
    Refused {
        /// Which object it was.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NftError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket(source) => source.raw_os_error(),
        }
    }
}

/// A netlink socket in the network namespace that the thread was in when it was opened.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// [`NftError::Socket`].
    pub fn open() -> Result<Self, NftError> {
        let open = || -> nix::Result<OwnedFd> {
            let fd =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            // A batch of a few hundred rules must fit into one send.
            let _ = setsockopt(&fd, sockopt::SndBuf, &(1 << 20));
            // A kernel that does not answer is not waited for.
            setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
            Ok(fd)
        };
        open().map(Self).map_err(|e| NftError::Socket(e.into()))
    }

    pub(crate) fn send(&self, message: &[u8]) -> Result<(), NftError> {
        send(self.0.as_raw_fd(), message, MsgFlags::empty()).map(drop).map_err(|e| NftError::Socket(e.into()))
    }

    pub(crate) fn receive(&self) -> Result<Vec<u8>, NftError> {
        let mut buffer = vec![0u8; 64 * 1024];
        let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|e| NftError::Socket(e.into()))?;
        buffer.truncate(n);
        Ok(buffer)
    }
}

/// One netlink message, cut out of what was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    pub(crate) body: &'a [u8],
}

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

impl Message<'_> {
    /// The error number in an error message; 0 is an acknowledgement.
    pub(crate) fn errno(&self) -> i32 {
        let code = self.body.get(..4).and_then(|b| b.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
        code.saturating_neg()
    }
}

/// Splits a received buffer into messages; stops at the first that does not fit.
pub(crate) fn messages(mut buffer: &[u8]) -> Vec<Message<'_>> {
    let mut out = Vec::new();
    while let Some(header) = buffer.get(..16) {
        let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = field(0) as usize;
        let Some(body) = buffer.get(16..len) else { break };
        out.push(Message { kind: u16::from_ne_bytes([header[4], header[5]]), seq: field(8), body });
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}
