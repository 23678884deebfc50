//! Why a namespace could not be changed or read.

use std::io;

use error_code::{ErrorCode, redirect as codes};
use nft::NftError;
use nft::netlink::TooMany;

/// Why a namespace could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The plan has no pod address, so there is nothing to capture. Likely cause: an empty
    /// prevResult.
    #[error("the plan has no pod address")]
    NoAddress,
    /// An nf_tables operation failed. Likely cause: a kernel without nf_tables or its tproxy
    /// module.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A routing or socket operation failed. Likely cause: a kernel without policy routing for that
    /// family.
    #[error("{operation}: {source}")]
    Routing {
        /// The operation that failed.
        operation: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// An iptables program failed or could not be run. Likely cause: it is not installed on this
    /// node.
    #[error("iptables: {source}")]
    Iptables {
        /// The program's error.
        source: io::Error,
    },
    /// Several removals failed; everything else was removed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Multiple(Vec<RedirectError>),
}

impl RedirectError {
    /// Returns the documented error code.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            _ if self.is_too_many() => &codes::TOO_MANY,
            Self::NoAddress => &codes::NO_ADDRESS,
            Self::Nft(_) => &codes::NF_TABLES,
            Self::Routing { .. } => &codes::ROUTING,
            Self::Iptables { .. } => &codes::IPTABLES,
            Self::Multiple(errors) => errors.first().map_or(&codes::ROUTING, |e| e.code()),
        }
    }

    /// Whether the namespace contains more than is read, so that its state is unknown.
    pub fn is_too_many(&self) -> bool {
        match self {
            Self::Nft(error) => error.is_too_many(),
            Self::Routing { source, .. } | Self::Iptables { source } => TooMany::is(source),
            Self::NoAddress | Self::Multiple(_) => false,
        }
    }
}

/// What was read; nothing if the kernel lacks the feature, but not if there is too much.
pub(crate) fn or_nothing<T: Default>(
    read: Result<T, impl Into<RedirectError>>,
) -> Result<T, RedirectError> {
    match read.map_err(Into::into) {
        Err(e) if e.is_too_many() => Err(e),
        read => Ok(read.unwrap_or_default()),
    }
}

/// Converts the error of a routing or socket operation.
pub(crate) fn failed(operation: &str) -> impl FnOnce(io::Error) -> RedirectError {
    let operation = operation.to_owned();
    move |source| RedirectError::Routing { operation, source }
}

/// Converts the error of an iptables program.
pub(crate) fn iptables_failed(source: io::Error) -> RedirectError {
    RedirectError::Iptables { source }
}
