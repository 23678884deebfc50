//! Connection errors, as shown in the access log.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use discovery::UndiscoveredAddress;
use error_code::{ErrorCode, proxy as codes};
use hbone::OpenError;
use http::StatusCode;
use identity::NoCredentials;
use mesh::admit::Admission;
use mesh::authorize::Ruling;
use mesh::route::Route;
use mesh::{ClientAddr, Decision, Identity, ServerAddr, Text, TunnelAddr};
use telemetry::ConnectionFailure;

use super::budget::Budget;
use super::handshake::TlsError;

/// Why a connection failed or was closed. The causes are shared, because one failed attempt to open
/// a tunnel fails all connections that wait for it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The destination did not accept the connection. Likely cause: nothing listens there, or a
    /// firewall blocks it.
    #[error("{code}: cannot connect to {to}: {cause}", code = self.code())]
    Connect {
        to: ServerAddr,
        cause: Arc<io::Error>,
    },
    /// The other proxy did not accept the connection. Likely cause: no proxy serves the destination
    /// pod, or port 15008 is blocked.
    #[error(
        "{code}: cannot connect to the proxy at {to}: {cause}{hint}",
        code = self.code(),
        hint = network_policy_hint(cause)
    )]
    ConnectTunnel {
        to: TunnelAddr,
        cause: Arc<io::Error>,
    },
    /// The TLS handshake of an outgoing tunnel failed. Likely cause: the peer has another identity
    /// or root, or is not a mesh proxy.
    #[error("{code}: TLS handshake with {to}: {cause}", code = self.code())]
    ConnectTls { to: TunnelAddr, cause: TlsError },
    /// The TLS handshake of an incoming tunnel failed. Likely cause: the client's certificate is
    /// missing, expired, or of another root or trust domain.
    #[error("{code}: TLS handshake with {from}: {cause}", code = self.code())]
    AcceptTls { from: ClientAddr, cause: TlsError },
    /// The pod has no valid certificate. Likely cause: the certificate authority is unreachable or
    /// refuses to issue one.
    #[error("{code}: {0}", code = self.code())]
    NoCredentials(#[from] NoCredentials),
    /// The peer's certificate is revoked. Likely cause: a CRL lists it or one of its issuers.
    #[error("{code}: the certificate of {0} is revoked", code = self.code())]
    Revoked(RevokedPeer),
    /// The other proxy did not open a stream. Likely cause: it denies the connection, cannot reach
    /// the destination, or is exiting.
    #[error("{code}: {0}", code = self.code())]
    Tunnel(OpenError),
    /// HTTP/2 failed on a tunnel. Likely cause: the peer or the network failed, or the peer
    /// violated the protocol.
    #[error("{code}: {0}", code = self.code())]
    TunnelBroken(Arc<io::Error>),
    /// There is no route to the destination. Likely cause: the service has no healthy endpoint that
    /// serves the port.
    #[error("{code}: {0}", code = self.code())]
    NoRoute(Box<Decision<Route>>),
    /// The destination's host name could not be resolved. Likely cause: the name does not exist, or
    /// no name server answers.
    #[error("{code}: {0}", code = self.code())]
    Unresolved(String),
    /// It is unknown whether the destination is in the mesh. Likely cause: the control plane is
    /// unreachable or overloaded.
    #[error("{code}: {0}", code = self.code())]
    Undiscovered(#[from] UndiscoveredAddress),
    /// The mesh state is older than allowed. Likely cause: the control plane has been unreachable
    /// for longer than the configured maximum.
    #[error("{code}: mesh state is older than UNDERPASS_MAX_STATE_AGE", code = self.code())]
    StateTooOld,
    /// The destination is a port of the proxy itself. Likely cause: an application connects to
    /// 15001, 15006, 15008 or 15053.
    #[error("{code}: {0} is one of the proxy's own ports", code = self.code())]
    SelfCall(ServerAddr),
    /// A policy denies the connection. Likely cause: a deny policy matches, or no allow policy
    /// does.
    #[error("{code}: {0}", code = self.code())]
    Denied(Ruling),
    /// A policy denies a connection that it had allowed. Likely cause: the policy or the pod's
    /// workload changed.
    #[error("{code}: connection closed due to policy change: {0}", code = self.code())]
    PolicyChanged(Ruling),
    /// The peer requested something other than CONNECT to a host and port. Likely cause: it is not
    /// a mesh proxy.
    #[error("{code}: expected CONNECT HOST:PORT", code = self.code())]
    InvalidRequest,
    /// The peer requested a destination that is not in this pod. Likely cause: its mesh state is
    /// stale.
    #[error("{code}: {0}", code = self.code())]
    NotInPod(Box<Decision<Admission>>),
    /// The mesh did not include the pod in time, so its policies are unknown. Likely cause: the
    /// control plane has not sent the pod yet, or CLUSTER_ID or NODE_NAME is not as it knows them.
    #[error(
        "{code}: the mesh state did not include this pod within {seconds} s{namesakes}",
        code = self.code(),
        seconds = waited.as_secs()
    )]
    PodUnknown {
        waited: Duration,
        /// The pods of the same name that it did include.
        namesakes: String,
    },
    /// The pod left. Likely cause: it was deleted or removed from the mesh.
    #[error("{code}: the pod left the mesh or was deleted", code = self.code())]
    PodLeft,
    /// The proxy exits. Likely cause: it is being upgraded, and the connection outlived the drain
    /// period.
    #[error("{code}: the drain period expired during shutdown", code = self.code())]
    Drained,
    /// The pod has as many open connections as it may have, or most of them while descriptors are
    /// short. Likely cause: connections are opened faster than they end, or are never closed.
    #[error(
        "{code}: {what} ({setting})",
        code = self.code(),
        what = too_many_connections(budget, limit),
        setting = budget.setting()
    )]
    TooManyConnections {
        /// The budget that is exhausted.
        budget: Budget,
        /// Its limit.
        limit: usize,
    },
    /// Received bytes waited in this connection for longest when they became too many. Likely
    /// cause: the application does not read.
    #[error(
        "{code}: more than {limit} bytes wait for applications that do not read ({setting}), and \
         this connection was stalled for longest",
        code = self.code(),
        setting = budget.setting()
    )]
    TooManyUnread {
        /// The budget that is exhausted.
        budget: Budget,
        /// Its limit, in bytes.
        limit: usize,
    },
    /// Reading or writing failed. Likely cause: an application or the network reset the connection.
    #[error("{code}: {0}", code = self.code())]
    Io(Arc<io::Error>),
}

/// The peer with a revoked certificate.
#[derive(Debug, Clone)]
pub(crate) enum RevokedPeer {
    /// A peer whose identity was not read.
    Unknown,
    /// A verified peer.
    Verified(Identity),
    /// A peer that was expected to have one of these SPIFFE ids.
    Expected(Vec<Text>),
}

impl fmt::Display for RevokedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the peer"),
            Self::Verified(identity) => identity.fmt(f),
            Self::Expected(ids) => {
                let ids: Vec<_> = ids.iter().map(Text::as_str).collect();
                f.write_str(&ids.join(" or "))
            }
        }
    }
}

impl From<Option<Identity>> for RevokedPeer {
    fn from(identity: Option<Identity>) -> Self {
        identity.map_or(Self::Unknown, Self::Verified)
    }
}

/// Describes why a pod gets no more connections.
fn too_many_connections(budget: &Budget, limit: &usize) -> String {
    match budget {
        Budget::Descriptors => format!(
            "the proxy has {limit} open descriptors, and the pod has most of the connections"
        ),
        _ => format!("the pod has {limit} open connections, its limit"),
    }
}

impl ConnectionError {
    /// Returns a function that describes a failure to connect to `to`. A destination that accepted
    /// the connection and reset it at once was connected.
    pub(super) fn connecting(to: impl Into<ServerAddr>) -> impl FnOnce(io::Error) -> Self {
        let to = to.into();
        move |e| match e.kind() {
            io::ErrorKind::ConnectionReset => e.into(),
            _ => Self::Connect {
                to,
                cause: Arc::new(e),
            },
        }
    }

    /// The documented error code.
    pub(crate) fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Connect { .. } => &codes::CONNECT,
            Self::ConnectTunnel { .. } => &codes::CONNECT_TUNNEL,
            Self::ConnectTls { .. } | Self::AcceptTls { .. } => &codes::TLS,
            Self::NoCredentials(_) => &error_code::control::NO_CREDENTIALS,
            Self::Revoked(_) => &error_code::control::REVOKED,
            Self::Tunnel(OpenError::Closed(_)) | Self::TunnelBroken(_) => &codes::TUNNEL_BROKE,
            Self::Tunnel(_) => &codes::TUNNEL_REFUSED,
            Self::NoRoute(_) | Self::Unresolved(_) => &codes::NO_UPSTREAM,
            Self::Undiscovered(_) => &error_code::control::UNDISCOVERED,
            Self::StateTooOld => &error_code::control::STATE_TOO_OLD,
            Self::SelfCall(_) => &codes::SELF_CALL,
            Self::Denied(_) => &codes::DENIED,
            Self::PolicyChanged(_) => &codes::POLICY_CHANGED,
            Self::InvalidRequest | Self::NotInPod(_) => &codes::SERVING,
            Self::PodUnknown { .. } => &codes::POD_UNKNOWN,
            Self::PodLeft => &codes::POD_GONE,
            Self::Drained => &codes::DRAINED,
            Self::TooManyConnections { .. } => &codes::TOO_MANY_CONNECTIONS,
            Self::TooManyUnread { .. } => &codes::TOO_MANY_UNREAD,
            Self::Io(_) => &codes::IO,
        }
    }

    /// Whether to try another endpoint: this one is unreachable, or its proxy could not connect to
    /// it.
    pub(super) fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTunnel { .. }
            | Self::ConnectTls { .. }
            | Self::TunnelBroken(_)
            | Self::Tunnel(
                OpenError::Closed(_)
                | OpenError::Reset(_)
                | OpenError::TimedOut
                | OpenError::Silent,
            )
            | Self::NoRoute(_)
            | Self::Unresolved(_) => true,
            Self::Tunnel(OpenError::Rejected(status)) => *status == StatusCode::SERVICE_UNAVAILABLE,
            _ => false,
        }
    }

    /// Whether nothing answered at all, as when a node is down.
    pub(super) fn is_silence(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            Self::Connect { cause, .. } | Self::ConnectTunnel { cause, .. } => {
                matches!(
                    cause.kind(),
                    TimedOut | HostUnreachable | NetworkUnreachable
                )
            }
            Self::ConnectTls { cause, .. } => matches!(cause, TlsError::TimedOut),
            Self::TunnelBroken(cause) => cause.kind() == TimedOut,
            Self::Tunnel(error) => matches!(error, OpenError::TimedOut | OpenError::Silent),
            _ => false,
        }
    }

    /// The status with which a request on a tunnel is rejected.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotInPod(decision) if decision.outcome == Admission::Mismatch => {
                StatusCode::BAD_REQUEST
            }
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl ConnectionFailure for ConnectionError {
    fn response_flags(&self) -> &'static str {
        match self {
            Self::Denied(_) | Self::PolicyChanged(_) | Self::StateTooOld => "DENY",
            Self::Tunnel(OpenError::Rejected(StatusCode::UNAUTHORIZED)) => "DENY",
            Self::ConnectTls { .. } | Self::AcceptTls { .. } => "TLS_FAILURE",
            Self::NoCredentials(_) => "IDENTITY_ERROR",
            Self::Revoked(_) => "CERT_REVOKED",
            Self::TunnelBroken(_) => "H2_HANDSHAKE_FAILURE",
            Self::Connect { .. }
            | Self::ConnectTunnel { .. }
            | Self::NoRoute(_)
            | Self::Unresolved(_)
            | Self::Undiscovered(_)
            | Self::SelfCall(_)
            | Self::Tunnel(_)
            | Self::InvalidRequest
            | Self::NotInPod(_)
            | Self::TooManyConnections { .. }
            | Self::PodUnknown { .. } => "CONNECT",
            Self::TooManyUnread { .. } | Self::PodLeft | Self::Drained | Self::Io(_) => "-",
        }
    }

    fn is_revoked(&self) -> bool {
        matches!(self, Self::Revoked(_))
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Names the usual reason for which a proxy does not answer.
fn network_policy_hint(cause: &io::Error) -> &'static str {
    if cause.kind() == io::ErrorKind::TimedOut {
        " (a NetworkPolicy may block port 15008)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use mesh::PodAddr;
    use mesh::authorize::RulingReason;

    use super::*;

    const VARIANTS: usize = 23;

    /// The variant's number in the order of declaration. A new variant does not compile until it is
    /// added here and to the table.
    fn number(error: &ConnectionError) -> usize {
        match error {
            ConnectionError::Connect { .. } => 0,
            ConnectionError::ConnectTunnel { .. } => 1,
            ConnectionError::ConnectTls { .. } => 2,
            ConnectionError::AcceptTls { .. } => 3,
            ConnectionError::NoCredentials(_) => 4,
            ConnectionError::Revoked(_) => 5,
            ConnectionError::Tunnel(_) => 6,
            ConnectionError::TunnelBroken(_) => 7,
            ConnectionError::NoRoute(_) => 8,
            ConnectionError::Unresolved(_) => 9,
            ConnectionError::StateTooOld => 10,
            ConnectionError::SelfCall(_) => 11,
            ConnectionError::Denied(_) => 12,
            ConnectionError::PolicyChanged(_) => 13,
            ConnectionError::InvalidRequest => 14,
            ConnectionError::NotInPod(_) => 15,
            ConnectionError::PodUnknown { .. } => 16,
            ConnectionError::PodLeft => 17,
            ConnectionError::Drained => 18,
            ConnectionError::Undiscovered(_) => 19,
            ConnectionError::TooManyConnections { .. } => 20,
            ConnectionError::TooManyUnread { .. } => 21,
            ConnectionError::Io(_) => VARIANTS - 1,
        }
    }

    fn address<A: From<std::net::SocketAddr>>() -> A {
        A::from(([10, 0, 0, 1], 80).into())
    }

    fn cause(kind: io::ErrorKind) -> Arc<io::Error> {
        Arc::new(io::Error::new(kind, "it failed"))
    }

    fn identity() -> Identity {
        Identity {
            trust_domain: "td".into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
        }
    }

    fn tls(kind: TlsError) -> ConnectionError {
        let to = address();
        ConnectionError::ConnectTls { to, cause: kind }
    }

    fn tls_failure(error: rustls::Error) -> TlsError {
        TlsError::Failed(Arc::new(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    fn denial() -> Ruling {
        Ruling {
            reason: RulingReason::NoneAllowed,
            dry_run: Vec::new(),
        }
    }

    fn not_in_pod(outcome: Admission) -> ConnectionError {
        ConnectionError::NotInPod(Box::new(Decision::new(outcome, "not here")))
    }

    /// Every error with its response flags and the text in the access log, code included.
    fn table() -> Vec<(ConnectionError, &'static str, &'static str)> {
        let unsent = identity::IssueError::Unsent("refused".into());
        use ConnectionError as E;
        use io::ErrorKind::{ConnectionRefused, TimedOut};
        vec![
            (
                E::connecting(address::<PodAddr>())(TimedOut.into()),
                "CONNECT",
                "UP-PROXY-003: cannot connect to 10.0.0.1:80: timed out",
            ),
            (
                E::ConnectTunnel {
                    to: address(),
                    cause: cause(ConnectionRefused),
                },
                "CONNECT",
                "UP-PROXY-004: cannot connect to the proxy at 10.0.0.1:80: it failed",
            ),
            (
                E::ConnectTunnel {
                    to: address(),
                    cause: cause(TimedOut),
                },
                "CONNECT",
                "UP-PROXY-004: cannot connect to the proxy at 10.0.0.1:80: it failed \
                    (a NetworkPolicy may block port 15008)",
            ),
            (
                tls(TlsError::TimedOut),
                "TLS_FAILURE",
                "UP-PROXY-005: TLS handshake with 10.0.0.1:80: no handshake within 5 s",
            ),
            (
                tls(tls_failure(rustls::Error::NoCertificatesPresented)),
                "TLS_FAILURE",
                "UP-PROXY-005: TLS handshake with 10.0.0.1:80: the peer presented no certificate",
            ),
            (
                tls(TlsError::Config(rustls::Error::General("no roots".into()))),
                "TLS_FAILURE",
                "UP-PROXY-005: TLS handshake with 10.0.0.1:80: unexpected error: no roots",
            ),
            (
                E::AcceptTls {
                    from: address(),
                    cause: TlsError::NoIdentity,
                },
                "TLS_FAILURE",
                "UP-PROXY-005: TLS handshake with 10.0.0.1:80: the peer's certificate has no \
                    SPIFFE id",
            ),
            (
                NoCredentials::NotYet(identity(), Some(Arc::new(unsent))).into(),
                "IDENTITY_ERROR",
                "UP-CONTROL-008: no certificate for spiffe://td/ns/ns/sa/sa yet: refused",
            ),
            (
                E::Revoked(RevokedPeer::Unknown),
                "CERT_REVOKED",
                "UP-CONTROL-009: the certificate of the peer is revoked",
            ),
            (
                E::Revoked(Some(identity()).into()),
                "CERT_REVOKED",
                "UP-CONTROL-009: the certificate of spiffe://td/ns/ns/sa/sa is revoked",
            ),
            (
                E::Revoked(RevokedPeer::Expected(vec!["a".into(), "b".into()])),
                "CERT_REVOKED",
                "UP-CONTROL-009: the certificate of a or b is revoked",
            ),
            (
                E::Tunnel(OpenError::Rejected(StatusCode::UNAUTHORIZED)),
                "DENY",
                "UP-PROXY-006: http status: 401 Unauthorized",
            ),
            (
                E::Tunnel(OpenError::TimedOut),
                "CONNECT",
                "UP-PROXY-006: no answer to CONNECT within 15 s",
            ),
            (
                E::Tunnel(OpenError::Silent),
                "CONNECT",
                "UP-PROXY-006: the tunnel is silent: the peer did not answer a ping",
            ),
            (
                E::Tunnel(OpenError::Reset(hbone::Reason::REFUSED_STREAM)),
                "CONNECT",
                "UP-PROXY-006: the peer reset the stream: refused stream before processing any \
                    application logic",
            ),
            (
                E::Tunnel(OpenError::Closed("reset".into())),
                "CONNECT",
                "UP-PROXY-007: the tunnel closed: reset",
            ),
            (
                E::TunnelBroken(cause(ConnectionRefused)),
                "H2_HANDSHAKE_FAILURE",
                "UP-PROXY-007: it failed",
            ),
            (
                E::NoRoute(Box::new(Decision::new(
                    Route::Refuse { service: None },
                    "no endpoint",
                ))),
                "CONNECT",
                "UP-PROXY-008: no endpoint",
            ),
            (
                E::Unresolved("db.example has no address".into()),
                "CONNECT",
                "UP-PROXY-008: db.example has no address",
            ),
            (
                UndiscoveredAddress::NoAnswer("net/10.0.0.1".to_owned()).into(),
                "CONNECT",
                "UP-CONTROL-013: the control plane did not answer for net/10.0.0.1 within 5 s",
            ),
            (
                E::StateTooOld,
                "DENY",
                "UP-CONTROL-011: mesh state is older than UNDERPASS_MAX_STATE_AGE",
            ),
            (
                E::SelfCall(address()),
                "CONNECT",
                "UP-PROXY-009: 10.0.0.1:80 is one of the proxy's own ports",
            ),
            (
                E::Denied(denial()),
                "DENY",
                "UP-PROXY-010: allow policies exist, but none allowed",
            ),
            (
                E::PolicyChanged(denial()),
                "DENY",
                "UP-PROXY-011: connection closed due to policy change: allow policies exist, but \
                    none allowed",
            ),
            (
                E::InvalidRequest,
                "CONNECT",
                "UP-PROXY-012: expected CONNECT HOST:PORT",
            ),
            (
                not_in_pod(Admission::Mismatch),
                "CONNECT",
                "UP-PROXY-012: not here",
            ),
            (
                E::PodUnknown {
                    waited: Duration::from_secs(5),
                    namesakes: String::new(),
                },
                "CONNECT",
                "UP-PROXY-017: the mesh state did not include this pod within 5 s",
            ),
            (
                E::PodLeft,
                "-",
                "UP-PROXY-013: the pod left the mesh or was deleted",
            ),
            (
                E::Drained,
                "-",
                "UP-PROXY-014: the drain period expired during shutdown",
            ),
            (
                E::TooManyConnections {
                    budget: Budget::PodConnections,
                    limit: 7,
                },
                "CONNECT",
                "UP-PROXY-019: the pod has 7 open connections, its limit \
                    (UNDERPASS_POD_MAX_CONNECTIONS)",
            ),
            (
                E::TooManyUnread {
                    budget: Budget::NodeUnread,
                    limit: 7,
                },
                "-",
                "UP-PROXY-020: more than 7 bytes wait for applications that do not read \
                    (UNDERPASS_NODE_MAX_UNREAD_BYTES), and this connection was stalled for longest",
            ),
            (
                io::Error::new(io::ErrorKind::ConnectionReset, "reset").into(),
                "-",
                "UP-PROXY-015: reset",
            ),
        ]
    }

    #[test]
    fn every_error_has_a_code_response_flags_and_a_text() {
        let mut seen = [false; VARIANTS];
        for (error, flags, text) in table() {
            seen[number(&error)] = true;
            assert_eq!(error.response_flags(), flags, "{error:?}");
            assert_eq!(error.to_string(), text, "{error:?}");
            assert!(text.starts_with(error.code().code), "{error:?}");
        }
        assert_eq!(seen, [true; VARIANTS], "the table lacks a variant");
    }

    #[test]
    fn requests_are_rejected_with_the_status_of_their_error() {
        let rejected = |error: ConnectionError| error.status().as_u16();
        assert_eq!(rejected(ConnectionError::InvalidRequest), 400);
        assert_eq!(rejected(not_in_pod(Admission::Mismatch)), 400);
        assert_eq!(rejected(not_in_pod(Admission::Unavailable)), 503);
        assert_eq!(rejected(ConnectionError::Denied(denial())), 401);
        assert_eq!(rejected(ConnectionError::PolicyChanged(denial())), 503);
        assert_eq!(rejected(ConnectionError::PodLeft), 503);
    }

    #[test]
    fn only_unreachable_endpoints_are_replaced() {
        let rejected = |status| ConnectionError::Tunnel(OpenError::Rejected(status));
        assert!(tls(TlsError::TimedOut).is_retriable());
        assert!(rejected(StatusCode::SERVICE_UNAVAILABLE).is_retriable());
        assert!(ConnectionError::Tunnel(OpenError::TimedOut).is_retriable());
        assert!(!rejected(StatusCode::UNAUTHORIZED).is_retriable());
        assert!(!ConnectionError::StateTooOld.is_retriable());
    }
}
