//! The protocol between the CNI plugin and the node agent: one JSON message per packet on a
//! `SOCK_SEQPACKET` socket.
//!
//! ```text
//! plugin ── Add + netns fd ──▶ agent          plugin ── Del [+ netns fd] ──▶ agent
//!        ◀── Enrol{plan} | Skip | Failed ──           ◀── Gone | Skip ──
//!        ── Installed ──▶
//!        ◀── Ready | Failed ──
//!
//! plugin ── Check + netns fd ──▶ agent        plugin ── Status | Gc ──▶ agent
//!        ◀── Ready | Skip | Failed ──                ◀── Ready | Failed | Gone ──
//! ```
//!
//! The file descriptor, not a path, identifies the network namespace. If the connection closes
//! before `Ready`, the ADD is rolled back.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use redirect::Plan;
use serde::{Deserialize, Serialize};

/// Version of this protocol. An agent rejects plugins of other versions with an error that names
/// both, so that an incomplete upgrade is visible.
pub const VERSION: u32 = 1;

/// The agent's default socket.
pub const DEFAULT_SOCKET: &str = "/run/underpass/agent.sock";

/// A message from the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "message",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum FromPlugin {
    /// Enrol a pod. Its network namespace is attached to the packet.
    Add {
        /// [`VERSION`].
        version: u32,
        /// The attachment.
        attachment: Attachment,
        /// The pod.
        pod: PodRef,
        /// The addresses in prevResult, without prefix lengths.
        addresses: Vec<IpAddr>,
        /// The pod's redirection annotations, if the runtime passes them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
        /// CNI_NETNS: the path at which a restarted agent finds the namespace again. Never trusted
        /// without verification.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns_path: Option<PathBuf>,
        /// W3C trace context of the runtime, if it sent one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        /// Total time that the plugin waits, in milliseconds.
        deadline_ms: u64,
    },
    /// The rules of the plan are installed.
    Installed,
    /// Check that the attachment is still as ADD left it. The network namespace is attached to the
    /// packet.
    Check {
        /// [`VERSION`].
        version: u32,
        /// The attachment.
        attachment: Attachment,
        /// The pod.
        pod: PodRef,
    },
    /// Check whether a pod could be enrolled now.
    Status {
        /// [`VERSION`].
        version: u32,
    },
    /// Forget all attachments that are not listed.
    Gc {
        /// [`VERSION`].
        version: u32,
        /// The attachments that are still in use.
        valid: Vec<Attachment>,
    },
    /// Remove an attachment. The network namespace is attached to the packet if it still exists.
    Del {
        /// [`VERSION`].
        version: u32,
        /// The attachment.
        attachment: Attachment,
        /// The pod, if the runtime named it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<PodRef>,
    },
}

/// A message from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "message",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum FromAgent {
    /// The pod belongs to the mesh: install the plan.
    Enrol {
        /// The rules to install in the pod's namespace.
        plan: Box<Plan>,
    },
    /// The pod does not belong to the mesh, or belongs to it by another attachment. To a `Del`: the
    /// rules stay for that one.
    Skip {
        /// The reason, for the log.
        reason: String,
    },
    /// The proxy serves the pod. Also the answer to a successful `Check` or `Status`.
    Ready,
    /// The pod cannot be enrolled.
    Failed {
        /// Stable error code, such as `UP-AGENT-003`.
        code: String,
        /// What happened, and the cause.
        why: String,
        /// What to do next.
        next_step: String,
        /// Whether a later retry may succeed.
        retry: bool,
    },
    /// The answer to `Del` and `Gc`: agent and proxies have removed the attachments.
    Gone,
}

/// A CNI attachment: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// A Kubernetes pod, as the runtime names it in CNI_ARGS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID; not every runtime sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
