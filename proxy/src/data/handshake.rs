//! Why the TLS handshakes at both ends of a tunnel fail.

use std::io;
use std::sync::Arc;

use hbone::HandshakeError;
use identity::{explain, is_revoked};

/// Why a TLS handshake failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TlsError {
    /// The peer did not complete the handshake. Likely cause: it is overloaded, or no TLS endpoint.
    #[error("{}", HandshakeError::TimedOut)]
    TimedOut,
    /// The handshake failed. Likely cause: one side did not accept the other's certificate.
    #[error("{}", explain(.0))]
    Failed(Arc<io::Error>),
    /// The peer's certificate does not name it. Certificates are verified to have an identity, so
    /// this is unreachable in practice.
    #[error("the peer's certificate has no SPIFFE id")]
    NoIdentity,
    /// The handshake could not be configured. Likely cause: no usable roots or protocol versions.
    #[error(transparent)]
    Config(#[from] rustls::Error),
}

impl TlsError {
    /// Whether the handshake failed because the peer's certificate is revoked.
    pub(super) fn is_revoked(&self) -> bool {
        matches!(self, Self::Failed(e) if is_revoked(e))
    }
}

impl From<HandshakeError> for TlsError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::TimedOut => Self::TimedOut,
            HandshakeError::Failed(e) => Self::Failed(Arc::new(e)),
        }
    }
}
