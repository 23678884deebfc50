//! A question about a connection, and its answer.

use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A connection to explain.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The client: a workload's NAME, NAMESPACE/NAME or address.
    pub source: &'a str,
    /// The destination: a workload's NAME or NAMESPACE/NAME, a service's host name or
    /// NAMESPACE/NAME, or an address.
    pub destination: &'a str,
    /// The destination port. Optional for a service with exactly one port.
    pub port: Option<u16>,
    /// The network of addresses in the question.
    pub network: &'a str,
    /// The transport protocol.
    pub protocol: TransportProtocol,
}

/// A transport protocol of IP. Only TCP is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl TransportProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its name in a query and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Not the name of a [`TransportProtocol`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid protocol {0:?}: expected tcp, udp or sctp")]
pub struct ProtocolError(String);

impl FromStr for TransportProtocol {
    type Err = ProtocolError;

    /// Parses a name, in any case, as in a Service of Kubernetes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|p| p.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| ProtocolError(text.chars().take(64).collect()))
    }
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// No workload has this name or address.
    #[error("no workload {0:?} is known to this proxy")]
    NoSource(String),
    /// No workload or service has this name or address.
    #[error("no workload, service or address {0:?} is known to this proxy")]
    NoDestination(String),
    /// Several workloads or services match.
    #[error("{0:?} is ambiguous: {1}")]
    Ambiguous(String, String),
    /// No port was given, and the destination does not have exactly one.
    #[error("no port given for {0}: {1}")]
    WhichPort(String, String),
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The client.
    pub source: Party,
    /// The address that it connects to.
    pub destination: SocketAddr,
    /// The service that owns this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The possible routes; for a service, one per endpoint that can be chosen.
    #[serde(rename = "ways")]
    pub routes: Vec<ExplainedRoute>,
    /// Whether the service has more endpoints than are listed.
    #[serde(default)]
    pub more: bool,
}

/// An explanation, the source of the mesh that it is based on, and the budgets that affect the
/// connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplanationResponse {
    /// Human-readable source of the mesh.
    pub from: String,
    /// The explanation.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// The budgets of the proxy that the pods of its node among these workloads have exhausted, in
    /// words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exhausted_budgets: Vec<String>,
}

/// A workload, and whether it is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// `namespace/name`.
    pub workload: String,
    /// Its SPIFFE id.
    pub identity: String,
    /// Whether a proxy handles its traffic.
    pub in_mesh: bool,
    /// The node where it runs.
    pub node: String,
}

/// One route that a connection may take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRoute {
    /// The kind of route.
    pub path: RouteKind,
    /// The address that the proxy connects to; none for a refused connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The CONNECT authority of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// SPIFFE ids; the other end must prove one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_identities: Vec<String>,
    /// The workload at the other end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Party>,
    /// Why this route was chosen.
    pub reason: String,
    /// What was considered before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<String>,
    /// The policy decision; none if another proxy enforces policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyDecision>,
    /// What enforces policies instead, if there is no policy decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_elsewhere: Option<String>,
    /// Whether the connection is allowed, as far as this proxy can decide.
    pub allowed: bool,
    /// What would have to change to allow the connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub change: Vec<String>,
    /// Where a waypoint forwards the connection, unless its own rules lead elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onward: Vec<Self>,
}

/// The kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteKind {
    /// A tunnel to the destination's proxy.
    Hbone,
    /// A tunnel to a waypoint.
    Waypoint,
    /// A tunnel to the gateway of another network, with a tunnel to the destination inside.
    Gateway,
    /// Plain text.
    Passthrough,
    /// Past the proxy, which does not capture this protocol.
    Uncaptured,
    /// Refused.
    #[default]
    Refused,
}

/// The decision of the authorization policies about a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDecision {
    /// Whether the connection is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// `namespace/name` of the policy whose rule matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Number of that rule, starting at 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// What was considered before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<String>,
    /// What a dry-run policy would have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// The client's SPIFFE id; none if the client is not in the mesh.
    pub client_identity: Option<String>,
}
