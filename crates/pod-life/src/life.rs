//! The life of a pod in one sandbox, as a value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::{Attachment, PodRef};
use serde::{Deserialize, Serialize};

use crate::joining::{Joining, Via};
use crate::late_start::LateStart;
use crate::leaving::Leaving;
use crate::member::Member;
use crate::record::{OutsideRecord, Record};

/// Time for kernel work of a pod. Beyond it the pod is reported, not waited for.
pub const WORK_BUDGET: Duration = Duration::from_secs(15);

/// A number that connects a performer's answer with its request. Unique within a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// A pod's sandbox: one network namespace of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The attachment by which the runtime names it.
    pub attachment: Attachment,
    /// Further attachments of the same namespace, in the order of their ADDs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Attachment>,
    /// Whether the agent made up the attachment's container id, because it found the pod by its
    /// processes. A DEL then matches by the pod's uid, and GC does not concern the pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub synthesised: bool,
    /// The pod.
    pub pod: PodRef,
    /// Its addresses. Older agents wrote those of a member only in its plan.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its annotations, as reported by the runtime at ADD.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Inode of its network namespace; detects a path that now leads to another one.
    pub netns_inode: u64,
    /// Path of its network namespace; `None` once it was not found there.
    pub netns_path: Option<PathBuf>,
}

/// The life of a pod in one sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Whether the agent holds the namespace open.
    pub located: bool,
    /// The kernel work in progress.
    pub busy: Option<Busy>,
    /// Where the pod is.
    pub phase: Phase,
    /// If it belonged to the mesh when it started outside; `None` once it has joined.
    pub(crate) late: Option<LateStart>,
    pub(crate) issued: Generation,
}

/// Kernel work in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// Of its answer.
    pub generation: Generation,
    /// When it was requested.
    pub since: Instant,
    /// Whether the pod was reported because the work takes longer than [`WORK_BUDGET`].
    pub reported: bool,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// A plugin presents it.
    New,
    /// An ADD waits until another life in the same sandbox has ended.
    Waiting {
        /// When the plugin must be answered.
        deadline: Instant,
        /// When the ADD began.
        started: Instant,
    },
    /// Outside the mesh.
    Outside(Outside),
    /// Joining.
    Joining(Box<Joining>),
    /// In the mesh.
    Member(Box<Member>),
    /// Leaving the mesh: new connections are not captured.
    Leaving(Box<Leaving>),
    /// All rules are being removed.
    Removing(Removing),
    /// To be dropped.
    Gone,
}

/// A pod outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Why.
    pub reason: String,
    /// Whether the pod is known to have no leftover rules, e.g. of a join that failed or during
    /// which an earlier agent was killed.
    pub cleared: bool,
    /// When to decide again.
    pub(crate) retry_at: Option<Instant>,
    /// Leftovers are being cleared; then this is the reason.
    pub(crate) clearing: Option<(Generation, String)>,
}

impl Outside {
    pub(crate) fn new(reason: impl Into<String>, cleared: bool) -> Self {
        Self {
            reason: reason.into(),
            cleared,
            retry_at: None,
            clearing: None,
        }
    }
}

/// A pod whose rules are being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removing {
    /// Where the pod goes; `None` if it is dropped.
    pub(crate) then: Option<Outside>,
    /// Of the answer; `None` while other work is in progress.
    pub(crate) pending: Option<Generation>,
}

impl Life {
    /// A sandbox that a plugin presents; pass [`Input::Presented`](crate::Input::Presented) next.
    pub fn presented(sandbox: Sandbox) -> Self {
        Self::new(sandbox, true, Phase::New)
    }

    /// A running pod that was found; pass [`Input::Begun`](crate::Input::Begun) next.
    pub fn found(sandbox: Sandbox, reason: &str) -> Self {
        Self::new(sandbox, false, Phase::Outside(Outside::new(reason, false)))
    }

    /// The life of a pod that belonged to the mesh when it started outside.
    pub fn with_late_start(self, late: Option<LateStart>) -> Self {
        Self { late, ..self }
    }

    /// A member of an earlier agent, whose namespace may be open; pass
    /// [`Input::Begun`](crate::Input::Begun) next.
    pub fn restored(record: Record, located: bool, now: Instant) -> Self {
        let Record {
            sandbox,
            membership,
            leaving,
            unanswered: _,
        } = record;
        let phase = if leaving {
            Phase::Leaving(Box::new(Leaving::restored(membership, now)))
        } else {
            Phase::Member(Box::new(Member::new(membership, now)))
        };
        Self::new(sandbox, located, phase)
    }

    /// A pod outside the mesh of an earlier agent; pass [`Input::Begun`](crate::Input::Begun) next.
    pub fn restored_outside(record: OutsideRecord) -> Self {
        Self::found(record.sandbox, &record.reason)
    }

    fn new(sandbox: Sandbox, located: bool, phase: Phase) -> Self {
        Self {
            sandbox,
            located,
            busy: None,
            phase,
            late: None,
            issued: Generation::default(),
        }
    }

    /// The last generation that was issued.
    pub fn generation(&self) -> Generation {
        self.issued
    }

    /// When to pass [`Input::Tick`](crate::Input::Tick).
    pub fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Waiting { deadline, .. } => Some(*deadline),
            Phase::Outside(outside) => outside.retry_at,
            Phase::Joining(joining) => joining.deadline,
            Phase::Member(member) => member.deadline(self.busy.is_some(), self.located),
            Phase::Leaving(leaving) => leaving.retry_at,
            Phase::New | Phase::Removing(_) | Phase::Gone => None,
        };
        let budget = match (&self.phase, self.busy) {
            (Phase::Member(_), Some(busy)) if !busy.reported => Some(busy.since + WORK_BUDGET),
            _ => None,
        };
        phase.into_iter().chain(budget).min()
    }

    /// Whether the pod's namespace is missing and can be this one; `None` if the pod has another
    /// one.
    pub fn accepts_namespace(&self, inode: u64) -> Option<bool> {
        match self.phase {
            Phase::Outside(_) => Some(self.sandbox.netns_path.is_none()),
            Phase::Member(_) | Phase::Leaving(_) if !self.located => {
                (self.sandbox.netns_inode == inode).then_some(true)
            }
            _ => Some(false),
        }
    }

    /// Whether an ADD is in progress.
    pub fn is_adding(&self) -> bool {
        match &self.phase {
            Phase::New | Phase::Waiting { .. } => true,
            Phase::Joining(joining) => joining.via == Via::Add,
            _ => false,
        }
    }

    /// Whether the pod's rules are being changed, other than by an ADD.
    pub fn is_changing(&self) -> bool {
        match &self.phase {
            Phase::Joining(joining) => joining.via == Via::Running,
            Phase::Outside(outside) => outside.clearing.is_some(),
            Phase::Removing(_) => true,
            _ => false,
        }
    }

    /// The uid of the pod, if it is known.
    pub fn uid(&self) -> Option<&str> {
        let of_member = match &self.phase {
            Phase::Joining(joining) => Some(&joining.intent.uid),
            Phase::Member(member) => Some(&member.membership.uid),
            Phase::Leaving(leaving) => Some(&leaving.membership.uid),
            _ => None,
        };
        of_member
            .or(self.sandbox.pod.uid.as_ref())
            .map(String::as_str)
    }

    /// The pod's record, if it is a member that is to be one after a restart as well. One that is
    /// being added is not before its rules are in place and a proxy was asked: if the agent dies
    /// earlier, nothing of the ADD remains; later, the mark lets the next agent decide.
    pub fn record(&self) -> Option<Record> {
        match &self.phase {
            Phase::Member(member) => Some((&member.membership, false)),
            Phase::Leaving(leaving) => Some((&leaving.membership, leaving.since.is_some())),
            Phase::Joining(joining) => joining.saved().map(|membership| (membership, false)),
            _ => None,
        }
        .map(|(membership, leaving)| Record {
            sandbox: self.sandbox.clone(),
            membership: membership.clone(),
            leaving,
            unanswered: self.is_adding(),
        })
    }

    /// The pod's record, if it is outside the mesh.
    pub fn outside_record(&self) -> Option<OutsideRecord> {
        Some(OutsideRecord {
            sandbox: self.sandbox.clone(),
            reason: match &self.phase {
                Phase::Joining(joining) if self.record().is_none() => {
                    &joining.before.as_ref()?.reason
                }
                Phase::Outside(outside) => &outside.reason,
                Phase::Removing(removing) => &removing.then.as_ref()?.reason,
                _ => return None,
            }
            .clone(),
        })
    }
}
