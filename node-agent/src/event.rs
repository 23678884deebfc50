//! What happens to a pod after it has joined: each event is one value, and telling it logs and counts in one place.

use std::time::Duration;

use agent_status::VerificationState;
use netns::watch::Author;

use crate::metrics::{Metrics, State};
use crate::pods::Record;

/// Redirection differed from the plan and was put right.
#[derive(Debug)]
pub(crate) struct Repaired<'a> {
    pub(crate) pod: &'a Record,
    /// The first difference.
    pub(crate) what: &'a str,
    /// Who changed something since the last look, as far as the kernel tells.
    pub(crate) by: &'a [Author],
    /// From the moment in which it was found, or was first found if it could not be repaired then.
    pub(crate) lasted: Duration,
}

impl Repaired<'_> {
    pub(crate) fn tell(&self, metrics: &Metrics) {
        metrics.repairs.inc();
        metrics.drift_seconds.observe(self.lasted.as_secs_f64());
        let (namespace, name, uid) = self.pod.names();
        let (what, by, lasted) = (self.what, names(self.by), self.lasted);
        tracing::warn!(uid, namespace, name, by, ?lasted, "somebody changed the pod's redirection ({what}): repaired");
    }
}

/// Redirection differs from the plan, and could not be put right.
#[derive(Debug)]
pub(crate) struct Drifted<'a> {
    pub(crate) pod: &'a Record,
    pub(crate) what: &'a str,
}

impl Drifted<'_> {
    pub(crate) fn tell(&self) {
        let (namespace, name, uid) = self.pod.names();
        tracing::error!(uid, namespace, name, "drifted: {}", self.what);
    }
}

/// It cannot be said whether a pod is in the mesh.
#[derive(Debug)]
pub(crate) struct Unverified<'a> {
    pub(crate) pod: &'a Record,
    pub(crate) why: &'a str,
}

impl Unverified<'_> {
    pub(crate) fn tell(&self) {
        let (namespace, name, uid) = self.pod.names();
        tracing::warn!(uid, namespace, name, "unverified: {}", self.why);
    }
}

/// A pod is verified that was not.
#[derive(Debug)]
pub(crate) struct Verified<'a> {
    pub(crate) pod: &'a Record,
    /// What it was before, and for how long; none for a pod that has just joined.
    pub(crate) after: Option<(VerificationState, Duration)>,
}

impl Verified<'_> {
    pub(crate) fn tell(&self, metrics: &Metrics) {
        let (namespace, name, uid) = self.pod.names();
        match self.after {
            Some((state, lasted)) => {
                metrics
                    .not_verified_seconds
                    .get_or_create(&State { state: state.as_str() })
                    .observe(lasted.as_secs_f64());
                tracing::info!(uid, namespace, name, ?lasted, "verified; it was {state}");
            }
            None => tracing::info!(uid, namespace, name, "verified"),
        }
    }
}

/// The proxy did not answer a probe. Not logged: the state that follows from it is, when it changes.
#[derive(Debug)]
pub(crate) struct ProbeFailed;

impl ProbeFailed {
    pub(crate) fn tell(&self, metrics: &Metrics) {
        metrics.probe_failures.inc();
    }
}

/// A pod was looked at.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) took: Duration,
}

impl Looked {
    pub(crate) fn tell(&self, metrics: &Metrics) {
        metrics.verification_seconds.observe(self.took.as_secs_f64());
    }
}

/// The node's rule for health probes, or the addresses that it is for, were not as they should be.
#[derive(Debug)]
pub(crate) struct HostProbesRepaired<'a> {
    pub(crate) what: &'a str,
    pub(crate) by: &'a [Author],
}

impl HostProbesRepaired<'_> {
    pub(crate) fn tell(&self, metrics: &Metrics) {
        metrics.host_probe_repairs.inc();
        tracing::warn!(
            by = names(self.by),
            "the node's rule for health probes was not as it should be ({}): repaired",
            self.what
        );
    }
}

/// The node's rule for health probes cannot be put in place.
#[derive(Debug)]
pub(crate) struct HostProbesFailed<'a> {
    pub(crate) why: &'a str,
}

impl HostProbesFailed<'_> {
    pub(crate) fn tell(&self) {
        let code = error_code::agent::HOST_PROBES;
        tracing::error!("{code}: {} Next step: {}", self.why, code.next_step);
    }
}

/// Who it was, for people.
pub(crate) fn names(authors: &[Author]) -> String {
    match authors {
        [] => "unknown".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
