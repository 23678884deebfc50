//! What the node agent says of itself and of its pods, at `/status` and `/verify` of its admin address: written by the
//! agent, read by the command line.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where the agent answers, unless it is told otherwise.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);

/// The whole node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The node's clock, in milliseconds since 1970; none from an agent that is older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// Why pods cannot join here now; none when they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready: Option<String>,
    /// What is missing for the runtime to call the plugin; none when nothing is, or when the agent does not install it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_missing: Option<String>,
    /// How packets reach the proxy.
    pub capture: CaptureStatus,
    /// The proxies that are connected now.
    pub proxies: Vec<ProxyStatus>,
    /// What lets the node's health probes through.
    pub host_probes: HostProbesStatus,
    /// Every pod that runs here and that the agent has decided about.
    pub pods: Vec<PodStatus>,
}

/// How packets reach the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// `routed`, `nat`, `nat-iptables-nft` or `nat-iptables-legacy`.
    pub kind: String,
    /// Why this one.
    pub why: String,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its process id.
    pub pid: i32,
    /// Whether it has taken every pod that was there when it connected.
    pub synced: bool,
}

/// What lets the node's health probes through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostProbesStatus {
    /// `in place`, `failed` or `off`.
    pub state: String,
    /// Addresses of pods whose probes get through.
    pub addresses: usize,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid, where the source of the pod has one.
    pub uid: Option<String>,
    /// What was decided.
    pub state: PodState,
    /// Why.
    pub reason: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Connections that were open when it joined and go on as they were.
    pub exempted_connections: usize,
    /// What was measured; none before the first look, and for pods that are not enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
}

/// What was decided about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// It belongs to the mesh.
    Enrolled,
    /// It has left the mesh; its captured connections go on until they close.
    Leaving,
    /// It does not belong to the mesh.
    Skipped,
}

/// What the last look at a pod has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// In a word.
    pub state: VerificationState,
    /// Why it is not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long ago it was verified, or since when it is not, in milliseconds.
    pub for_ms: u64,
    /// What was put right the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_repair: Option<RepairStatus>,
}

/// Whether a pod is really in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerificationState {
    /// Rules, listeners and probes were as they should be.
    Verified,
    /// The rules are not those of the plan, and could not be repaired.
    Drifted,
    /// Something does not answer as it should.
    Unverified,
}

impl VerificationState {
    /// The word that metrics, events and status use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Drifted => "drifted",
            Self::Unverified => "unverified",
        }
    }
}

impl fmt::Display for VerificationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that somebody changed and that was put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairStatus {
    /// What differed.
    pub what: String,
    /// Who had changed it, as far as the kernel tells.
    pub by: String,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}
