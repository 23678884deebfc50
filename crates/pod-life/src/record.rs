//! What the agent keeps on disk about its pods.

use agent_status::StartedOutside;
use redirect::Plan;
use serde::{Deserialize, Serialize};

use crate::input::{Exceptions, Intent};
use crate::life::Sandbox;

const VERSION: u32 = 1;

/// What a member is to its proxies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The uid by which proxies identify the pod.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// Its plan.
    pub plan: Plan,
    /// Number of connections that were open when it joined and are not captured.
    pub exempted: usize,
    /// These connections; `None` if an older agent wrote only their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exceptions: Option<Exceptions>,
    /// Why the pod belongs to the mesh.
    pub reason: String,
    /// If it belonged to the mesh when it started outside: for how long, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_outside: Option<StartedOutside>,
}

impl Membership {
    pub(crate) fn new(intent: &Intent, plan: Plan) -> Self {
        Self {
            uid: intent.uid.clone(),
            service_account: intent.service_account.clone(),
            plan,
            exceptions: None,
            exempted: 0,
            reason: intent.reason.clone(),
            started_outside: None,
        }
    }

    /// Sets the exempted connections, when the pod joins.
    pub(crate) fn exempt(&mut self, exceptions: Exceptions) {
        self.exempted = exceptions.len();
        self.exceptions = Some(exceptions);
    }

    /// The exempted connections, if more than their number is known.
    pub fn known_exceptions(&self) -> Option<Exceptions> {
        let none = (self.exempted == 0).then(Exceptions::new);
        self.exceptions.clone().or(none)
    }

    /// Keeps only those exempted connections that are still open; none is ever added. Returns
    /// whether any has closed.
    pub(crate) fn retain_exceptions(&mut self, open: Exceptions) -> bool {
        let before = self.exempted;
        let exceptions = match self.exceptions.take() {
            Some(known) => known.intersection(&open).copied().collect(),
            None => open,
        };
        self.exempt(exceptions);
        self.exempted != before
    }
}

/// The persistent state of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The sandbox.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// What the pod is to its proxies.
    #[serde(flatten)]
    pub membership: Membership,
    /// Whether it is leaving the mesh and its captured connections are still open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Whether its ADD had not been answered when this was written. The mark is removed by a later
    /// write, for which no ADD waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unanswered: bool,
}

impl Record {
    /// Whether the pod's ADD has failed, because the agent ended before it was answered: then the
    /// plugin has removed its rules. `has_rules` is whether its namespace has any. One with rules
    /// is a member: its ADD was answered, or neither plugin nor runtime has cleaned up yet, and
    /// nothing may leave it in plain text.
    pub fn is_of_failed_add(&self, has_rules: bool) -> bool {
        self.unanswered && !has_rules
    }
}

/// The persistent state of a pod outside the mesh, with what is needed to enrol it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutsideRecord {
    /// The sandbox.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// Why the pod is outside the mesh.
    pub reason: String,
}

/// All pods of a node, as written to disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Records {
    version: u32,
    /// Identifies the boot: inode numbers of namespaces are not valid after a reboot.
    boot_id: String,
    /// The members.
    pub pods: Vec<Record>,
    /// Pods outside the mesh, which may join later.
    #[serde(default)]
    pub outside: Vec<OutsideRecord>,
}

/// The part of the file that all format versions share.
#[derive(Debug, Deserialize)]
struct Header {
    version: u32,
}

/// Why the pods in a state file are not used.
#[derive(Debug, thiserror::Error)]
pub enum Discarded {
    /// Another version of Underpass wrote the file.
    #[error("has unsupported format version {0}")]
    OtherVersion(u32),
    /// The file is older than the node's last boot, which ended all pods in it.
    #[error("is of an earlier boot")]
    Reboot,
    /// The file is not the JSON that was written. Likely cause: a full or failing disk.
    #[error("is corrupt ({0})")]
    Damaged(#[from] serde_json::Error),
}

impl Records {
    /// The records of these pods, written during the boot with this id.
    pub fn new(boot_id: &str, pods: Vec<Record>, outside: Vec<OutsideRecord>) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            pods,
            outside,
        }
    }

    /// Parses a state file.
    ///
    /// # Errors
    /// [`Discarded`] if the file is of another version or boot, or damaged.
    pub fn parse(bytes: &[u8], boot_id: &str) -> Result<Self, Discarded> {
        if let Ok(Header { version }) = serde_json::from_slice(bytes)
            && version != VERSION
        {
            return Err(Discarded::OtherVersion(version));
        }
        let mut records: Self = serde_json::from_slice(bytes)?;
        if records.boot_id != boot_id {
            return Err(Discarded::Reboot);
        }
        for record in &mut records.pods {
            record.sandbox.addresses = record.membership.plan.addresses.clone();
        }
        Ok(records)
    }

    /// The contents of a state file.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }
}
