//! The status that the node agent reports for itself and its pods, at `/status` and `/verify` of
//! its admin address. Written by the agent, read by the command line.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

mod exclusions;

pub use exclusions::ExclusionsStatus;
pub use mesh::enrol::EnrolmentReason;
use serde::{Deserialize, Serialize};

/// Default admin address of the agent.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);

/// Status of the agent, its node and all pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The node's clock, in milliseconds since the Unix epoch; `None` from agents without this
    /// field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// Why pods cannot join now; `None` if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready: Option<String>,
    /// Which reason `unready` states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready_code: Option<UnreadyReason>,
    /// Why the plugin is not installed; `None` if it is, or if the agent does not install it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_missing: Option<String>,
    /// Pods of the mesh for which the runtime did not call the plugin; `None` if there are none
    /// since the last ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin_not_called: Option<PluginNotCalled>,
    /// The traffic capture method.
    pub capture: CaptureStatus,
    /// The connected proxies.
    pub proxies: Vec<ProxyStatus>,
    /// The rule that lets the node's health probes bypass the proxy.
    pub host_probes: HostProbesStatus,
    /// Every pod on this node that the agent has decided about.
    pub pods: Vec<PodStatus>,
}

/// Why pods cannot join on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnreadyReason {
    /// The runtime does not call the plugin yet.
    PluginMissing,
    /// The API server has not listed all pods and namespaces yet.
    ApiServerUnsynced,
    /// No proxy has received the pods of this node yet.
    ProxyUnsynced,
    /// Pods of the mesh start without the runtime calling the plugin.
    PluginNotCalled,
}

/// Pods of the mesh that started without the runtime calling the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginNotCalled {
    /// Their number since the last ADD, or since the agent started.
    pub pods: u32,
    /// Namespace and name of the last one, separated by a slash.
    pub last: String,
}

/// The traffic capture method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// `routed`, `nat`, `nat-iptables-nft` or `nat-iptables-legacy`.
    pub kind: String,
    /// Why this method was chosen.
    pub why: String,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Process id.
    pub pid: i32,
    /// Whether it has accepted every pod that existed when it connected.
    pub synced: bool,
}

/// The rule that lets the node's health probes bypass the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostProbesStatus {
    /// `in place`, `failed` or `off`.
    pub state: String,
    /// Number of pod addresses that the rule covers.
    pub addresses: usize,
    /// Why the rule could not be installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Status of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid, if the source of the pod has one.
    pub uid: Option<String>,
    /// Enrolment state.
    pub state: PodState,
    /// Reason of the state.
    pub reason: String,
    /// Which reason `reason` states; `None` if the pod could not join for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<EnrolmentReason>,
    /// Pod addresses.
    pub ips: Vec<IpAddr>,
    /// Number of connections that were open when the pod joined and are not captured.
    pub exempted_connections: usize,
    /// If the pod belonged to the mesh when it started outside: for how long, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_outside: Option<StartedOutside>,
    /// Connections that bypass the proxy because of the pod's annotations; `None` if there are
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusions: Option<ExclusionsStatus>,
    /// Containers with capabilities that matter to the capture, by the pod's specification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<ContainerCapabilities>,
    /// Verification result; `None` before the first one, and for pods that are not enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
}

/// A start of a pod outside the mesh, to which it belonged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartedOutside {
    /// Time from the pod's start to its capture, in milliseconds.
    pub outside_ms: u64,
    /// Why the pod started outside the mesh.
    pub cause: LateCause,
}

/// Why a pod of the mesh started outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LateCause {
    /// The agent was ready, but the container runtime did not call the plugin.
    PluginNotCalled,
    /// No agent was ready on the node.
    AgentNotReady,
}

impl LateCause {
    /// Its name in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PluginNotCalled => "plugin_not_called",
            Self::AgentNotReady => "agent_not_ready",
        }
    }
}

/// Capabilities of a container with which it can change or bypass the capture of its pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerCapabilities {
    /// Name of the container.
    pub container: String,
    /// `privileged`, or those of NET_ADMIN, NET_RAW and SYS_ADMIN that the specification adds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Whether it may have NET_RAW because the specification does not drop it: most runtimes grant
    /// it by default.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default_net_raw: bool,
}

impl fmt::Display for ContainerCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = self.default_net_raw.then_some("NET_RAW by default");
        let all: Vec<&str> = self
            .added
            .iter()
            .map(String::as_str)
            .chain(default)
            .collect();
        write!(f, "{}: {}", self.container, all.join(", "))
    }
}

/// Enrolment state of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// The pod belongs to the mesh.
    Enrolled,
    /// The pod is leaving the mesh; its captured connections continue until they close.
    Leaving,
    /// The pod does not belong to the mesh.
    Skipped,
}

/// Result of the last verification of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// Verification state.
    pub state: VerificationState,
    /// Why the pod is not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which reason `reason` states; `None` for a verified pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<VerificationReason>,
    /// Time since the last verification, or since the pod stopped being verified, in milliseconds.
    pub for_ms: u64,
    /// The last repair of the pod's rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_repair: Option<RepairStatus>,
    /// Whether a verified pod was also probed from the node: not if the node's route to the pod
    /// does not lead through the pod's own interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_node: Option<bool>,
}

/// Verification state of a pod: whether it is in the mesh, as measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerificationState {
    /// Rules and listeners are as planned, and probes were answered.
    Verified,
    /// The rules differ from the plan and could not be repaired.
    Drifted,
    /// The pod could not be verified, e.g. because the proxy does not answer.
    Unverified,
}

/// Why a pod is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VerificationReason {
    /// The rules differ from the plan, or could not be read.
    RulesDiffer,
    /// The pod's network namespace cannot be found or entered.
    NamespaceUnavailable,
    /// The pod's network namespace contains more objects than are read.
    TooManyObjects,
    /// The proxy does not listen on one of its ports in the pod.
    ProxyNotListening,
    /// Another process listens on one of the proxy's ports in the pod.
    ForeignListener,
    /// A probe was not answered by the proxy of the pod.
    ProbeFailed,
    /// The pod's plan is not what its annotations require now.
    PlanKept,
    /// Nothing that the agent observes proves that the pod's traffic is captured, such as that of a
    /// virtual machine.
    Unprovable,
    /// Rules of another program in the pod may change where its packets go.
    ForeignRules,
    /// Packets of the pod do not pass its network stack, as those of a virtual machine.
    BelowTheStack,
}

impl VerificationState {
    /// The name used in metrics, events and status.
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

/// A repair of a pod's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairStatus {
    /// What differed.
    pub what: String,
    /// The processes that changed the rules, as reported by the kernel.
    pub by: String,
    /// Time since the repair, in milliseconds.
    pub ago_ms: u64,
}
