//! The verification state of a pod: whether it is in the mesh, as measured.

use std::fmt;
use std::time::Instant;

use agent_status::{RepairStatus, VerificationReason, VerificationState, VerificationStatus};

use crate::input::FromNode;
use crate::refusal::Refusal;

/// The result of a pod's last verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verification {
    /// Rules and listeners are as planned, and the probe was answered.
    Verified {
        /// When it was verified.
        at: Instant,
        /// Whether also from the node.
        from_node: FromNode,
    },
    /// The rules differ from the plan and could not be repaired.
    Drifted {
        /// The difference.
        what: String,
        /// Start of this state.
        since: Instant,
    },
    /// The pod could not be verified, e.g. because the proxy does not answer.
    Unverified {
        /// Why.
        why: String,
        /// Which reason `why` states.
        code: VerificationReason,
        /// Start of this state.
        since: Instant,
    },
}

/// A repaired difference between a pod's rules and its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The first difference.
    pub what: String,
    /// The processes that changed the rules, as reported by the kernel.
    pub by: String,
    /// When it was repaired.
    pub at: Instant,
}

impl Verification {
    /// The state after a new result; a continuing failure keeps its start time.
    pub fn after(previous: Option<&Self>, found: Result<FromNode, Finding>, now: Instant) -> Self {
        match found {
            Ok(from_node) => Self::Verified { at: now, from_node },
            Err(Finding::Drift(what)) => {
                let since = previous.and_then(Self::drifted_since).unwrap_or(now);
                Self::Drifted { what, since }
            }
            Err(Finding::Unverified(code, why)) => {
                let since = match previous {
                    Some(Self::Unverified { since, .. }) => *since,
                    _ => now,
                };
                Self::Unverified { why, code, since }
            }
        }
    }

    /// Its name in metrics and status.
    pub fn state(&self) -> VerificationState {
        match self {
            Self::Verified { .. } => VerificationState::Verified,
            Self::Drifted { .. } => VerificationState::Drifted,
            Self::Unverified { .. } => VerificationState::Unverified,
        }
    }

    /// Start of the current state.
    pub fn since(&self) -> Instant {
        match self {
            Self::Verified { at: since, .. }
            | Self::Drifted { since, .. }
            | Self::Unverified { since, .. } => *since,
        }
    }

    /// Start of the current state, if the rules differ.
    pub fn drifted_since(&self) -> Option<Instant> {
        matches!(self, Self::Drifted { .. }).then(|| self.since())
    }

    /// The state as reported by `/status`.
    pub fn status(&self, repair: Option<&Repair>, now: Instant) -> VerificationStatus {
        let ms = |since| {
            u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        let reason = match self {
            Self::Verified { .. } => None,
            Self::Drifted { what: reason, .. } | Self::Unverified { why: reason, .. } => {
                Some(reason.clone())
            }
        };
        let reason_code = match self {
            Self::Verified { .. } => None,
            Self::Drifted { .. } => Some(VerificationReason::RulesDiffer),
            Self::Unverified { code, .. } => Some(*code),
        };
        let last_repair = repair.map(|r| RepairStatus {
            what: r.what.clone(),
            by: r.by.clone(),
            ago_ms: ms(r.at),
        });
        VerificationStatus {
            state: self.state(),
            reason,
            reason_code,
            for_ms: ms(self.since()),
            last_repair,
            from_node: match self {
                Self::Verified { from_node, .. } => Some(*from_node == FromNode::Probed),
                _ => None,
            },
        }
    }
}

/// Why a verification failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The rules differ from the plan.
    Drift(String),
    /// The state of the pod could not be determined, or the proxy does not serve it.
    Unverified(VerificationReason, String),
}

impl Finding {
    /// The pod's namespace was not found after a restart.
    pub fn netns_lost() -> Self {
        let why = "the pod's network namespace was not found after a restart of the agent";
        Self::Unverified(VerificationReason::NamespaceUnavailable, why.to_owned())
    }

    /// The pod's plan is not what its annotations require now.
    pub(crate) fn plan_kept(refusal: &Refusal) -> Self {
        let code = refusal.code;
        let why = format!("{code}: the pod keeps its earlier plan: {refusal}");
        Self::Unverified(VerificationReason::PlanKept, why)
    }

    /// Nothing that the agent observes proves that the pod's traffic is captured.
    pub(crate) fn unprovable(why: String) -> Self {
        Self::Unverified(VerificationReason::Unprovable, why)
    }

    /// Work takes longer than its budget.
    pub(crate) fn overdue(why: String) -> Self {
        Self::Unverified(VerificationReason::RulesDiffer, why)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drift(what) => f.write_str(what),
            Self::Unverified(_, why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn failures_keep_their_start_time_and_successes_do_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let drift = || Err(Finding::Drift("x".to_owned()));
        let silence = || {
            Err(Finding::Unverified(
                VerificationReason::ProbeFailed,
                "y".to_owned(),
            ))
        };
        let first = Verification::after(None, drift(), at(1));
        let still = Verification::after(Some(&first), drift(), at(5));
        assert_eq!(
            still,
            Verification::Drifted {
                what: "x".to_owned(),
                since: at(1)
            }
        );
        let other = Verification::after(Some(&still), silence(), at(6));
        let repair = Repair {
            what: "z".to_owned(),
            by: "nft (pid 1)".to_owned(),
            at: at(7),
        };
        let status = other.status(Some(&repair), at(8));
        assert_eq!(
            (status.state, status.reason.as_deref(), status.for_ms),
            (VerificationState::Unverified, Some("y"), 2000)
        );
        assert_eq!(status.last_repair.map(|r| r.ago_ms), Some(1000));
        let good = Verification::after(Some(&other), Ok(FromNode::Probed), at(9));
        let expected = Verification::Verified {
            at: at(9),
            from_node: FromNode::Probed,
        };
        assert_eq!(good, expected);
        assert_eq!(
            Verification::after(Some(&good), drift(), at(10)),
            Verification::Drifted {
                what: "x".to_owned(),
                since: at(10)
            }
        );
    }
}
