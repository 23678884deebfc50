//! A pod that leaves the mesh: new connections are no longer captured, but its proxy serves it for
//! a while, because clients still use tunnels.

use std::time::{Duration, Instant};

use redirect::Plan;

use crate::effect::{Effect, Work, since};
use crate::event::Event;
use crate::input::{Answer, Input, Intent, Verdict};
use crate::life::{Generation, Outside, Phase};
use crate::member::Member;
use crate::record::Membership;
use crate::schedule::RETRY;
use crate::step::Turn;

/// A leaving pod is served for at least this long, until the control plane has updated the proxies
/// of its clients.
pub(crate) const MIN_LINGER: Duration = Duration::from_secs(5);

/// A pod that leaves the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaving {
    /// What it is to its proxies.
    pub membership: Membership,
    /// When it began to leave, or when this agent took it over as leaving; `None` until the
    /// capturing rules are removed.
    pub since: Option<Instant>,
    /// Why it leaves.
    pub(crate) reason: String,
    /// When to decide again.
    pub(crate) retry_at: Option<Instant>,
    pending: Option<Pending>,
}

/// Work in progress.
#[derive(Debug, Clone, PartialEq)]
enum Pending {
    Leave(Generation, bool),
    Rejoin(Generation, Box<Plan>, String),
}

impl Leaving {
    pub(crate) fn new(membership: Membership, reason: String) -> Self {
        Self {
            membership,
            since: None,
            reason,
            retry_at: None,
            pending: None,
        }
    }

    pub(crate) fn restored(membership: Membership, now: Instant) -> Self {
        let reason = membership.reason.clone();
        Self {
            since: Some(now),
            ..Self::new(membership, reason)
        }
    }
}

impl Turn {
    pub(crate) fn begin_leaving(&mut self, mut leaving: Leaving) -> Phase {
        let now = self.now.at;
        leaving.retry_at = None;
        if !self.life.located {
            return self.finish_leaving(leaving);
        }
        let lingers = leaving.since.is_none_or(|at| since(at, now) < MIN_LINGER);
        let generation = self.kernel(Work::Leave {
            plan: leaving.membership.plan.clone(),
            exceptions: leaving.membership.known_exceptions(),
            keep_return_path: lingers,
        });
        leaving.pending = Some(Pending::Leave(generation, lingers));
        Phase::Leaving(Box::new(leaving))
    }

    pub(crate) fn leave(&mut self, mut leaving: Leaving, input: Input) -> Phase {
        let now = self.now.at;
        match input {
            Input::Begun => {
                self.announce(&leaving.membership);
                leaving.retry_at = Some(now);
            }
            Input::Tick if leaving.retry_at.is_some_and(|at| at <= now) => {
                leaving.retry_at = Some(now + RETRY);
                self.effect(Effect::Decide);
            }
            Input::Decided(verdict) if leaving.pending.is_none() => match verdict {
                Verdict::Enrol(intent) if self.life.located => {
                    return self.rejoin(leaving, *intent);
                }
                Verdict::Skip(reason) | Verdict::Unknown(reason) => {
                    leaving.reason = reason;
                    return self.begin_leaving(leaving);
                }
                Verdict::Enrol(_) => {}
            },
            Input::Located { path, inode } if self.locate(&path, inode) => {
                return self.leave(leaving, Input::Begun);
            }
            Input::Answered(generation, answer) => {
                return self.leaving_answered(leaving, generation, answer);
            }
            _ => {}
        }
        Phase::Leaving(Box::new(leaving))
    }

    fn rejoin(&mut self, mut leaving: Leaving, intent: Intent) -> Phase {
        let plan = match intent.plan {
            // The capture never changes in a sandbox: open connections depend on it.
            Ok(plan) => Plan {
                capture: leaving.membership.plan.capture,
                proxy_user: leaving.membership.plan.proxy_user.and(plan.proxy_user),
                ..plan
            },
            Err(refusal) => {
                self.emit(Event::PlanKept(refusal));
                leaving.membership.plan.clone()
            }
        };
        // Connections opened while the pod was leaving are not captured, and are exempted.
        let pending = self.kernel(Work::Join { plan: plan.clone() });
        leaving.retry_at = None;
        leaving.pending = Some(Pending::Rejoin(pending, Box::new(plan), intent.reason));
        Phase::Leaving(Box::new(leaving))
    }

    fn leaving_answered(
        &mut self,
        mut leaving: Leaving,
        generation: Generation,
        answer: Answer,
    ) -> Phase {
        let now = self.now.at;
        match (leaving.pending.take(), answer) {
            (Some(Pending::Leave(pending, lingers)), Answer::Left(result))
                if pending == generation =>
            {
                match result {
                    Ok(0) if !lingers => return self.finish_leaving(leaving),
                    Ok(open) if leaving.since.is_none() => {
                        // Only now: removing the rules may take as long as the pod should linger.
                        leaving.since = Some(now);
                        leaving.membership.reason.clone_from(&leaving.reason);
                        self.emit(Event::Leaving { open });
                        self.effect(Effect::Persist(None));
                    }
                    Ok(_) => {}
                    Err(refusal) => self.emit(Event::RemovalFailed(refusal)),
                }
                leaving.retry_at = Some(now + RETRY);
            }
            (Some(Pending::Rejoin(pending, plan, reason)), Answer::Joined(result))
                if pending == generation =>
            {
                match result {
                    Ok(exceptions) => {
                        leaving.membership.plan = *plan;
                        leaving.membership.reason = reason;
                        leaving.membership.exempt(exceptions);
                        self.emit(Event::PlanChanged);
                        self.effect(Effect::Persist(None));
                        return self.become_member(Member::new(leaving.membership, now));
                    }
                    Err(refusal) => {
                        self.emit(Event::PlanFailed(refusal));
                        leaving.retry_at = Some(now + RETRY);
                    }
                }
            }
            (pending, _) => leaving.pending = pending,
        }
        Phase::Leaving(Box::new(leaving))
    }

    fn finish_leaving(&mut self, leaving: Leaving) -> Phase {
        let uid = leaving.membership.uid;
        self.effect(Effect::Withdraw { uid });
        self.emit(Event::Left {
            reason: leaving.reason.clone(),
        });
        self.effect(Effect::Persist(None));
        self.effect(Effect::Decide);
        Phase::Outside(Outside::new(leaving.reason, true))
    }
}
