//! A pod's surroundings as a model: its rules, a proxy, a disk, and a plugin.

use std::time::{Duration, Instant};

use agent_status::LateCause;
use handoff::FromAgent;
use zds::Request;

use super::{now, refusal, sandbox};
use crate::{
    Answer, Effect, Event, Exceptions, FromNode, Generation, Input, LateStart, Leftovers, Life,
    OutsideRecord, Phase, Record, RulesCheck, Verdict, Via, Work, step,
};

/// Time that a plugin waits.
pub(super) const PLUGIN_DEADLINE: Duration = Duration::from_secs(4);

/// A request that a performer has not answered yet.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    Kernel(Generation, Box<Work>),
    Probe(Generation),
    /// And whether the pod waits for the answer.
    Proxy(Generation, bool),
    Disk(Option<Generation>, Box<Saved>),
}

/// What is on disk about the pod.
pub(super) type Saved = (Option<Record>, Option<OutsideRecord>);

#[derive(Debug)]
pub(super) struct World {
    pub(super) life: Option<Life>,
    pub(super) at: Instant,
    pub(super) start: Instant,
    pub(super) proxies: usize,
    pub(super) verdict: Verdict,
    /// Whether new connections of the pod are captured.
    pub(super) is_captured: bool,
    /// Whether a proxy serves the pod.
    pub(super) is_served: bool,
    pub(super) is_watched: bool,
    pub(super) disk: Saved,
    pub(super) pending: Vec<Pending>,
    /// Every request that was ever answered, to be repeated by a faulty performer.
    pub(super) answered: Vec<(Generation, Answer)>,
    /// What the plugin was sent; `None` without an ADD.
    pub(super) plugin: Option<Vec<FromAgent>>,
    pub(super) is_hung_up: bool,
    pub(super) add_deadline: Option<Instant>,
    pub(super) events: Vec<Event>,
    /// Number of pods that were found and had started late.
    pub(super) late_starts: usize,
    last_effects: Vec<Effect>,
}

impl World {
    pub(super) fn new(verdict: Verdict) -> Self {
        let start = Instant::now();
        Self {
            life: None,
            at: start,
            start,
            proxies: 1,
            verdict,
            is_captured: false,
            is_served: false,
            is_watched: false,
            disk: (None, None),
            pending: Vec::new(),
            answered: Vec::new(),
            plugin: None,
            is_hung_up: false,
            add_deadline: None,
            events: Vec::new(),
            late_starts: 0,
            last_effects: Vec::new(),
        }
    }

    /// A pod that a plugin presents.
    pub(super) fn presented(verdict: Verdict) -> Self {
        let mut world = Self::new(verdict);
        world.present();
        world
    }

    pub(super) fn present(&mut self) {
        self.life = Some(Life::presented(sandbox()));
        (self.plugin, self.is_hung_up) = (Some(Vec::new()), false);
        let deadline = self.at + PLUGIN_DEADLINE;
        self.add_deadline = Some(deadline);
        self.input(Input::Presented {
            verdict: self.verdict.clone(),
            conflict: None,
            repeated: self.is_captured,
            deadline,
        });
    }

    /// A running pod that was found.
    pub(super) fn found(verdict: Verdict) -> Self {
        let mut world = Self::new(verdict);
        world.find();
        world.flush();
        world
    }

    /// Completes the writes that no one waits for.
    pub(super) fn flush(&mut self) {
        let is_write = |p: &Pending| matches!(p, Pending::Disk(None, _));
        while let Some(index) = self.pending.iter().position(is_write) {
            self.answer(index, false);
        }
    }

    pub(super) fn find(&mut self) {
        self.life = Some(Life::found(sandbox(), "older than the agent"));
        self.input(Input::Begun);
    }

    /// A running pod is found that started three seconds ago, and should have joined then.
    pub(super) fn find_late(&mut self) {
        let late = LateStart {
            at: self.at.checked_sub(Duration::from_secs(3)).unwrap(),
            cause: LateCause::PluginNotCalled,
        };
        let life = Life::found(sandbox(), "no ADD").with_late_start(Some(late));
        (self.life, self.late_starts) = (Some(life), self.late_starts + 1);
        self.input(Input::Begun);
    }

    /// Passes an input, and performs what takes no time.
    pub(super) fn input(&mut self, input: Input) {
        let Some(life) = self.life.take() else { return };
        let now = crate::Now {
            proxies: self.proxies,
            ..now(self.start, self.at - self.start)
        };
        let was_joining = matches!(life.phase, Phase::Joining(_));
        let (life, effects) = step(life, input, &now);
        self.last_effects.clone_from(&effects);
        let record = (life.record(), life.outside_record());
        self.life = (life.phase != Phase::Gone).then_some(life);
        if self.life.is_none() {
            // Answers to a life that is gone are dropped.
            self.pending.retain(|p| matches!(p, Pending::Disk(..)));
            self.answered.clear();
            self.is_watched = false;
        }
        let mut decides = false;
        for effect in effects {
            match effect {
                Effect::Decide => decides = true,
                Effect::Kernel(generation, work) => {
                    let in_progress = |p: &Pending| matches!(p, Pending::Kernel(..));
                    assert!(!self.pending.iter().any(in_progress), "two at a time");
                    let via_running = matches!(&self.life.as_ref().map(|l| &l.phase),
                        Some(Phase::Joining(j)) if j.via == Via::Running);
                    if via_running && matches!(work, Work::Join { .. }) {
                        assert!(self.is_served, "captured before a proxy serves it");
                    }
                    self.pending
                        .push(Pending::Kernel(generation, Box::new(work)));
                }
                Effect::Probe { generation, .. } => self.pending.push(Pending::Probe(generation)),
                Effect::Offer {
                    generation,
                    request,
                    urgent,
                } => {
                    let Request::Add { .. } = request else {
                        continue;
                    };
                    self.pending.push(Pending::Proxy(generation, urgent));
                }
                Effect::Withdraw { .. } => {
                    self.is_served = false;
                    self.pending.retain(|p| !matches!(p, Pending::Proxy(..)));
                }
                Effect::Persist(generation) => {
                    let written = Pending::Disk(generation, Box::new(record.clone()));
                    self.pending.push(written);
                }
                Effect::PersistSoon => {
                    let written = Pending::Disk(None, Box::new(record.clone()));
                    self.pending.push(written);
                }
                Effect::Answer(message) => {
                    let sent = self.plugin.as_mut().expect("an answer without an ADD");
                    assert!(
                        !self.is_hung_up,
                        "an answer after the connection was closed"
                    );
                    sent.push(message);
                }
                Effect::Hangup => self.is_hung_up = true,
                Effect::Watch => self.is_watched = true,
                Effect::Unwatch => self.is_watched = false,
                Effect::Emit(event) => self.events.push(event),
                Effect::Supersede { .. } => {}
            }
        }
        let is_member = matches!(self.phase(), Some(Phase::Member(_)));
        if was_joining && is_member {
            assert!(self.is_captured, "a member without rules");
            assert!(self.is_served, "a member without a proxy");
            assert!(self.disk.0.is_some(), "a member that is not on disk");
        }
        if decides {
            self.decide();
        }
    }

    pub(super) fn decide(&mut self) {
        self.input(Input::Decided(self.verdict.clone()));
    }

    pub(super) fn set_verdict(&mut self, verdict: Verdict) {
        self.verdict = verdict;
        self.decide();
    }

    /// Answers a pending request, and performs it unless it fails.
    pub(super) fn answer(&mut self, index: usize, fails: bool) {
        if self.pending.is_empty() {
            return;
        }
        let index = index % self.pending.len();
        // The disk writes in order.
        let is_disk = |p: &Pending| matches!(p, Pending::Disk(..));
        let index = match self.pending.iter().position(is_disk) {
            Some(first) if is_disk(&self.pending[index]) => first,
            _ => index,
        };
        let pending = self.pending.remove(index);
        let (generation, answer) = match pending {
            Pending::Disk(generation, saved) => {
                if fails {
                    // The disk tries again with what is current then.
                    let life = self.life.as_ref();
                    let record = life.and_then(|l| l.record());
                    let outside = life.and_then(|l| l.outside_record());
                    let saved = Box::new((record, outside));
                    self.pending.push(Pending::Disk(None, saved));
                } else {
                    self.disk = *saved;
                }
                let result = if fails {
                    Err("full".to_owned())
                } else {
                    Ok(())
                };
                let Some(generation) = generation else { return };
                (generation, Answer::Saved(result))
            }
            Pending::Proxy(generation, is_awaited) => {
                if fails && !is_awaited {
                    // The proxy tries again; meanwhile the pod is unverified.
                    return self.pending.push(Pending::Proxy(generation, is_awaited));
                }
                self.is_served |= !fails;
                let result = if fails { Err("no".to_owned()) } else { Ok(()) };
                (generation, Answer::Proxy(result))
            }
            Pending::Probe(generation) => {
                let silent = || {
                    let code = agent_status::VerificationReason::ProbeFailed;
                    Err(crate::Finding::Unverified(code, "silent".to_owned()))
                };
                (
                    generation,
                    Answer::Probed(if fails {
                        silent()
                    } else {
                        Ok(FromNode::Probed)
                    }),
                )
            }
            Pending::Kernel(generation, work) => {
                let answer = match *work {
                    Work::ClearLeftovers if fails => Answer::Cleared(Err(refusal())),
                    Work::ClearLeftovers => {
                        let found = std::mem::take(&mut self.is_captured);
                        Answer::Cleared(Ok(if found {
                            Leftovers::Removed
                        } else {
                            Leftovers::None
                        }))
                    }
                    Work::Prepare { plan } => Answer::Prepared {
                        plan: if fails { Err(refusal()) } else { plan },
                        lost: false,
                    },
                    Work::ReadBack { .. } => {
                        let is_planned = self.is_captured && !fails;
                        let exceptions = Ok(Exceptions::new());
                        Answer::ReadBack(if is_planned {
                            exceptions
                        } else {
                            Err(refusal())
                        })
                    }
                    Work::Join { .. } => {
                        self.is_captured = !fails; // a failure undoes itself
                        let exceptions = Ok(Exceptions::new());
                        Answer::Joined(if fails { Err(refusal()) } else { exceptions })
                    }
                    Work::Repair { .. } => {
                        self.is_captured |= !fails;
                        Answer::PlanApplied(if fails { Err(refusal()) } else { Ok(()) })
                    }
                    Work::Verify { plan, .. } => {
                        let repaired = (!self.is_captured && !fails)
                            .then(|| ("a rule".to_owned(), "nft".to_owned(), Duration::ZERO));
                        self.is_captured |= !fails;
                        let drift = crate::Finding::Drift("a rule".to_owned());
                        let result = if fails {
                            Err(drift)
                        } else {
                            Ok(plan.addresses)
                        };
                        Answer::RulesChecked(RulesCheck { repaired, result })
                    }
                    Work::ReleaseExceptions { .. } => {
                        let exceptions = Ok(Exceptions::new());
                        let result = if fails { Err(refusal()) } else { exceptions };
                        Answer::ExceptionsReleased(result)
                    }
                    Work::Leave { .. } => {
                        self.is_captured &= fails;
                        Answer::Left(if fails { Err(refusal()) } else { Ok(0) })
                    }
                    Work::Remove => {
                        self.is_captured &= fails;
                        Answer::Removed(if fails { Err(refusal()) } else { Ok(()) })
                    }
                };
                (generation, answer)
            }
        };
        self.answered.push((generation, answer.clone()));
        self.input(Input::Answered(generation, answer));
    }

    /// Answers the only kind of request that matters to a test: the first, successfully.
    pub(super) fn proceed(&mut self) {
        self.answer(0, false);
    }

    /// Answers the first request with an error.
    pub(super) fn fail(&mut self) {
        self.answer(0, true);
    }

    /// What the plugin does when it has received the plan.
    pub(super) fn install(&mut self) {
        let was_sent = |m: &FromAgent| matches!(m, FromAgent::Enrol { .. });
        let sent = self.plugin.as_ref().is_some_and(|m| m.iter().any(was_sent));
        if sent && !self.is_hung_up && self.final_answers() == 0 {
            self.is_captured = true;
            self.input(Input::Installed);
        }
    }

    /// Advances the time to the life's deadline, if it has one, and passes the tick.
    pub(super) fn tick(&mut self) {
        if let Some(deadline) = self.life.as_ref().and_then(Life::deadline) {
            self.at = self.at.max(deadline);
            self.input(Input::Tick);
            let next = self.life.as_ref().and_then(Life::deadline);
            assert!(
                next.is_none_or(|next| next > self.at),
                "the tick is due again: {self:?}"
            );
        }
    }

    /// The agent is killed, and the next one starts from the disk.
    pub(super) fn restart(&mut self) {
        self.pending.clear();
        self.answered.clear();
        self.is_watched = false;
        self.is_served = false;
        if self.plugin.is_some() && self.final_answers() == 0 {
            self.is_captured = false; // the plugin undoes its ADD
        }
        (self.plugin, self.add_deadline) = (None, None);
        self.life = match self.disk.clone() {
            (Some(record), _) if record.is_of_failed_add(self.is_captured) => {
                self.disk = (None, None);
                None
            }
            (Some(record), _) => Some(Life::restored(record, true, self.at)),
            (None, Some(outside)) => Some(Life::restored_outside(outside)),
            (None, None) => None,
        };
        // The next agent writes at once what became of a marked record.
        if let Some(record) = &mut self.disk.0 {
            record.unanswered = false;
        }
        self.input(Input::Begun);
    }

    /// Answers everything successfully, and lets time pass, until nothing changes.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            while !self.pending.is_empty() {
                self.proceed();
            }
            self.install();
            if self.pending.is_empty() {
                self.tick();
            }
        }
        while !self.pending.is_empty() {
            self.proceed();
        }
    }

    pub(super) fn phase(&self) -> Option<&Phase> {
        self.life.as_ref().map(|l| &l.phase)
    }

    pub(super) fn is_outside(&self) -> bool {
        matches!(self.phase(), Some(Phase::Outside(_)))
    }

    pub(super) fn is_member(&self) -> bool {
        matches!(self.phase(), Some(Phase::Member(_)))
    }

    /// Number of messages that end an ADD.
    pub(super) fn final_answers(&self) -> usize {
        let sent = self.plugin.iter().flatten();
        sent.filter(|m| !matches!(m, FromAgent::Enrol { .. }))
            .count()
    }

    pub(super) fn last_message(&self) -> Option<&FromAgent> {
        self.plugin.as_ref()?.last()
    }

    /// The code of the last message, which is a failure.
    #[track_caller]
    pub(super) fn failure(&self) -> &str {
        match self.last_message() {
            Some(FromAgent::Failed { code, .. }) => code,
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    /// The kernel work in progress.
    pub(super) fn work(&self) -> Option<&Work> {
        self.pending.iter().find_map(|p| match p {
            Pending::Kernel(_, work) => Some(&**work),
            _ => None,
        })
    }

    pub(super) fn effects(&self) -> &[Effect] {
        &self.last_effects
    }
}
