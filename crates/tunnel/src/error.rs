//! What can go wrong with a tunnel.

use connect_h2::{UnknownVersion, Violation};
use serde::{Deserialize, Serialize};
use tls_record::{InvalidState, RecordError, SealError};

use crate::state::VERSION;

/// Why a tunnel has failed. All its streams have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TunnelError {
    /// TLS failed: the peer violated it, reported an error, or the connection was cut.
    #[error(transparent)]
    Tls(#[from] RecordError),
    /// The peer violated HTTP/2, or does not answer.
    #[error(transparent)]
    Http2(#[from] Violation),
    /// Nothing can be sent any more.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The peer sends, but does not read the frames that answer it.
    #[error("the peer does not read what is sent to it")]
    Unread,
}

/// Why a state is not thawed. The connection is lost then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ThawError {
    /// Another version of the software has written the state.
    #[error("the state of a tunnel has version {0}; expected {VERSION}")]
    Version(u16),
    /// No connection can be in this state of TLS.
    #[error(transparent)]
    Tls(#[from] InvalidState),
    /// Another version of the software has written the state of HTTP/2.
    #[error(transparent)]
    Http2(#[from] UnknownVersion),
    /// More plain text is between TLS and HTTP/2 than one record has.
    #[error("{0} bytes of plain text are more than one record has")]
    PlainText(usize),
}
