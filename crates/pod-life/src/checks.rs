//! The verification of a member: when it is due, what is in progress, and the last result.

use std::time::Instant;

use agent_status::{VerificationReason, VerificationState, VerificationStatus};

use crate::effect::{Effect, since};
use crate::event::Event;
use crate::input::{FromNode, RulesCheck};
use crate::life::Generation;
use crate::member::Member;
use crate::schedule::{Pace, Schedule};
use crate::step::Turn;
use crate::verification::{Finding, Repair, Verification};

/// The verification of a member.
#[derive(Debug, Clone, PartialEq)]
pub struct Checks {
    /// The last result.
    pub result: Option<Verification>,
    /// The last repair.
    pub repair: Option<Repair>,
    /// When the pod was last verified; initially when it joined.
    pub verified_at: Instant,
    /// The last verification that completed.
    pub completed: Generation,
    running: Option<Running>,
    due: Instant,
    /// Whether the next one probes every listener: not if nothing has changed since a success.
    all: bool,
    schedule: Schedule,
    pace: Pace,
}

#[derive(Debug, Clone, PartialEq)]
struct Running {
    generation: Generation,
    probe: Option<Generation>,
    since: Instant,
    all: bool,
}

impl Checks {
    /// The verification of a pod that is due at once.
    pub(crate) fn new(uid: &str, now: Instant) -> Self {
        // FNV-1a of the uid spreads pods that joined at the same time.
        let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let share = 0.2 + 0.8 * (hash % 1000) as f64 / 1000.0;
        Self {
            result: None,
            repair: None,
            verified_at: now,
            completed: Generation::default(),
            running: None,
            due: now,
            all: true,
            schedule: Schedule::new(share),
            pace: Pace::default(),
        }
    }

    /// When the next one is due; `None` while one is in progress.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.running.is_none().then_some(self.due)
    }

    /// Verify now, or right after the one in progress.
    pub(crate) fn request(&mut self, now: Instant) {
        self.due = self.due.min(now);
        self.all = true;
    }

    /// The kernel reports a change.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.due = self.due.min(now + self.pace.delay(now));
        self.all = true;
    }

    pub(crate) fn begin(&mut self, generation: Generation, now: Instant) {
        self.running = Some(Running {
            generation,
            probe: None,
            since: now,
            all: self.all,
        });
        self.all = false;
        // Requests and changes from now on make another one due.
        self.due = now + crate::schedule::NEVER;
    }

    pub(crate) fn is_probing(&self, generation: Generation) -> bool {
        self.running
            .as_ref()
            .is_some_and(|r| r.probe == Some(generation))
    }

    /// The result as reported by `/status`.
    pub fn status(&self, now: Instant) -> Option<VerificationStatus> {
        Some(self.result.as_ref()?.status(self.repair.as_ref(), now))
    }

    /// The state of the last result.
    pub fn state(&self) -> Option<VerificationState> {
        self.result.as_ref().map(Verification::state)
    }
}

impl Turn {
    pub(crate) fn rules_checked(
        &mut self,
        member: &mut Member,
        generation: Generation,
        check: RulesCheck,
    ) {
        let (now, checks) = (self.now.at, &mut member.checks);
        let Some(running) = checks
            .running
            .take_if(|r| r.generation == generation && r.probe.is_none())
        else {
            return;
        };
        if let Some((what, by, took)) = check.repaired {
            let detected = checks.result.as_ref().and_then(Verification::drifted_since);
            let lasted = detected.map_or(took, |at| since(at, now));
            checks.repair = Some(Repair {
                what: what.clone(),
                by: by.clone(),
                at: now,
            });
            self.emit(Event::Repaired { what, by, lasted });
        }
        let all = running.all;
        checks.running = Some(running);
        match check.result {
            Err(finding) => self.complete(&mut member.checks, Err(finding)),
            Ok(addresses) => {
                let probe = self.issue();
                if let Some(running) = &mut member.checks.running {
                    running.probe = Some(probe);
                }
                self.effect(Effect::Probe {
                    generation: probe,
                    plan: member.membership.plan.clone(),
                    addresses,
                    uid: member.membership.uid.clone(),
                    all,
                });
            }
        }
    }

    /// Completes the verification in progress.
    pub(crate) fn complete(&mut self, checks: &mut Checks, result: Result<FromNode, Finding>) {
        let now = self.now.at;
        let Some(running) = checks.running.take() else {
            return;
        };
        self.emit(Event::VerificationCompleted {
            took: since(running.since, now),
            probe_failed: matches!(
                result,
                Err(Finding::Unverified(VerificationReason::ProbeFailed, _))
            ),
        });
        checks.completed = running.generation;
        let delay = if result.is_ok() {
            let running_for = since(self.now.started, now);
            checks.schedule.after_success(self.now.members, running_for)
        } else {
            checks.all = true;
            checks.schedule.after_failure()
        };
        checks.due = checks.due.min(now + delay);
        self.conclude(checks, result);
    }

    /// Records a result, and emits an event if the state changed.
    pub(crate) fn conclude(&mut self, checks: &mut Checks, result: Result<FromNode, Finding>) {
        let now = self.now.at;
        let previous = checks.result.take();
        let current = Verification::after(previous.as_ref(), result, now);
        if previous.as_ref().map(Verification::state) != Some(current.state()) {
            self.emit(match &current {
                Verification::Verified { .. } => Event::Verified {
                    after: previous.map(|p| (p.state(), since(p.since(), now))),
                },
                Verification::Drifted { what, .. } => Event::Drifted { what: what.clone() },
                Verification::Unverified { why, .. } => Event::Unverified { why: why.clone() },
            });
        }
        if matches!(current, Verification::Verified { .. }) {
            checks.verified_at = now;
        }
        checks.result = Some(current);
    }
}
