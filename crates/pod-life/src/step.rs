//! The function that decides.

use std::mem;
use std::time::Instant;

use handoff::FromAgent;

use crate::effect::{Effect, Work};
use crate::event::Event;
use crate::input::{Answer, Conflict, Input, Intent, Leftovers, Now, Verdict};
use crate::joining::{Joining, Stage, Via};
use crate::life::{Busy, Generation, Life, Outside, Phase, Removing};
use crate::refusal::Refusal;
use crate::schedule::RETRY;

/// The next state of a life, and what to do, in order.
pub fn step(mut life: Life, input: Input, now: &Now) -> (Life, Vec<Effect>) {
    let phase = mem::replace(&mut life.phase, Phase::Gone);
    let mut turn = Turn {
        life,
        now: *now,
        effects: Vec::new(),
    };
    if let Input::Answered(generation, answer) = &input
        && !matches!(
            answer,
            Answer::Proxy(_) | Answer::Saved(_) | Answer::Probed(_)
        )
        && turn.life.busy.is_some_and(|b| b.generation == *generation)
    {
        turn.life.busy = None;
    }
    turn.life.phase = turn.advance(phase, input);
    if matches!(turn.life.phase, Phase::Outside(_)) {
        turn.life.located = false; // its namespace is opened again when it is needed
    }
    (turn.life, turn.effects)
}

/// One step in progress. The phase is passed around, so the life's own is not valid meanwhile.
pub(crate) struct Turn {
    pub(crate) life: Life,
    pub(crate) now: Now,
    pub(crate) effects: Vec<Effect>,
}

impl Turn {
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.effect(Effect::Emit(event));
    }

    pub(crate) fn issue(&mut self) -> Generation {
        self.life.issued.0 += 1;
        self.life.issued
    }

    /// Requests kernel work; none may be in progress.
    pub(crate) fn kernel(&mut self, work: Work) -> Generation {
        debug_assert!(self.life.busy.is_none(), "one at a time");
        let generation = self.issue();
        self.life.busy = Some(Busy {
            generation,
            since: self.now.at,
            reported: false,
        });
        self.effect(Effect::Kernel(generation, work));
        generation
    }

    /// Sends the plugin its last message. What remains of its connection tells it when the rules
    /// are removed.
    pub(crate) fn reject(&mut self, refusal: Refusal) {
        self.effect(Effect::Answer(refusal.message()));
        let via = Via::Add;
        self.emit(Event::Refused { via, refusal });
    }

    fn advance(&mut self, phase: Phase, input: Input) -> Phase {
        match (phase, input) {
            (Phase::Gone, _) => Phase::Gone,
            (phase, Input::Deleted) => self.delete(phase),
            (phase, Input::Released(why)) => self.release(phase, why),
            (phase, Input::Superseded { uid }) => self.supersede(phase, uid.as_deref()),
            (
                Phase::New,
                Input::Presented {
                    verdict,
                    conflict,
                    repeated,
                    deadline,
                },
            ) => self.present(verdict, conflict, repeated, (self.now.at, deadline)),
            (Phase::New, _) => Phase::New,
            (Phase::Waiting { started, deadline }, input) => self.wait((started, deadline), input),
            (Phase::Outside(outside), input) => self.outside(outside, input),
            (Phase::Joining(joining), input) => self.join(*joining, input),
            (Phase::Member(member), input) => self.member(*member, input),
            (Phase::Leaving(leaving), input) => self.leave(*leaving, input),
            (Phase::Removing(removing), input) => self.remove(removing, input),
        }
    }

    /// Decides about a presented pod. `times` are those of the start and the deadline.
    fn present(
        &mut self,
        verdict: Verdict,
        conflict: Option<Conflict>,
        repeated: bool,
        times: (Instant, Instant),
    ) -> Phase {
        let (started, deadline) = times;
        match (verdict, conflict) {
            (Verdict::Skip(reason), _) => {
                self.emit(Event::Skipped {
                    reason: reason.clone(),
                    at_add: true,
                });
                // Answer before writing to disk, so as not to delay the pod.
                self.effect(Effect::Answer(FromAgent::Skip {
                    reason: reason.clone(),
                }));
                self.effect(Effect::Hangup);
                let uid = self.life.sandbox.pod.uid.clone();
                self.effect(Effect::Supersede {
                    uid,
                    is_offered: false,
                });
                self.effect(Effect::Persist(None));
                self.effect(Effect::Decide);
                // An earlier life of the same sandbox may have left rules.
                Phase::Outside(Outside::new(reason, !repeated))
            }
            (Verdict::Unknown(reason), _) => {
                self.refuse_early(Refusal::new(&error_code::agent::UNKNOWN_POD, reason))
            }
            (Verdict::Enrol(_), Some(Conflict::Adding)) => self.refuse_early(Refusal::busy()),
            (Verdict::Enrol(_), Some(Conflict::Changing)) => Phase::Waiting { started, deadline },
            (Verdict::Enrol(intent), None) => {
                self.prepare(intent, Via::Add, None, (started, Some(deadline)))
            }
        }
    }

    /// Refuses an ADD that has changed nothing.
    pub(crate) fn refuse_early(&mut self, refusal: Refusal) -> Phase {
        self.reject(refusal);
        self.effect(Effect::Hangup);
        Phase::Gone
    }

    fn wait(&mut self, times: (Instant, Instant), input: Input) -> Phase {
        let (started, deadline) = times;
        match input {
            Input::Decided(verdict) => self.present(verdict, None, true, times),
            Input::PluginFailed(refusal) => self.refuse_early(refusal),
            Input::Tick if self.now.at >= deadline => self.refuse_early(Refusal::busy()),
            Input::Unblocked => {
                self.effect(Effect::Decide);
                Phase::Waiting { started, deadline }
            }
            _ => Phase::Waiting { started, deadline },
        }
    }

    pub(crate) fn prepare(
        &mut self,
        intent: Box<Intent>,
        via: Via,
        before: Option<Outside>,
        times: (Instant, Option<Instant>),
    ) -> Phase {
        let plan = intent.plan.clone();
        let pending = self.kernel(Work::Prepare { plan });
        let (started, deadline) = times;
        Phase::Joining(Box::new(Joining {
            via,
            started,
            deadline,
            intent,
            before,
            stage: Stage::Preparing { pending },
        }))
    }

    fn outside(&mut self, mut outside: Outside, input: Input) -> Phase {
        match input {
            Input::Begun => {
                self.effect(Effect::Persist(None));
                self.effect(Effect::Decide);
            }
            Input::Tick if outside.retry_at.is_some_and(|at| at <= self.now.at) => {
                outside.retry_at = None;
                self.effect(Effect::Decide);
            }
            Input::Located { path, inode } if outside.clearing.is_none() => {
                self.life.sandbox.netns_path = Some(path);
                self.life.sandbox.netns_inode = inode;
                self.effect(Effect::Persist(None));
                self.effect(Effect::Decide);
            }
            Input::Answered(generation, Answer::Cleared(result)) => match outside.clearing.take() {
                Some((pending, reason)) if pending == generation => {
                    self.cleared(&mut outside, reason, result);
                }
                other => outside.clearing = other,
            },
            Input::Decided(verdict) if outside.clearing.is_none() => match verdict {
                Verdict::Enrol(intent) => {
                    let times = (self.now.at, None);
                    return self.prepare(intent, Via::Running, Some(outside), times);
                }
                Verdict::Skip(reason) => {
                    self.life.late = None; // when it joins, its label has changed
                    let placed = self.life.sandbox.netns_path.is_some();
                    if outside.cleared || !placed {
                        outside.retry_at = None;
                        self.set_reason(&mut outside, reason);
                    } else {
                        let pending = self.kernel(Work::ClearLeftovers);
                        outside.clearing = Some((pending, reason));
                    }
                }
                Verdict::Unknown(_) => {}
            },
            _ => {}
        }
        Phase::Outside(outside)
    }

    fn cleared(
        &mut self,
        outside: &mut Outside,
        reason: String,
        result: Result<Leftovers, Refusal>,
    ) {
        outside.retry_at = None;
        match result {
            Ok(leftovers) => {
                outside.cleared = leftovers != Leftovers::Unplaced;
                if leftovers == Leftovers::Removed {
                    self.emit(Event::LeftoversRemoved);
                }
                self.set_reason(outside, reason);
            }
            Err(refusal) => {
                let why = refusal.with_next_step();
                outside.retry_at = Some(self.now.at + RETRY);
                self.set_reason(
                    outside,
                    format!("{reason}; leftover redirect rules may block its traffic: {why}"),
                );
            }
        }
        // It may belong to the mesh by now.
        if outside.retry_at.is_none() && outside.cleared {
            self.effect(Effect::Decide);
        }
    }

    fn set_reason(&mut self, outside: &mut Outside, reason: String) {
        if outside.reason != reason {
            let at_add = false;
            outside.reason.clone_from(&reason);
            self.emit(Event::Skipped { reason, at_add });
        }
    }

    /// Removes all rules, then goes outside or ends.
    pub(crate) fn begin_removal(&mut self, then: Option<Outside>) -> Phase {
        let removing = Removing {
            then,
            pending: None,
        };
        self.continue_removal(removing)
    }

    fn continue_removal(&mut self, mut removing: Removing) -> Phase {
        if !self.life.located {
            return self.end_removal(removing);
        }
        if removing.pending.is_none() && self.life.busy.is_none() {
            removing.pending = Some(self.kernel(Work::Remove));
        }
        Phase::Removing(removing)
    }

    fn remove(&mut self, removing: Removing, input: Input) -> Phase {
        match input {
            Input::Answered(generation, Answer::Removed(result))
                if removing.pending == Some(generation) =>
            {
                if let Err(refusal) = result {
                    self.emit(Event::RemovalFailed(refusal));
                }
                self.end_removal(removing)
            }
            _ => self.continue_removal(removing),
        }
    }

    fn end_removal(&mut self, removing: Removing) -> Phase {
        self.effect(Effect::Hangup);
        removing.then.map_or(Phase::Gone, Phase::Outside)
    }

    /// The uid that the proxies have of this phase.
    fn offered(phase: &Phase) -> Option<String> {
        match phase {
            Phase::Joining(joining) => joining.membership().map(|m| m.uid.clone()),
            Phase::Member(member) => Some(member.membership.uid.clone()),
            Phase::Leaving(leaving) => Some(leaving.membership.uid.clone()),
            _ => None,
        }
    }

    fn delete(&mut self, phase: Phase) -> Phase {
        let deleted = || {
            let why = "the runtime deleted the sandbox during the ADD";
            Refusal {
                retry: true,
                ..Refusal::new(&error_code::agent::PROTOCOL, why)
            }
        };
        match phase {
            Phase::New | Phase::Waiting { .. } => return self.refuse_early(deleted()),
            Phase::Joining(joining) if joining.via == Via::Add => {
                return self.refuse(*joining, deleted());
            }
            Phase::Removing(removing) => {
                self.effect(Effect::Persist(None));
                return self.continue_removal(Removing {
                    then: None,
                    ..removing
                });
            }
            _ => {}
        }
        self.effect(Effect::Unwatch);
        if let Some(uid) = Self::offered(&phase) {
            self.effect(Effect::Withdraw { uid });
        }
        self.effect(Effect::Persist(None));
        match phase {
            Phase::Outside(_) => Phase::Gone,
            _ => self.begin_removal(None),
        }
    }

    fn release(&mut self, phase: Phase, why: String) -> Phase {
        match phase {
            Phase::Outside(_) | Phase::Member(_) | Phase::Leaving(_) => {
                self.emit(Event::Released { why });
                if let Some(uid) = Self::offered(&phase) {
                    self.effect(Effect::Withdraw { uid });
                }
                self.effect(Effect::Persist(None));
                Phase::Gone
            }
            phase => phase,
        }
    }

    /// Ends a life that a newer sandbox replaces. Rules are left alone: they are those of the newer
    /// one, or of a sandbox that the runtime deletes.
    fn supersede(&mut self, phase: Phase, by: Option<&str>) -> Phase {
        match phase {
            Phase::New | Phase::Waiting { .. } => return self.refuse_early(Refusal::busy()),
            Phase::Joining(joining) if joining.via == Via::Add => {
                return self.refuse(*joining, Refusal::busy());
            }
            Phase::Removing(removing) => {
                self.effect(Effect::Persist(None));
                return Phase::Removing(Removing {
                    then: None,
                    ..removing
                });
            }
            _ => {}
        }
        // A proxy replaces a pod of the same uid without an interruption.
        if let Some(uid) = Self::offered(&phase).filter(|uid| Some(uid.as_str()) != by) {
            self.effect(Effect::Withdraw { uid });
        }
        self.effect(Effect::Persist(None));
        Phase::Gone
    }
}
