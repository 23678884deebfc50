//! A netlink socket for nf_tables, and its errors.

use std::io;

use crate::netlink::{NetlinkSocket, Protocol, TooMany};

/// Why an nf_tables operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket could not be opened or used. Likely cause: no CAP_NET_ADMIN, or a kernel without
    /// nf_tables.
    #[error("cannot access nf_tables over netlink: {0}")]
    Socket(#[from] io::Error),
    /// Objects cannot be listed. Likely cause: a process in the pod created too many of them
    /// ([`NftError::is_too_many`]).
    #[error("cannot list {objects} of nf_tables: {source}")]
    List {
        /// The kind of objects.
        objects: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The kernel rejected an object of a batch; nothing of the batch was applied.
    #[error("the kernel rejected {object}: {source}")]
    Refused {
        /// A description of the object.
        object: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl NftError {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::List { source, .. } | Self::Socket(source) => {
                source.raw_os_error()
            }
        }
    }

    /// Whether there are more objects than are read.
    pub fn is_too_many(&self) -> bool {
        matches!(self, Self::List { source, .. } if TooMany::is(source))
    }
}

/// An nf_tables socket of the network namespace that the thread was in when opening it.
#[derive(Debug)]
pub struct Socket(pub(crate) NetlinkSocket);

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NftError::Socket`].
    pub fn open() -> Result<Self, NftError> {
        Ok(Self(NetlinkSocket::open(Protocol::Netfilter)?))
    }
}
