//! Counts of enrolled and verified pods, with a line for each pod that is not verified.

use std::fmt;
use std::time::Duration;

use agent_status::{PodState, PodStatus, VerificationState};

/// Summary of the pods of one or more nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    enrolled: usize,
    verified: usize,
    drifted: usize,
    /// Time since the oldest verification of a verified pod.
    oldest_probe: Option<Duration>,
    /// One line per pod that is not verified.
    lines: Vec<String>,
    /// One line per pod with connections that bypass its proxy.
    bypassing: Vec<String>,
}

impl Summary {
    /// Renders the counts in one line.
    pub(crate) fn counts(&self) -> String {
        let unverified = self.enrolled - self.verified - self.drifted;
        let oldest = self.oldest_probe.map(|o| o.as_secs());
        let oldest = oldest.map_or_else(String::new, |o| format!(" (last probe {o} s ago)"));
        let (enrolled, verified, drifted) = (self.enrolled, self.verified, self.drifted);
        format!(
            "{enrolled} enrolled · {verified} verified{oldest} · \
             {drifted} drifted · {unverified} unverified"
        )
    }

    /// Whether every enrolled pod is verified.
    pub(crate) fn all_verified(&self) -> bool {
        self.verified == self.enrolled
    }
}

impl<'a> Extend<&'a PodStatus> for Summary {
    fn extend<I: IntoIterator<Item = &'a PodStatus>>(&mut self, pods: I) {
        for pod in pods.into_iter().filter(|p| p.state == PodState::Enrolled) {
            self.enrolled += 1;
            self.bypassing.extend(bypasses(pod));
            match &pod.verification {
                Some(v) if v.state == VerificationState::Verified => {
                    self.verified += 1;
                    let ago = Duration::from_millis(v.for_ms);
                    self.oldest_probe = self.oldest_probe.max(Some(ago));
                    continue;
                }
                Some(v) if v.state == VerificationState::Drifted => self.drifted += 1,
                _ => {}
            }
            self.lines.push(verdict(pod));
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
        let mut lines = self.lines.iter().chain(&self.bypassing);
        lines.try_for_each(|line| write!(f, "\n{line}"))
    }
}

pub(crate) fn is_verified(pod: &PodStatus) -> bool {
    let state = pod.verification.as_ref().map(|v| v.state);
    state == Some(VerificationState::Verified)
}

/// Renders which connections of an enrolled pod bypass its proxy, in one line.
pub(crate) fn bypasses(pod: &PodStatus) -> Option<String> {
    let exempted = match pod.exempted_connections {
        0 => None,
        1 => Some("1 connection that is older than the pod's join".to_owned()),
        n => Some(format!(
            "{n} connections that are older than the pod's join"
        )),
    };
    let excluded = pod.exclusions.as_ref().map(ToString::to_string);
    let bypassing: Vec<String> = excluded.into_iter().chain(exempted).collect();
    let is_any = pod.state == PodState::Enrolled && !bypassing.is_empty();
    let PodStatus {
        namespace, name, ..
    } = pod;
    is_any.then(|| {
        format!(
            "{namespace}/{name}: outside the mesh: {}",
            bypassing.join("; ")
        )
    })
}

/// Renders the verification result of a pod in one line.
pub(crate) fn verdict(pod: &PodStatus) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let Some(verification) = &pod.verification else {
        return format!("{name}: unverified: not checked yet");
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

    fn pod(
        name: &str,
        state: PodState,
        verification: Option<(VerificationState, Option<&str>, u64)>,
    ) -> PodStatus {
        let verification = verification.map(|(state, reason, for_ms)| VerificationStatus {
            state,
            reason: reason.map(str::to_owned),
            reason_code: None,
            for_ms,
            last_repair: None,
            from_node: None,
        });
        PodStatus {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: None,
            state,
            reason: String::new(),
            reason_code: None,
            ips: Vec::new(),
            exempted_connections: 0,
            capabilities: Vec::new(),
            started_outside: None,
            exclusions: None,
            verification,
        }
    }

    #[test]
    fn counts_pods_and_lists_those_that_are_not_verified() {
        let pods = [
            pod(
                "good",
                PodState::Enrolled,
                Some((VerificationState::Verified, None, 1_000)),
            ),
            pod(
                "older",
                PodState::Enrolled,
                Some((VerificationState::Verified, None, 12_900)),
            ),
            pod(
                "wrong",
                PodState::Enrolled,
                Some((VerificationState::Drifted, Some("no table"), 3_000)),
            ),
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
             default/new: unverified: not checked yet"
        );
        let empty = Summary::default();
        assert!(empty.all_verified());
        assert_eq!(
            empty.to_string(),
            "0 enrolled · 0 verified · 0 drifted · 0 unverified"
        );
    }
}
