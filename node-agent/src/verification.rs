//! Whether a pod is really in the mesh: measured, not remembered.

use std::fmt;
use std::time::Instant;

use agent_status::{RepairStatus, VerificationState, VerificationStatus};

/// What the last look at a pod has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verification {
    /// Rules, listeners and a probe were as they should be.
    Verified { at: Instant },
    /// The rules are not those of the plan, and could not be repaired.
    Drifted { what: String, since: Instant },
    /// It cannot be said: something does not answer.
    Unverified { why: String, since: Instant },
}

/// Something that somebody changed and that was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) what: String,
    /// Who changed it, as far as the kernel tells.
    pub(crate) by: String,
    pub(crate) at: Instant,
}

impl Verification {
    /// What follows from a new finding: the moment in which a bad state began is kept.
    pub(crate) fn after(previous: Option<&Self>, found: Result<(), Finding>, now: Instant) -> Self {
        match (found, previous) {
            (Ok(()), _) => Self::Verified { at: now },
            (Err(Finding::Drift(what)), Some(Self::Drifted { since, .. })) => Self::Drifted { what, since: *since },
            (Err(Finding::Drift(what)), _) => Self::Drifted { what, since: now },
            (Err(Finding::Silence(why)), Some(Self::Unverified { since, .. })) => {
                Self::Unverified { why, since: *since }
            }
            (Err(Finding::Silence(why)), _) => Self::Unverified { why, since: now },
        }
    }

    pub(crate) fn state(&self) -> VerificationState {
        match self {
            Self::Verified { .. } => VerificationState::Verified,
            Self::Drifted { .. } => VerificationState::Drifted,
            Self::Unverified { .. } => VerificationState::Unverified,
        }
    }

    /// When it was verified, or since when it is not.
    pub(crate) fn since(&self) -> Instant {
        match self {
            Self::Verified { at: since } | Self::Drifted { since, .. } | Self::Unverified { since, .. } => *since,
        }
    }

    pub(crate) fn drifted_since(&self) -> Option<Instant> {
        matches!(self, Self::Drifted { .. }).then(|| self.since())
    }

    pub(crate) fn status(&self, repair: Option<&Repair>, now: Instant) -> VerificationStatus {
        let ms = |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        let reason = match self {
            Self::Verified { .. } => None,
            Self::Drifted { what: reason, .. } | Self::Unverified { why: reason, .. } => Some(reason.clone()),
        };
        let last_repair = repair.map(|r| RepairStatus { what: r.what.clone(), by: r.by.clone(), ago_ms: ms(r.at) });
        VerificationStatus { state: self.state(), reason, for_ms: ms(self.since()), last_repair }
    }
}

/// What keeps a pod from being verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The rules differ from the plan.
    Drift(String),
    /// Something that should answer does not.
    Silence(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drift(what) => f.write_str(what),
            Self::Silence(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bad_state_remembers_when_it_began_and_a_good_one_is_fresh() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let drift = || Err(Finding::Drift("x".to_owned()));
        let silence = || Err(Finding::Silence("y".to_owned()));
        let first = Verification::after(None, drift(), at(1));
        let still = Verification::after(Some(&first), drift(), at(5));
        assert_eq!(still, Verification::Drifted { what: "x".to_owned(), since: at(1) });
        let other = Verification::after(Some(&still), silence(), at(6));
        let repair = Repair { what: "z".to_owned(), by: "nft (pid 1)".to_owned(), at: at(7) };
        let status = other.status(Some(&repair), at(8));
        assert_eq!(
            (status.state, status.reason.as_deref(), status.for_ms),
            (VerificationState::Unverified, Some("y"), 2000)
        );
        assert_eq!(status.last_repair.map(|r| r.ago_ms), Some(1000));
        let good = Verification::after(Some(&other), Ok(()), at(9));
        assert_eq!(good, Verification::Verified { at: at(9) });
        assert_eq!(
            Verification::after(Some(&good), drift(), at(10)),
            Verification::Drifted { what: "x".to_owned(), since: at(10) }
        );
    }
}
