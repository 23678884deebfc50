//! The protocol between the CNI plugin and the node agent: one JSON message a packet on a `SOCK_SEQPACKET` socket.
//!
//! ```text
//! plugin ── Add + netns fd ──▶ agent          plugin ── Del [+ netns fd] ──▶ agent
//!        ◀── Enrol{plan} | Skip | Failed ──           ◀── Gone ──
//!        ── Installed ──▶
//!        ◀── Ready | Failed ──
//!
//! plugin ── Check | Status ──▶ agent          plugin ── Gc ──▶ agent
//!        ◀── Ready | Skip | Failed ──                ◀── Gone ──
//! ```
//!
//! The descriptor, not a path, says which namespace is meant. A connection that closes before `Ready` undoes the ADD.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use redirect::Plan;
use serde::{Deserialize, Serialize};

/// Version of this protocol. An agent refuses a plugin of another version by name, so that a half-done upgrade says so.
pub const VERSION: u32 = 1;

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/underpass/agent.sock";

/// What the plugin says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromPlugin {
    /// Here is a pod; its network namespace comes with this packet.
    Add {
        /// [`VERSION`].
        version: u32,
        /// Which attachment this is.
        attachment: Attachment,
        /// Which pod it is.
        pod: PodRef,
        /// The addresses in prevResult, without prefix lengths.
        addresses: Vec<IpAddr>,
        /// Annotations of the pod that a plan looks at, if the runtime passes them on.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
        /// CNI_NETNS: where the namespace can be found again after a restart of the agent. Never trusted by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns_path: Option<PathBuf>,
        /// W3C trace context of the runtime, if it sent one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        /// How long the plugin will wait in all, in milliseconds.
        deadline_ms: u64,
    },
    /// The rules of the plan are in the namespace.
    Installed,
    /// Is this attachment still as it should be?
    Check {
        /// [`VERSION`].
        version: u32,
        /// Which attachment it is.
        attachment: Attachment,
        /// Which pod it is.
        pod: PodRef,
    },
    /// Could a pod be enrolled now?
    Status {
        /// [`VERSION`].
        version: u32,
    },
    /// Forget every attachment that is not named here.
    Gc {
        /// [`VERSION`].
        version: u32,
        /// The attachments that are still in use.
        valid: Vec<Attachment>,
    },
    /// The attachment goes away. The namespace comes along if it still exists.
    Del {
        /// [`VERSION`].
        version: u32,
        /// Which attachment this is.
        attachment: Attachment,
        /// Which pod it was, if the runtime said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<PodRef>,
    },
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromAgent {
    /// The pod belongs to the mesh: install this.
    Enrol {
        /// What to install in the pod's namespace.
        plan: Box<Plan>,
    },
    /// The pod does not belong to the mesh.
    Skip {
        /// Why, for the log.
        reason: String,
    },
    /// The proxy serves the pod; also the answer to `Check` and `Status` when all is well.
    Ready,
    /// The pod cannot be enrolled.
    Failed {
        /// Stable code, such as `UP-AGENT-003`.
        code: String,
        /// What happened, and its cause.
        why: String,
        /// What to do next.
        next_step: String,
        /// Whether trying again later can help.
        retry: bool,
    },
    /// The answer to `Del` and `Gc`: the agent and the proxies have forgotten the attachments.
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
    /// K8S_POD_UID, which not every runtime sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
