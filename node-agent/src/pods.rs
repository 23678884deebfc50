//! The pods of this node: what the agent wants to be true.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use handoff::{Attachment, PodRef};
use netns::NetNs;
use redirect::Plan;
use serde::{Deserialize, Serialize};
use zds::{Request, WorkloadInfo};

/// A pod that belongs to the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Enrolled {
    pub(crate) record: Record,
    /// Its namespace; none when it could not be found again after a restart.
    pub(crate) netns: Option<Rc<NetNs>>,
    /// Whether its ADD has come to its end. Until then it is not remembered on disk: should the agent die, the ADD has
    /// failed, and the next agent must not take the pod for one of its own.
    pub(crate) joined: bool,
    /// When it began to leave, or when this agent took it over as one that leaves.
    pub(crate) leaving_since: Option<Instant>,
}

/// What is remembered about an enrolled pod across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) attachment: Attachment,
    pub(crate) pod: PodRef,
    /// The uid under which proxies know it.
    pub(crate) uid: String,
    pub(crate) service_account: String,
    /// Inode of its namespace, which tells whether the path still leads there.
    pub(crate) netns_inode: u64,
    pub(crate) netns_path: Option<PathBuf>,
    pub(crate) plan: Plan,
    /// Connections that were open when the pod joined and went on uncaptured.
    pub(crate) exempted: usize,
    /// Why it belongs to the mesh.
    pub(crate) reason: String,
    /// What the runtime said of its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// It does not belong to the mesh any more; connections that were captured go on until they close.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) leaving: bool,
}

/// A pod outside the mesh: enough to find it when it is to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Skipped {
    pub(crate) attachment: Attachment,
    pub(crate) pod: PodRef,
    /// Why it is outside.
    pub(crate) reason: String,
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) netns_inode: u64,
    /// Where its namespace is; none when it was not found there any more.
    pub(crate) netns_path: Option<PathBuf>,
    /// Whether this agent knows that no rules of ours are there: a join may have failed, or an earlier agent been killed in one.
    #[serde(skip)]
    pub(crate) is_clear: bool,
}

impl Record {
    /// Namespace, name and uid, for the log.
    pub(crate) fn names(&self) -> (&str, &str, &str) {
        (&self.pod.namespace, &self.pod.name, &self.uid)
    }

    /// The same pod, outside the mesh.
    pub(crate) fn outside(&self, reason: String) -> Skipped {
        Skipped {
            attachment: self.attachment.clone(),
            pod: self.pod.clone(),
            reason,
            addresses: self.plan.addresses.clone(),
            annotations: self.annotations.clone(),
            netns_inode: self.netns_inode,
            netns_path: self.netns_path.clone(),
            is_clear: true,
        }
    }
}

/// The namespace that a path led to when a pod started, if it still leads there.
pub(crate) fn find_again(path: Option<&Path>, inode: u64) -> Option<NetNs> {
    let netns = NetNs::open(path?).ok()?;
    (netns.id().ino == inode).then_some(netns)
}

/// All pods that a runtime has told this agent of.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    enrolled: BTreeMap<Attachment, Enrolled>,
    skipped: BTreeMap<Attachment, Skipped>,
}

impl Pods {
    /// A pod joins. The same pod under another attachment (a sandbox that failed and was made again) is replaced.
    pub(crate) fn enrol(&mut self, pod: Enrolled) {
        self.enrolled.retain(|_, p| p.record.uid != pod.record.uid);
        self.skipped.remove(&pod.record.attachment);
        self.enrolled.insert(pod.record.attachment.clone(), pod);
    }

    /// A pod is outside. The same pod under another attachment is replaced.
    pub(crate) fn skip(&mut self, skipped: Skipped) {
        self.enrolled.remove(&skipped.attachment);
        self.skipped.retain(|_, p| p.pod.uid.is_none() || p.pod.uid != skipped.pod.uid);
        self.skipped.insert(skipped.attachment.clone(), skipped);
    }

    /// An attachment goes away; returns the pod that proxies must forget.
    pub(crate) fn remove(&mut self, attachment: &Attachment) -> Option<Enrolled> {
        self.skipped.remove(attachment);
        self.enrolled.remove(attachment)
    }

    /// Forgets pods outside the mesh that the runtime does not name.
    pub(crate) fn forget_skipped(&mut self, valid: &[Attachment]) {
        self.skipped.retain(|attachment, _| valid.contains(attachment));
    }

    pub(crate) fn enrolled(&self) -> impl Iterator<Item = &Enrolled> {
        self.enrolled.values()
    }

    pub(crate) fn skipped(&self) -> impl Iterator<Item = &Skipped> {
        self.skipped.values()
    }
}

impl Enrolled {
    /// What proxies are told.
    pub(crate) fn request(&self) -> Request {
        let uid = self.record.uid.clone();
        if self.netns.is_none() {
            return Request::Keep { uid };
        }
        let info = WorkloadInfo {
            name: self.record.pod.name.clone(),
            namespace: self.record.pod.namespace.clone(),
            service_account: self.record.service_account.clone(),
        };
        Request::Add { uid, info }
    }
}
