//! A pod in the mesh.

use std::path::Path;
use std::time::{Duration, Instant};

use redirect::Plan;

use crate::checks::Checks;
use crate::effect::{Effect, Work};
use crate::event::Event;
use crate::input::{Answer, Input, Verdict};
use crate::leaving::Leaving;
use crate::life::{Generation, Phase, WORK_BUDGET};
use crate::record::Membership;
use crate::refusal::Refusal;
use crate::schedule::RETRY;
use crate::step::Turn;
use crate::verification::Finding;

/// Interval at which exemptions of closed connections are released.
const RELEASE_INTERVAL: Duration = Duration::from_secs(10);

/// A pod in the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// What it is to its proxies.
    pub membership: Membership,
    /// Its verification.
    pub checks: Checks,
    /// When to decide again: after a failed change of the plan, or after work that delayed a
    /// decision.
    decide_at: Option<Instant>,
    /// When to release exemptions of closed connections.
    release_at: Instant,
    /// A plan being applied.
    changing: Option<(Generation, Plan)>,
    /// Of the release in progress.
    releasing: Option<Generation>,
    /// Why it keeps an earlier plan.
    plan_kept: Option<Refusal>,
    /// The reason in [`Intent::unprovable`](crate::Intent::unprovable).
    unprovable: Option<String>,
}

impl Member {
    pub(crate) fn new(membership: Membership, now: Instant) -> Self {
        Self {
            checks: Checks::new(&membership.uid, now),
            membership,
            decide_at: None,
            release_at: now + RELEASE_INTERVAL,
            changing: None,
            releasing: None,
            plan_kept: None,
            unprovable: None,
        }
    }

    /// Why the pod is not verified even if its rules, listeners and probes are as planned.
    fn objection(&self) -> Option<Finding> {
        let (kept, unprovable) = (&self.plan_kept, &self.unprovable);
        let kept = kept.as_ref().map(Finding::plan_kept);
        kept.or_else(|| unprovable.clone().map(Finding::unprovable))
    }

    /// Records why the pod keeps an earlier plan; returns whether that is news.
    fn keep_plan(&mut self, why: Option<Refusal>, now: Instant) -> bool {
        let is_news = self.plan_kept != why;
        if is_news {
            self.plan_kept = why;
            self.checks.request(now);
        }
        is_news
    }

    /// When something is due.
    pub(crate) fn deadline(&self, is_busy: bool, is_located: bool) -> Option<Instant> {
        let releases = is_located && self.membership.exempted > 0;
        let release = releases.then_some(self.release_at);
        let when_idle = self.checks.due().into_iter().chain(release);
        let idle = when_idle.chain(self.decide_at).min();
        idle.filter(|_| !is_busy)
    }
}

impl Turn {
    /// Enters the phase: the pod is verified at once.
    pub(crate) fn become_member(&mut self, member: Member) -> Phase {
        if self.life.located {
            self.effect(Effect::Watch);
        }
        // The mesh may have changed while the pod joined.
        self.effect(Effect::Decide);
        self.proceed(member)
    }

    pub(crate) fn member(&mut self, mut member: Member, input: Input) -> Phase {
        let now = self.now.at;
        match input {
            Input::Begun => {
                self.announce(&member.membership);
                return self.become_member(member);
            }
            Input::Decided(verdict) if self.life.busy.is_some() => {
                // Decided again once the work is done.
                let _ = verdict;
                member.decide_at = Some(now);
            }
            Input::Decided(Verdict::Skip(reason)) => {
                self.effect(Effect::Unwatch);
                return self.begin_leaving(Leaving::new(member.membership, reason));
            }
            Input::Decided(Verdict::Enrol(intent)) if self.life.located => {
                if member.unprovable != intent.unprovable {
                    member.unprovable = intent.unprovable;
                    member.checks.request(now);
                }
                match intent.plan {
                    Err(refusal) => {
                        if member.keep_plan(Some(refusal.clone()), now) {
                            self.emit(Event::PlanKept(refusal));
                        }
                    }
                    Ok(plan) => {
                        // The capture never changes in a sandbox: open connections depend on it.
                        // The proxy's user is known only if the pod has the same users.
                        let capture = member.membership.plan.capture;
                        let joined_with = member.membership.plan.proxy_user;
                        let plan = Plan {
                            capture,
                            proxy_user: joined_with.and(plan.proxy_user),
                            ..plan
                        };
                        if plan == member.membership.plan {
                            member.keep_plan(None, now);
                        } else {
                            let pending = self.kernel(Work::Repair {
                                plan: plan.clone(),
                                exceptions: member.membership.known_exceptions(),
                            });
                            member.changing = Some((pending, plan));
                        }
                    }
                }
            }
            Input::Located { path, inode } if self.locate(&path, inode) => {
                member.checks.request(now);
                return self.member(member, Input::Begun);
            }
            Input::Changed => member.checks.changed(now),
            Input::ProxiesChanged | Input::VerifyRequested => member.checks.request(now),
            Input::Answered(generation, answer) => {
                self.member_answered(&mut member, generation, answer);
            }
            Input::Tick => self.tick(&mut member),
            _ => {}
        }
        self.proceed(member)
    }

    /// Continues with the namespace that was found, if it is the pod's.
    pub(crate) fn locate(&mut self, path: &Path, inode: u64) -> bool {
        let life = &mut self.life;
        if life.located || inode != life.sandbox.netns_inode {
            return false;
        }
        life.located = true;
        life.sandbox.netns_path = Some(path.to_owned());
        self.effect(Effect::Persist(None));
        true
    }

    /// Offers a pod to proxies without waiting for the answer.
    pub(crate) fn announce(&mut self, membership: &Membership) {
        let (generation, request) = (self.issue(), self.request(membership));
        self.effect(Effect::Offer {
            generation,
            request,
            urgent: false,
        });
    }

    fn tick(&mut self, member: &mut Member) {
        let now = self.now.at;
        if let Some(busy) = &mut self.life.busy {
            if !busy.reported && now >= busy.since + WORK_BUDGET {
                busy.reported = true;
                let why = format!(
                    "work on the pod's rules takes longer than {} s",
                    WORK_BUDGET.as_secs()
                );
                self.conclude(&mut member.checks, Err(Finding::overdue(why)));
            }
        } else if member.decide_at.is_some_and(|at| at <= now) {
            member.decide_at = None;
            self.effect(Effect::Decide);
        }
    }

    fn member_answered(&mut self, member: &mut Member, generation: Generation, answer: Answer) {
        let now = self.now.at;
        match answer {
            Answer::RulesChecked(check) => {
                self.rules_checked(member, generation, check);
            }
            Answer::Probed(result) if member.checks.is_probing(generation) => {
                let result = result.and_then(|from| member.objection().map_or(Ok(from), Err));
                self.complete(&mut member.checks, result);
            }
            Answer::PlanApplied(result) => match (member.changing.take(), result) {
                (Some((pending, plan)), Ok(())) if pending == generation => {
                    member.membership.plan = plan;
                    member.keep_plan(None, now);
                    self.emit(Event::PlanChanged);
                    self.effect(Effect::Persist(None));
                    member.checks.request(now);
                }
                (Some((pending, _)), Err(refusal)) if pending == generation => {
                    member.keep_plan(Some(refusal.clone()), now);
                    self.emit(Event::PlanFailed(refusal));
                    member.decide_at = Some(now + RETRY);
                }
                (other, _) => member.changing = other,
            },
            Answer::ExceptionsReleased(result) if member.releasing == Some(generation) => {
                member.releasing = None;
                match result {
                    Ok(open) => {
                        if member.membership.retain_exceptions(open) {
                            self.effect(Effect::Persist(None));
                        }
                    }
                    Err(refusal) => self.emit(Event::RemovalFailed(refusal)),
                }
            }
            _ => {}
        }
    }

    /// Starts what is due, unless work is in progress.
    fn proceed(&mut self, mut member: Member) -> Phase {
        let now = self.now.at;
        if self.life.busy.is_none() {
            let plan = member.membership.plan.clone();
            let exceptions = member.membership.known_exceptions();
            if member.decide_at.is_some_and(|at| at <= now) {
                member.decide_at = None;
                self.effect(Effect::Decide);
            } else if member.checks.due().is_some_and(|at| at <= now) {
                if self.life.located {
                    let generation = self.kernel(Work::Verify { plan, exceptions });
                    member.checks.begin(generation, now);
                } else {
                    let generation = self.issue();
                    member.checks.begin(generation, now);
                    self.complete(&mut member.checks, Err(Finding::netns_lost()));
                }
            } else if member.membership.exempted > 0
                && member.release_at <= now
                && self.life.located
            {
                member.release_at = now + RELEASE_INTERVAL;
                let release = Work::ReleaseExceptions { plan, exceptions };
                member.releasing = Some(self.kernel(release));
            }
        }
        Phase::Member(Box::new(member))
    }
}
