//! Pods that belonged to the mesh when they started, but started outside it.

use std::time::Instant;

use agent_status::{LateCause, StartedOutside};

/// The start of a pod outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateStart {
    /// When the pod started.
    pub at: Instant,
    /// Why it started outside the mesh.
    pub cause: LateCause,
}

impl LateStart {
    /// What to record about a pod that is captured now.
    pub(crate) fn until(self, now: Instant) -> StartedOutside {
        let outside = now.saturating_duration_since(self.at);
        StartedOutside {
            outside_ms: u64::try_from(outside.as_millis()).unwrap_or(u64::MAX),
            cause: self.cause,
        }
    }
}
