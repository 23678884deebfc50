//! How many pods are really in the mesh, and a line for each that is not.

use std::fmt;
use std::time::Duration;

use agent_status::{PodState, PodStatus, VerificationState};

/// Pods of one node or of several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    enrolled: usize,
    verified: usize,
    drifted: usize,
    /// Of the verified pods, the look that is longest ago.
    oldest: Option<Duration>,
    lines: Vec<String>,
}

impl Summary {
    /// How many pods there are, and how many of them were measured to be in the mesh.
    pub(crate) fn counts(&self) -> String {
        let unverified = self.enrolled - self.verified - self.drifted;
        let oldest = self.oldest.map(|o| format!(" (last probe {} s ago)", o.as_secs())).unwrap_or_default();
        let (enrolled, verified, drifted) = (self.enrolled, self.verified, self.drifted);
        format!("{enrolled} enrolled · {verified} verified{oldest} · {drifted} drifted · {unverified} unverified")
    }

    /// Whether every enrolled pod has been measured to be in the mesh.
    pub(crate) fn all_verified(&self) -> bool {
        self.verified == self.enrolled
    }
}

impl<'a> Extend<&'a PodStatus> for Summary {
    fn extend<I: IntoIterator<Item = &'a PodStatus>>(&mut self, pods: I) {
        for pod in pods.into_iter().filter(|p| p.state == PodState::Enrolled) {
            self.enrolled += 1;
            if is_verified(pod) {
                self.verified += 1;
                let ago = pod.verification.as_ref().map(|v| Duration::from_millis(v.for_ms));
                self.oldest = self.oldest.max(ago);
            } else {
                let drifted = pod.verification.as_ref().is_some_and(|v| v.state == VerificationState::Drifted);
                self.drifted += usize::from(drifted);
                self.lines.push(verdict(pod));
            }
        }
    }
}

impl<'a> FromIterator<&'a PodStatus> for Summary {
    fn from_iter<I: IntoIterator<Item = &'a PodStatus>>(pods: I) -> Self {
        let mut summary = Self::default();
        summary.extend(pods);
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.counts())?;
        self.lines.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

pub(crate) fn is_verified(pod: &PodStatus) -> bool {
    pod.verification.as_ref().is_some_and(|v| v.state == VerificationState::Verified)
}

/// What was found of one pod, in a line.
pub(crate) fn verdict(pod: &PodStatus) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let Some(verification) = &pod.verification else {
        return format!("{name}: unverified: not looked at yet");
    };
    let lasted = Duration::from_millis(verification.for_ms).as_secs();
    match &verification.reason {
        None => format!("{name}: {}", verification.state),
        Some(reason) => format!("{name}: {} for {lasted} s: {reason}", verification.state),
    }
}

#[cfg(test)]
mod tests {
    use agent_status::VerificationStatus;

    use super::*;

    fn pod(name: &str, state: PodState, verification: Option<(VerificationState, Option<&str>, u64)>) -> PodStatus {
        let verification = verification.map(|(state, reason, for_ms)| VerificationStatus {
            state,
            reason: reason.map(str::to_owned),
            for_ms,
            last_repair: None,
        });
        PodStatus {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: None,
            state,
            reason: String::new(),
            ips: Vec::new(),
            exempted_connections: 0,
            verification,
        }
    }

    #[test]
    fn counts_what_was_measured_and_names_what_was_not() {
        let pods = [
            pod("good", PodState::Enrolled, Some((VerificationState::Verified, None, 1_000))),
            pod("older", PodState::Enrolled, Some((VerificationState::Verified, None, 12_900))),
            pod("wrong", PodState::Enrolled, Some((VerificationState::Drifted, Some("no table"), 3_000))),
            pod("new", PodState::Enrolled, None),
            pod("outside", PodState::Skipped, None),
            pod("gone", PodState::Leaving, None),
        ];
        let summary: Summary = pods.iter().collect();
        assert!(!summary.all_verified());
        assert_eq!(
            summary.to_string(),
            "4 enrolled · 2 verified (last probe 12 s ago) · 1 drifted · 1 unverified\n\
             default/wrong: drifted for 3 s: no table\n\
             default/new: unverified: not looked at yet"
        );
        let empty = Summary::default();
        assert!(empty.all_verified());
        assert_eq!(empty.to_string(), "0 enrolled · 0 verified · 0 drifted · 0 unverified");
    }
}
