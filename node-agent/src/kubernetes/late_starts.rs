//! Recognises pods that belonged to the mesh when they started, although no plugin presented them.
//!
//! A pod has two times of its start. That of its oldest process (`/proc`) is exact and monotonic.
//! The kubelet's, `status.startTime`, precedes the pod's ADD; it has whole seconds, of the clock
//! that is also the agent's. The runtime is blamed only if both are after the agent was ready:
//! the first process of a pod without a pause container may start minutes after its ADD.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use agent_status::LateCause;
use mesh::enrol::Enrolment;
use pod_life::LateStart;
use tokio::time::sleep;

use super::cluster::Cluster;
use crate::readiness::Readiness;

/// Interval at which the agent's readiness is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for the runtime to read its configuration after the plugin was chained.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// What is known about the start of the pods of this node.
#[derive(Debug, Default)]
pub(crate) struct LateStarts(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    /// Of every listed pod, by uid.
    belonging: BTreeMap<String, Belonging>,
    /// Uids of the pods that a plugin presented to this agent.
    presented: BTreeSet<String>,
    /// Since when the agent has been ready; `None` while it is not.
    ready: Option<Instant>,
}

/// Whether a pod belongs to the mesh, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belonging {
    No,
    /// Whenever this agent has known it.
    FromStart,
    /// A label was set then.
    Since(Instant),
}

/// When a running pod was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct StartTimes {
    /// Its oldest process.
    pub(super) process: Instant,
    /// The time that the kubelet reports, in whole seconds.
    pub(super) reported: Option<SystemTime>,
}

impl LateStarts {
    /// Updates which pods belong to the mesh, whenever that may have changed: each pod's uid, and
    /// `None` if too little is known about it.
    fn observe(&self, pods: impl Iterator<Item = (String, Option<bool>)>, now: Instant) {
        let state = &mut *self.0.borrow_mut();
        let known = &state.belonging;
        let belonging = |(uid, belongs): (String, Option<bool>)| {
            let belonging = match (belongs, known.get(&uid)) {
                (None, known) => *known?,
                (Some(false), _) => Belonging::No,
                (Some(true), None) => Belonging::FromStart,
                (Some(true), Some(Belonging::No)) => Belonging::Since(now),
                (Some(true), Some(same)) => *same,
            };
            Some((uid, belonging))
        };
        let belonging: BTreeMap<_, _> = pods.filter_map(belonging).collect();
        state.presented.retain(|uid| belonging.contains_key(uid));
        state.belonging = belonging;
    }

    /// Records that a plugin presented a pod.
    pub(crate) fn presented(&self, uid: &str) {
        self.0.borrow_mut().presented.insert(uid.to_owned());
    }

    fn set_ready(&self, is_ready: bool, now: Instant) {
        let state = &mut *self.0.borrow_mut();
        state.ready = is_ready.then(|| state.ready.unwrap_or(now));
    }

    /// The late start of a pod that was found running; `None` if it did not belong to the mesh when
    /// it started, or if a plugin presented it. `chained` is when the plugin was last chained.
    pub(super) fn classify(
        &self,
        uid: &str,
        start: StartTimes,
        chained: Option<Instant>,
        now: (Instant, SystemTime),
    ) -> Option<LateStart> {
        let state = self.0.borrow();
        let belonged = match state.belonging.get(uid)? {
            Belonging::No => false,
            Belonging::FromStart => true,
            Belonging::Since(at) => *at <= start.process,
        };
        if !belonged || state.presented.contains(uid) {
            return None;
        }
        let ready = state.ready.max(chained.filter(|_| state.ready.is_some()));
        let is_after = |ready: Instant| {
            let settled = ready + SETTLE_TIME;
            let ago = now.0.saturating_duration_since(settled);
            let reported = start.reported.zip(now.1.checked_sub(ago));
            // A time in the future is that of a clock that was set back.
            let is_reported = reported.is_some_and(|(at, settled)| settled <= at && at <= now.1);
            settled <= now.0 && settled <= start.process && is_reported
        };
        let cause = if ready.is_some_and(is_after) {
            LateCause::PluginNotCalled
        } else {
            LateCause::AgentNotReady
        };
        Some(LateStart {
            at: start.process,
            cause,
        })
    }
}

impl Cluster {
    /// Updates which pods belong to the mesh, whenever that may have changed.
    pub(super) fn observe_belonging(&self) {
        if !self.is_synced() {
            return; // the first list must be complete: its pods have no earlier state
        }
        let pods = self.pods().into_iter().map(|pod| {
            let belongs = match self.decide(&pod.reference()).outcome {
                Enrolment::Enrol(_) => Some(true),
                Enrolment::Skip => Some(false),
                Enrolment::Unknown => None,
            };
            (pod.workload.uid.to_string(), belongs)
        });
        self.late_starts.observe(pods, Instant::now());
    }
}

/// Follows the agent's readiness, forever.
pub(super) async fn run(readiness: Readiness, cluster: Rc<Cluster>) {
    loop {
        let is_ready = readiness.join_obstacle().is_none();
        cluster.late_starts.set_ready(is_ready, Instant::now());
        sleep(CHECK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times in seconds after the agent's start; the pod is found after 100.
    struct Case {
        ready: Option<u64>,
        chained: Option<u64>,
        labelled: Option<u64>,
        process: u64,
        reported: Option<u64>,
    }

    const USUAL: Case = Case {
        ready: Some(10),
        chained: None,
        labelled: None,
        process: 50,
        reported: Some(49),
    };

    fn classify(case: &Case, prepare: impl Fn(&LateStarts)) -> Option<LateCause> {
        let (start, clock) = (Instant::now(), SystemTime::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let starts = LateStarts::default();
        let pod = |belongs| [("u".to_owned(), Some(belongs))].into_iter();
        if case.ready.is_some() {
            starts.set_ready(true, at(case.ready.unwrap_or_default()));
        }
        if let Some(labelled) = case.labelled {
            starts.observe(pod(false), at(1));
            starts.observe(pod(true), at(labelled));
        }
        starts.observe(pod(true), at(99));
        prepare(&starts);
        let times = StartTimes {
            process: at(case.process),
            reported: case.reported.map(|s| clock + Duration::from_secs(s)),
        };
        let now = (at(100), clock + Duration::from_secs(100));
        let late = starts.classify("u", times, case.chained.map(at), now)?;
        assert_eq!(late.at, at(case.process));
        Some(late.cause)
    }

    #[test]
    fn the_runtime_is_blamed_only_for_pods_that_started_after_the_agent_was_ready() {
        let (called, ready) = (LateCause::PluginNotCalled, LateCause::AgentNotReady);
        for (case, cause) in [
            (USUAL, called),
            // The agent was not ready, became ready later, or was just ready.
            (
                Case {
                    ready: None,
                    ..USUAL
                },
                ready,
            ),
            (
                Case {
                    ready: Some(60),
                    ..USUAL
                },
                ready,
            ),
            (
                Case {
                    ready: Some(49),
                    ..USUAL
                },
                ready,
            ),
            (
                Case {
                    ready: None,
                    chained: Some(5),
                    ..USUAL
                },
                ready,
            ),
            // The plugin was chained again after the pod had started.
            (
                Case {
                    chained: Some(20),
                    ..USUAL
                },
                called,
            ),
            (
                Case {
                    chained: Some(60),
                    ..USUAL
                },
                ready,
            ),
            // Only one of the two times is after the agent was ready.
            (
                Case {
                    reported: Some(9),
                    ..USUAL
                },
                ready,
            ),
            (
                Case {
                    reported: None,
                    ..USUAL
                },
                ready,
            ),
            (
                Case {
                    process: 9,
                    ..USUAL
                },
                ready,
            ),
            // The node's clock was set back.
            (
                Case {
                    reported: Some(3600),
                    ..USUAL
                },
                ready,
            ),
        ] {
            let Case {
                ready,
                chained,
                process,
                reported,
                ..
            } = case;
            let found = classify(&case, |_| {});
            assert_eq!(
                found,
                Some(cause),
                "{ready:?} {chained:?} {process} {reported:?}"
            );
        }
    }

    #[test]
    fn a_label_that_was_set_after_the_start_is_no_late_start() {
        let labelled = |at| Case {
            labelled: Some(at),
            ..USUAL
        };
        assert_eq!(classify(&labelled(51), |_| {}), None);
        let before = classify(&labelled(50), |_| {});
        assert_eq!(before, Some(LateCause::PluginNotCalled));
    }

    #[test]
    fn a_pod_that_a_plugin_presented_did_not_start_late() {
        assert_eq!(classify(&USUAL, |starts| starts.presented("u")), None);
    }

    #[test]
    fn an_interruption_of_readiness_counts_from_its_end() {
        let interrupted = |starts: &LateStarts| {
            let now = Instant::now() + Duration::from_secs(70);
            starts.set_ready(false, now);
            starts.set_ready(true, now);
        };
        assert_eq!(
            classify(&USUAL, interrupted),
            Some(LateCause::AgentNotReady)
        );
    }

    #[test]
    fn pods_that_are_not_listed_any_more_are_forgotten() {
        let starts = LateStarts::default();
        let pod = |belongs| [("u".to_owned(), belongs)].into_iter();
        starts.presented("u");
        starts.observe(pod(Some(true)), Instant::now());
        // While too little is known, nothing changes.
        starts.observe(pod(None), Instant::now());
        let known = |starts: &LateStarts| {
            let state = starts.0.borrow();
            (state.belonging.get("u").copied(), state.presented.len())
        };
        assert_eq!(known(&starts), (Some(Belonging::FromStart), 1));
        starts.observe(std::iter::empty(), Instant::now());
        assert_eq!(known(&starts), (None, 0));
    }
}
