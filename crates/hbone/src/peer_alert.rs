//! The alert of a peer that rejects this side.

use std::io;

use rustls::AlertDescription;

/// The peer rejected the TLS handshake after this side had completed it.
#[derive(Debug, thiserror::Error)]
#[error("the peer rejected this side's certificate: {0:?}; its access log has the reason")]
struct RejectedByPeer(AlertDescription);

/// The error of a connection on which the peer has sent nothing but an alert.
pub(crate) fn rejected_by_peer(alert: AlertDescription) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, RejectedByPeer(alert))
}
