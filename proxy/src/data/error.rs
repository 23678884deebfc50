//! Every way in which a connection can fail, as the access log tells it.

use std::io;
use std::net::SocketAddr;

use error_code::{ErrorCode, proxy as codes};

use crate::hbone::OpenError;
use crate::identity::NoCredentials;

/// Why a connection failed or was ended.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("{code}: cannot connect to {to}: {why}", code = self.code())]
    Connect { to: SocketAddr, why: String },
    #[error("{code}: cannot connect to the proxy at {to}: {why}", code = self.code())]
    ConnectTunnel { to: SocketAddr, why: String },
    #[error("{code}: TLS handshake with {with}: {why}", code = self.code())]
    Tls { with: SocketAddr, why: String },
    #[error("{code}: {0}", code = self.code())]
    NoCredentials(#[from] NoCredentials),
    #[error("{code}: the certificate of {0} is revoked", code = self.code())]
    Revoked(String),
    #[error("{code}: {0}", code = self.code())]
    Tunnel(OpenError),
    #[error("{code}: {0}", code = self.code())]
    TunnelBroke(String),
    #[error("{code}: {0}", code = self.code())]
    NoUpstream(String),
    #[error("{code}: the control plane has not confirmed the mesh for longer than it may", code = self.code())]
    StateTooOld,
    #[error("{code}: {0} is a port of the proxy", code = self.code())]
    SelfCall(SocketAddr),
    #[error("{code}: {0}", code = self.code())]
    Denied(String),
    #[error("{code}: connection closed due to policy change: {0}", code = self.code())]
    PolicyChanged(String),
    #[error("{code}: {0}", code = self.code())]
    Serving(String),
    #[error("{code}: the pod has left", code = self.code())]
    PodGone,
    #[error("{code}: the proxy stops and the drain time has passed", code = self.code())]
    Drained,
    #[error("{code}: {0}", code = self.code())]
    Io(String),
}

impl ConnectionError {
    /// The code under which users find this in the documentation.
    pub(crate) fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Connect { .. } => &codes::CONNECT,
            Self::ConnectTunnel { .. } => &codes::CONNECT_TUNNEL,
            Self::Tls { .. } => &codes::TLS,
            Self::NoCredentials(_) => &error_code::control::NO_CREDENTIALS,
            Self::Revoked(_) => &error_code::control::REVOKED,
            Self::Tunnel(OpenError::Ended(_)) | Self::TunnelBroke(_) => &codes::TUNNEL_BROKE,
            Self::Tunnel(_) => &codes::TUNNEL_REFUSED,
            Self::NoUpstream(_) => &codes::NO_UPSTREAM,
            Self::StateTooOld => &error_code::control::STATE_TOO_OLD,
            Self::SelfCall(_) => &codes::SELF_CALL,
            Self::Denied(_) => &codes::DENIED,
            Self::PolicyChanged(_) => &codes::POLICY_CHANGED,
            Self::Serving(_) => &codes::SERVING,
            Self::PodGone => &codes::POD_GONE,
            Self::Drained => &codes::DRAINED,
            Self::Io(_) => &codes::IO,
        }
    }

    /// Whether another endpoint may do: this one could not be connected to, or said that it could not connect onwards.
    pub(super) fn another_may_do(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::ConnectTunnel { .. } | Self::Tls { .. } | Self::TunnelBroke(_) => true,
            Self::Tunnel(OpenError::Refused(status)) => *status == http::StatusCode::SERVICE_UNAVAILABLE,
            Self::Tunnel(OpenError::Ended(_)) | Self::NoUpstream(_) => true,
            _ => false,
        }
    }

    /// The value of Istio's label response_flags.
    pub(crate) fn response_flags(&self) -> &'static str {
        match self {
            Self::Denied(_) | Self::PolicyChanged(_) | Self::StateTooOld => "DENY",
            Self::Tls { .. } => "TLS_FAILURE",
            Self::NoCredentials(_) => "IDENTITY_ERROR",
            Self::Revoked(_) => "CERT_REVOKED",
            Self::TunnelBroke(_) => "H2_HANDSHAKE_FAILURE",
            Self::Tunnel(OpenError::Refused(status)) if *status == http::StatusCode::UNAUTHORIZED => "DENY",
            Self::Connect { .. } | Self::ConnectTunnel { .. } | Self::NoUpstream(_) | Self::SelfCall(_) => "CONNECT",
            Self::Tunnel(_) | Self::Serving(_) => "CONNECT",
            Self::PodGone | Self::Drained | Self::Io(_) => "-",
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}
