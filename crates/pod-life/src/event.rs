//! What happened to a pod. Emitting an event writes its log line, updates its metrics, and
//! publishes its Kubernetes Event.

use std::time::Duration;

use agent_status::{LateCause, VerificationState};

use crate::joining::Via;
use crate::refusal::Refusal;

/// What happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It joined the mesh.
    Joined {
        /// How.
        via: Via,
        /// Time since it was presented, or since the join began.
        took: Duration,
    },
    /// It joined long after it had started: until then it was outside the mesh.
    StartedOutside {
        /// Time from its start to its capture.
        lasted: Duration,
        /// Why.
        cause: LateCause,
    },
    /// It could not join.
    Refused {
        /// How it should have joined.
        via: Via,
        /// Why.
        refusal: Refusal,
    },
    /// It is outside the mesh, for a new reason.
    Skipped {
        /// The reason.
        reason: String,
        /// Whether this answers an ADD.
        at_add: bool,
    },
    /// Rules of an interrupted join were removed.
    LeftoversRemoved,
    /// A member's plan was changed.
    PlanChanged,
    /// A member's plan could not be changed.
    PlanFailed(Refusal),
    /// A member keeps its plan, because its annotations are invalid.
    PlanKept(Refusal),
    /// It is leaving; captured connections are open.
    Leaving {
        /// Their number.
        open: usize,
    },
    /// Its rules could not be removed.
    RemovalFailed(Refusal),
    /// It left the mesh.
    Left {
        /// Why.
        reason: String,
    },
    /// The agent released it, without a DEL.
    Released {
        /// Why.
        why: String,
    },
    /// Its redirection differed from the plan and was repaired.
    Repaired {
        /// The first difference.
        what: String,
        /// Who changed it, as reported by the kernel.
        by: String,
        /// Time from the first detection to the repair.
        lasted: Duration,
    },
    /// A verification completed.
    VerificationCompleted {
        /// Its duration.
        took: Duration,
        /// Whether a probe failed.
        probe_failed: bool,
    },
    /// It became verified.
    Verified {
        /// The previous state and its duration; `None` for a pod that has just joined.
        after: Option<(VerificationState, Duration)>,
    },
    /// Its rules differ from the plan and could not be repaired.
    Drifted {
        /// The difference.
        what: String,
    },
    /// It could not be verified.
    Unverified {
        /// Why.
        why: String,
    },
}
