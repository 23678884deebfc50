//! Reports events: each is emitted in one place, which writes its log line, updates its metrics,
//! and publishes its Kubernetes Event.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use agent_status::{LateCause, VerificationState};
use handoff::PodRef;
use netns::watch::Author;
use pod_life::{Event, Life, LifeId, Phase, Pods, Refusal, Standing, Via};
use redirect::host::TableChange;

use crate::kubernetes::EventRecorder;
use crate::metrics::{CauseLabels, Metrics, OutcomeLabels, StateLabels};

/// A pod's state, and whether the path of its namespace is known: otherwise it is searched for.
type PodSummary = (LifeId, &'static str, Option<VerificationState>, bool);

/// Reports events.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) metrics: Rc<Metrics>,
    recorder: Option<Rc<EventRecorder>>,
    /// Each pod's state at the last update of the gauges.
    summaries: RefCell<Vec<PodSummary>>,
}

impl Reporter {
    /// Creates a reporter; `recorder` publishes Events in a cluster.
    pub(crate) fn new(metrics: Rc<Metrics>, recorder: Option<Rc<EventRecorder>>) -> Self {
        let reporter = Self {
            metrics,
            recorder,
            summaries: RefCell::default(),
        };
        reporter.set_gauges(&[]);
        reporter
    }

    /// Reports an event of a pod.
    pub(crate) fn emit(&self, pod: &PodRef, uid: Option<&str>, event: &Event) {
        let PodRef {
            namespace, name, ..
        } = pod;
        let (metrics, recorder) = (&self.metrics, self.recorder.as_deref());
        match event {
            Event::Joined {
                via: Via::Add,
                took,
            } => {
                metrics.enrolment_seconds.observe(took.as_secs_f64());
                self.count("enrolled");
                tracing::info!(uid, namespace, name, ?took, "pod enrolled");
            }
            Event::Joined { .. } => {
                self.count("enrolled");
                tracing::info!(namespace, name, "running pod enrolled");
            }
            Event::StartedOutside { lasted, cause } => self.started_outside(pod, *lasted, *cause),
            Event::Refused { via, refusal } => {
                match via {
                    Via::Add => self.request_failed(refusal),
                    Via::Running => {
                        self.count(refusal.code.code);
                        let why = refusal.with_next_step();
                        tracing::warn!(namespace, name, "cannot enrol the pod yet: {why}");
                    }
                }
                if let Some(events) = recorder {
                    events.not_enrolled(pod, refusal);
                }
            }
            Event::Skipped { reason, at_add } => {
                if *at_add {
                    self.count("skipped");
                }
                tracing::info!(namespace, name, "pod not enrolled: {reason}");
            }
            Event::LeftoversRemoved => tracing::warn!(
                event = "interrupted_join_undone",
                namespace,
                name,
                "removed rules left by an interrupted join; the pod had no connectivity"
            ),
            Event::PlanChanged => tracing::info!(uid, "changed the pod's plan"),
            Event::PlanFailed(refusal) => {
                let why = refusal.with_next_step();
                tracing::warn!(uid, "cannot change the pod's plan: {why}");
            }
            Event::PlanKept(refusal) => {
                tracing::warn!(uid, "keeping the pod's current plan: {refusal}");
            }
            Event::Leaving { open } => tracing::info!(
                uid,
                open,
                "pod is leaving the mesh; waiting for its captured connections to close"
            ),
            Event::RemovalFailed(refusal) => {
                let why = refusal.with_next_step();
                tracing::warn!(uid, "cannot remove the pod's rules: {why}");
            }
            Event::Left { reason } => tracing::info!(uid, "pod left the mesh: {reason}"),
            Event::Released { why } => tracing::info!(namespace, name, "released pod: {why}"),
            Event::Repaired { what, by, lasted } => {
                metrics.repairs.inc();
                metrics.drift_seconds.observe(lasted.as_secs_f64());
                tracing::warn!(
                    event = "redirection_repaired",
                    uid,
                    namespace,
                    name,
                    by,
                    ?lasted,
                    "repaired the pod's redirection: {what}"
                );
                if let Some(events) = recorder {
                    events.repaired(pod, what, by);
                }
            }
            Event::VerificationCompleted { took, probe_failed } => {
                metrics.verification_seconds.observe(took.as_secs_f64());
                metrics.probe_failures.inc_by(u64::from(*probe_failed));
            }
            Event::Verified { after: None } => {
                tracing::info!(uid, namespace, name, "pod verified");
            }
            Event::Verified {
                after: Some((state, lasted)),
            } => {
                let labels = StateLabels {
                    state: state.as_str(),
                };
                let histogram = metrics.not_verified_seconds.get_or_create(&labels);
                histogram.observe(lasted.as_secs_f64());
                tracing::info!(uid, namespace, name, ?lasted, "pod verified; was {state}");
            }
            Event::Drifted { what } => {
                tracing::error!(uid, namespace, name, "pod drifted: {what}");
                self.not_verified(pod, what);
            }
            Event::Unverified { why } => {
                tracing::warn!(uid, namespace, name, "cannot verify the pod: {why}");
                self.not_verified(pod, why);
            }
        }
    }

    fn started_outside(&self, pod: &PodRef, lasted: Duration, cause: LateCause) {
        let PodRef {
            namespace, name, ..
        } = pod;
        let labels = CauseLabels {
            cause: cause.as_str(),
        };
        let histogram = self.metrics.started_outside_seconds.get_or_create(&labels);
        histogram.observe(lasted.as_secs_f64());
        let event = "pod_started_outside";
        let code = match cause {
            LateCause::PluginNotCalled => &error_code::agent::PLUGIN_NOT_CALLED,
            LateCause::AgentNotReady => &error_code::agent::STARTED_BEFORE_AGENT,
        };
        let why = format!(
            "the pod was outside the mesh for {:.1} s",
            lasted.as_secs_f64()
        );
        match cause {
            LateCause::PluginNotCalled => tracing::warn!(
                event,
                namespace,
                name,
                ?lasted,
                "{code}: {why}. Next step: {}",
                code.next_step
            ),
            LateCause::AgentNotReady => {
                tracing::info!(event, namespace, name, ?lasted, "{code}: {why}");
            }
        }
        if let Some(events) = &self.recorder {
            events.started_outside(pod, code, &why);
        }
    }

    fn not_verified(&self, pod: &PodRef, why: &str) {
        if let Some(events) = &self.recorder {
            events.not_verified(pod, why);
        }
    }

    /// Reports a request of a plugin that failed.
    pub(crate) fn request_failed(&self, refusal: &Refusal) {
        let code = refusal.code.code;
        self.count(code);
        tracing::warn!("plugin request failed: {code}: {refusal}");
    }

    /// Counts an enrolment attempt by its outcome.
    fn count(&self, outcome: &str) {
        let outcome = outcome.to_owned();
        let labels = OutcomeLabels { outcome };
        self.metrics.enrolments.get_or_create(&labels).inc();
    }

    /// Reports that a pod that should join was not found.
    pub(crate) fn not_found(&self, pod: &PodRef, refusal: &Refusal) {
        let PodRef {
            namespace, name, ..
        } = pod;
        let why = refusal.with_next_step();
        tracing::warn!(namespace, name, "cannot enrol the pod yet: {why}");
        if let Some(events) = &self.recorder {
            events.not_enrolled(pod, refusal);
        }
    }

    /// Updates the numbers of pods by state; returns whether any pod's state has changed.
    pub(crate) fn update_gauges(&self, pods: &Pods) -> bool {
        let states = pods.iter().filter_map(|(id, life)| {
            let (standing, verification) = summary(life)?;
            let is_placed = life.sandbox.netns_path.is_some();
            Some((id, standing, verification, is_placed))
        });
        let states: Vec<_> = states.collect();
        if *self.summaries.borrow() == states {
            return false;
        }
        self.set_gauges(&states);
        self.summaries.replace(states);
        true
    }

    fn set_gauges(&self, states: &[PodSummary]) {
        let set = |state, n: usize| {
            let gauge = self.metrics.pods.get_or_create(&StateLabels { state });
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        for state in ["enrolled", "leaving", "skipped"] {
            set(state, states.iter().filter(|s| s.1 == state).count());
        }
        for state in [
            VerificationState::Verified,
            VerificationState::Drifted,
            VerificationState::Unverified,
        ] {
            let in_state = states.iter().filter(|s| s.2 == Some(state));
            set(state.as_str(), in_state.count());
        }
    }
}

/// Each pod's state, as far as annotations and metrics depend on it.
fn summary(life: &Life) -> Option<(&'static str, Option<VerificationState>)> {
    Some(match (life.standing(), &life.phase) {
        (Standing::Member(_), Phase::Member(member)) => ("enrolled", member.checks.state()),
        (Standing::Member(_), _) => ("enrolled", None),
        (Standing::Leaving(_), _) => ("leaving", None),
        (Standing::Outside(_), _) => ("skipped", None),
        (Standing::Hidden, _) => return None,
    })
}

/// The node's rule for health probes or its address set was changed, and was repaired.
#[derive(Debug)]
pub(crate) struct HostProbesRepaired<'a> {
    pub(crate) what: &'a TableChange,
    pub(crate) by: &'a [Author],
}

impl HostProbesRepaired<'_> {
    pub(crate) fn emit(&self, metrics: &Metrics) {
        metrics.host_probe_repairs.inc();
        let (missing, unexpected) = match self.what {
            TableChange::Elements { add, delete } => (add.len(), delete.len()),
            TableChange::Unchanged | TableChange::Replaced => (0, 0),
        };
        tracing::warn!(
            event = "host_probes_repaired",
            table_rewritten = *self.what == TableChange::Replaced,
            missing,
            unexpected,
            by = names(self.by),
            "repaired the node's health probe rule: {}",
            self.what
        );
    }
}

/// The node's rule for health probes could not be installed.
#[derive(Debug)]
pub(crate) struct HostProbesFailed<'a> {
    pub(crate) why: &'a str,
}

impl HostProbesFailed<'_> {
    pub(crate) fn emit(&self) {
        let code = error_code::agent::HOST_PROBES;
        tracing::error!("{code}: {}. Next step: {}", self.why, code.next_step);
    }
}

/// The names of authors for log lines and events, separated by commas.
pub(crate) fn names(authors: &[Author]) -> String {
    match authors {
        [] => "unknown".to_owned(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use pod_life::Sandbox;

    use super::*;

    #[test]
    fn every_event_updates_its_metrics() {
        let reporter = Reporter::new(Rc::new(Metrics::new()), None);
        let pod = PodRef {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: None,
        };
        let refusal = || Refusal::new(&error_code::agent::NO_PROXY, "none");
        let (took, via) = (Duration::from_millis(2), Via::Add);
        for (event, line) in [
            (
                Event::Joined { via, took },
                "underpass_enrolment_seconds_count 1",
            ),
            (
                Event::Refused {
                    via,
                    refusal: refusal(),
                },
                "underpass_enrolments_total{outcome=\"UP-AGENT-006\"} 1",
            ),
            (
                Event::Refused {
                    via: Via::Running,
                    refusal: refusal(),
                },
                "underpass_enrolments_total{outcome=\"UP-AGENT-006\"} 2",
            ),
            (
                Event::Skipped {
                    reason: "no label".to_owned(),
                    at_add: true,
                },
                "underpass_enrolments_total{outcome=\"skipped\"} 1",
            ),
            (
                Event::StartedOutside {
                    lasted: took,
                    cause: LateCause::PluginNotCalled,
                },
                "underpass_started_outside_seconds_count{cause=\"plugin_not_called\"} 1",
            ),
            (
                Event::Repaired {
                    what: "a rule".to_owned(),
                    by: "nft".to_owned(),
                    lasted: took,
                },
                "underpass_repairs_total 1",
            ),
            (
                Event::VerificationCompleted {
                    took,
                    probe_failed: true,
                },
                "underpass_probe_failures_total 1",
            ),
            (
                Event::Verified {
                    after: Some((VerificationState::Drifted, took)),
                },
                "underpass_not_verified_seconds_count{state=\"drifted\"} 1",
            ),
        ] {
            reporter.emit(&pod, Some("u"), &event);
            let text = reporter.metrics.encode();
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in {text}"
            );
        }
    }

    #[test]
    fn gauges_follow_the_pods_and_report_only_changes() {
        let reporter = Reporter::new(Rc::new(Metrics::new()), None);
        let mut pods = Pods::default();
        assert!(!reporter.update_gauges(&pods));
        let sandbox = serde_json::json!({
            "attachment": { "containerId": "c", "ifname": "eth0" },
            "pod": { "namespace": "shop", "name": "web" },
            "netnsInode": 7,
        });
        let sandbox: Sandbox = serde_json::from_value(sandbox).unwrap();
        let placed = Sandbox {
            netns_path: Some("/run/netns/a".into()),
            ..sandbox.clone()
        };
        let id = pods.insert(Life::found(placed, "no label"));
        assert!(reporter.update_gauges(&pods) && !reporter.update_gauges(&pods));
        // A pod whose namespace is lost must be searched for.
        let mut life = pods.take(id).unwrap();
        life.sandbox = sandbox;
        pods.put(id, life);
        assert!(reporter.update_gauges(&pods) && !reporter.update_gauges(&pods));
        let text = reporter.metrics.encode();
        assert!(
            text.contains("underpass_pods{state=\"skipped\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("underpass_pods{state=\"enrolled\"} 0"),
            "{text}"
        );
    }
}
