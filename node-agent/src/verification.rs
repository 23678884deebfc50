//! Whether a pod is really in the mesh: measured, not remembered.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

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

/// The same for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VerificationStatus {
    pub(crate) state: &'static str,
    /// Why it is not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// How long ago it was verified, or since when it is not.
    pub(crate) for_ms: u128,
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

    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Verified { .. } => "verified",
            Self::Drifted { .. } => "drifted",
            Self::Unverified { .. } => "unverified",
        }
    }

    pub(crate) fn status(&self, now: Instant) -> VerificationStatus {
        let (reason, since) = match self {
            Self::Verified { at } => (None, at),
            Self::Drifted { what, since } => (Some(what.clone()), since),
            Self::Unverified { why, since } => (Some(why.clone()), since),
        };
        let elapsed: Duration = now.saturating_duration_since(*since);
        VerificationStatus { state: self.state(), reason, for_ms: elapsed.as_millis() }
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
        assert_eq!(
            other.status(at(8)),
            VerificationStatus { state: "unverified", reason: Some("y".to_owned()), for_ms: 2000 }
        );
        let good = Verification::after(Some(&other), Ok(()), at(9));
        assert_eq!(good, Verification::Verified { at: at(9) });
        assert_eq!(
            Verification::after(Some(&good), drift(), at(10)),
            Verification::Drifted { what: "x".to_owned(), since: at(10) }
        );
    }
}
