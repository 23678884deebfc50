//! The steps by which a pod joins, the same for an ADD and a running pod.

use std::time::{Duration, Instant};

use error_code::agent as codes;
use handoff::FromAgent;
use redirect::Plan;
use zds::{Request, WorkloadInfo};

use crate::effect::{Effect, Work, since};
use crate::event::Event;
use crate::input::{Answer, Input, Intent};
use crate::life::{Generation, Outside, Phase};
use crate::member::Member;
use crate::record::Membership;
use crate::refusal::Refusal;
use crate::schedule::RETRY;
use crate::step::Turn;

/// Time limit for a proxy to accept a running pod.
pub(crate) const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

/// How a pod joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The runtime starts it.
    Add,
    /// It runs already.
    Running,
}

/// A pod that joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Joining {
    /// How it joins.
    pub via: Via,
    /// When that began.
    pub(crate) started: Instant,
    /// When the plugin must be answered, or the proxies must have.
    pub(crate) deadline: Option<Instant>,
    /// How it is to be a member.
    pub intent: Box<Intent>,
    /// What a running pod was before, and becomes again if it cannot join.
    pub before: Option<Outside>,
    /// The current step.
    pub stage: Stage,
}

/// A step of joining. `pending` is the generation of the awaited answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// The namespace is checked.
    Preparing {
        /// Of the answer.
        pending: Generation,
    },
    /// The plugin installs the plan.
    Installing {
        /// The plan.
        plan: Plan,
    },
    /// The rules are read back and compared.
    ReadingBack {
        /// Of the answer.
        pending: Generation,
        /// The plan.
        plan: Plan,
    },
    /// Proxies are asked.
    AwaitingProxy {
        /// Of the answers.
        pending: Generation,
        /// What they are offered.
        membership: Membership,
        /// How many have rejected it.
        rejected: usize,
        /// The record is written meanwhile, if the pod is captured and a proxy will answer soon.
        saving: Option<Saving>,
    },
    /// The agent captures a running pod.
    Capturing {
        /// Of the answer.
        pending: Generation,
        /// What the proxy has accepted.
        membership: Membership,
    },
    /// The record is written.
    Saving {
        /// Of the answer.
        pending: Generation,
        /// What is written.
        membership: Membership,
    },
}

/// The writing of a record beside another step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// It is not complete.
    Pending(Generation),
    /// It is on disk.
    Complete,
}

impl Joining {
    /// What proxies were offered, once they were.
    pub fn membership(&self) -> Option<&Membership> {
        match &self.stage {
            Stage::AwaitingProxy { membership, .. }
            | Stage::Capturing { membership, .. }
            | Stage::Saving { membership, .. } => Some(membership),
            _ => None,
        }
    }

    /// The membership that is being written, or is on disk.
    pub(crate) fn saved(&self) -> Option<&Membership> {
        match &self.stage {
            Stage::AwaitingProxy {
                membership,
                saving: Some(_),
                ..
            }
            | Stage::Saving { membership, .. } => Some(membership),
            _ => None,
        }
    }

    /// Whether the answer to a request is awaited.
    fn awaits(&self, generation: Generation) -> bool {
        match &self.stage {
            Stage::Installing { .. } => false,
            Stage::AwaitingProxy {
                pending, saving, ..
            } => *pending == generation || *saving == Some(Saving::Pending(generation)),
            Stage::Preparing { pending }
            | Stage::ReadingBack { pending, .. }
            | Stage::Capturing { pending, .. }
            | Stage::Saving { pending, .. } => *pending == generation,
        }
    }

    fn stage(self, stage: Stage) -> Phase {
        Phase::Joining(Box::new(Self { stage, ..self }))
    }

    /// Why a step that has taken until the deadline is given up.
    fn timeout(&self, now: Instant, proxies: usize) -> Refusal {
        let waited = match self.via {
            Via::Add => since(self.started, now),
            Via::Running => PROXY_TIMEOUT,
        };
        let ms = waited.as_millis();
        let late = |code, what: &str| Refusal {
            retry: true,
            ..Refusal::new(code, format!("{what} within {ms} ms"))
        };
        match &self.stage {
            Stage::Installing { .. } => Refusal::plugin_disconnected(),
            Stage::Preparing { .. } | Stage::ReadingBack { .. } | Stage::Capturing { .. } => {
                late(&codes::RULES_DIFFER, "the pod's rules could not be read")
            }
            Stage::AwaitingProxy { .. } if proxies == 0 => {
                late(&codes::NO_PROXY, "no proxy connected")
            }
            Stage::AwaitingProxy { .. } => late(&codes::PROXY_TIMEOUT, "no proxy answered"),
            Stage::Saving { .. } => late(&codes::STATE, "the agent's state was not written"),
        }
    }
}

impl Turn {
    pub(crate) fn join(&mut self, joining: Joining, input: Input) -> Phase {
        match input {
            Input::Tick if joining.deadline.is_some_and(|at| at <= self.now.at) => {
                let refusal = joining.timeout(self.now.at, self.now.proxies);
                self.refuse(joining, refusal)
            }
            Input::PluginFailed(refusal) => self.refuse(joining, refusal),
            Input::Installed => match &joining.stage {
                Stage::Installing { plan } => {
                    let plan = plan.clone();
                    let pending = self.kernel(Work::ReadBack { plan: plan.clone() });
                    joining.stage(Stage::ReadingBack { pending, plan })
                }
                _ => {
                    let why = "received Installed, which was not expected";
                    self.refuse(joining, Refusal::new(&codes::PROTOCOL, why))
                }
            },
            Input::Answered(generation, answer) if joining.awaits(generation) => {
                self.answered(joining, answer)
            }
            _ => Phase::Joining(Box::new(joining)),
        }
    }

    fn answered(&mut self, mut joining: Joining, answer: Answer) -> Phase {
        let via = joining.via;
        match (joining.stage.clone(), answer) {
            (Stage::Preparing { .. }, Answer::Prepared { plan, lost }) => {
                if lost {
                    self.life.sandbox.netns_path = None;
                }
                self.life.located = plan.is_ok();
                match (plan, via) {
                    (Err(refusal), _) => self.refuse(joining, refusal),
                    (Ok(plan), Via::Add) => {
                        self.effect(Effect::Answer(FromAgent::Enrol {
                            plan: Box::new(plan.clone()),
                        }));
                        joining.stage(Stage::Installing { plan })
                    }
                    (Ok(plan), Via::Running) => {
                        let membership = Membership::new(&joining.intent, plan);
                        self.offer(joining, membership)
                    }
                }
            }
            (Stage::ReadingBack { plan, .. }, Answer::ReadBack(result)) => match result {
                Err(refusal) => self.refuse(joining, refusal),
                Ok(exceptions) => {
                    let mut membership = Membership::new(&joining.intent, plan);
                    membership.exempt(exceptions);
                    self.offer(joining, membership)
                }
            },
            (
                Stage::AwaitingProxy {
                    pending,
                    membership,
                    rejected,
                    saving,
                },
                Answer::Proxy(result),
            ) => match (result, via) {
                (Ok(()), Via::Add) => match saving {
                    Some(Saving::Complete) => self.joined(&joining, membership),
                    Some(Saving::Pending(pending)) => joining.stage(Stage::Saving {
                        pending,
                        membership,
                    }),
                    None => self.save(joining, membership),
                },
                (Ok(()), Via::Running) => {
                    joining.deadline = None;
                    let plan = membership.plan.clone();
                    let pending = self.kernel(Work::Join { plan });
                    joining.stage(Stage::Capturing {
                        pending,
                        membership,
                    })
                }
                (Err(why), _) if rejected + 1 >= self.now.proxies => {
                    let why = format!("the proxy rejected the pod: {why}");
                    self.refuse(joining, Refusal::new(&codes::PROXY_REFUSED, why))
                }
                (Err(_), _) => joining.stage(Stage::AwaitingProxy {
                    pending,
                    membership,
                    rejected: rejected + 1,
                    saving,
                }),
            },
            (
                Stage::AwaitingProxy {
                    pending,
                    membership,
                    rejected,
                    ..
                },
                Answer::Saved(Ok(())),
            ) => joining.stage(Stage::AwaitingProxy {
                pending,
                membership,
                rejected,
                saving: Some(Saving::Complete),
            }),
            (Stage::AwaitingProxy { .. } | Stage::Saving { .. }, Answer::Saved(Err(why))) => {
                let why = format!("cannot write the agent's state: {why}");
                self.refuse(joining, Refusal::new(&codes::STATE, why))
            }
            (Stage::Capturing { mut membership, .. }, Answer::Joined(result)) => match result {
                Err(refusal) => self.refuse(joining, refusal),
                Ok(exceptions) => {
                    membership.exempt(exceptions);
                    let now = self.now.at;
                    membership.started_outside = self.life.late.map(|late| late.until(now));
                    self.save(joining, membership)
                }
            },
            (Stage::Saving { membership, .. }, Answer::Saved(Ok(()))) => {
                self.joined(&joining, membership)
            }
            // An answer to another request, which a performer must not give.
            (_, _) => Phase::Joining(Box::new(joining)),
        }
    }

    fn offer(&mut self, mut joining: Joining, membership: Membership) -> Phase {
        let request = self.request(&membership);
        if joining.via == Via::Running {
            if self.now.proxies == 0 {
                let refusal = Refusal::new(&codes::NO_PROXY, "no proxy is connected");
                return self.refuse(joining, refusal);
            }
            joining.deadline = Some(self.now.at + PROXY_TIMEOUT);
        }
        if !request.fits() {
            let why = format!(
                "uid {:?} and the pod's names are too long",
                joining.intent.uid
            );
            return self.refuse(joining, Refusal::new(&codes::NAMES, why));
        }
        let uid = Some(membership.uid.clone());
        self.effect(Effect::Supersede {
            uid,
            is_offered: true,
        });
        // The exceptions of a running pod are known once it is captured.
        let saves = joining.via == Via::Add && self.now.proxies > 0;
        let saving = saves.then(|| self.issue());
        let pending = self.issue();
        self.effect(Effect::Offer {
            generation: pending,
            request,
            urgent: true,
        });
        if saving.is_some() {
            self.effect(Effect::Persist(saving));
        }
        joining.stage(Stage::AwaitingProxy {
            pending,
            membership,
            rejected: 0,
            saving: saving.map(Saving::Pending),
        })
    }

    /// Completes a join.
    fn joined(&mut self, joining: &Joining, membership: Membership) -> Phase {
        let via = joining.via;
        if via == Via::Add {
            self.effect(Effect::Answer(FromAgent::Ready));
            self.effect(Effect::Hangup);
            // Removes the mark from the record.
            self.effect(Effect::PersistSoon);
        }
        let took = since(joining.started, self.now.at);
        self.emit(Event::Joined { via, took });
        self.life.late = None;
        if let Some(started) = membership.started_outside {
            self.emit(Event::StartedOutside {
                lasted: Duration::from_millis(started.outside_ms),
                cause: started.cause,
            });
        }
        let member = Member::new(membership, self.now.at);
        self.become_member(member)
    }

    fn save(&mut self, joining: Joining, membership: Membership) -> Phase {
        let pending = self.issue();
        self.effect(Effect::Persist(Some(pending)));
        joining.stage(Stage::Saving {
            pending,
            membership,
        })
    }

    /// The request that announces a pod to proxies.
    pub(crate) fn request(&self, membership: &Membership) -> Request {
        let uid = membership.uid.clone();
        if !self.life.located {
            return Request::Keep { uid };
        }
        let info = WorkloadInfo {
            name: self.life.sandbox.pod.name.clone(),
            namespace: self.life.sandbox.pod.namespace.clone(),
            service_account: membership.service_account.clone(),
        };
        Request::Add { uid, info }
    }

    /// Undoes a join.
    pub(crate) fn refuse(&mut self, joining: Joining, refusal: Refusal) -> Phase {
        let (was_offered, was_saving) = (joining.membership().is_some(), joining.saved().is_some());
        let is_changed = !matches!(joining.stage, Stage::Preparing { .. });
        let outside = match joining.before {
            None => {
                // Answer before the removal, which may take longer than the plugin waits.
                self.reject(refusal);
                None
            }
            Some(before) => {
                let reason = format!("cannot enrol the pod yet: {}", refusal.with_next_step());
                let is_new = reason != before.reason;
                if is_new {
                    let via = Via::Running;
                    self.emit(Event::Refused { via, refusal });
                }
                if is_new || was_saving {
                    self.effect(Effect::Persist(None));
                }
                Some(Outside {
                    retry_at: Some(self.now.at + RETRY),
                    ..Outside::new(reason, false)
                })
            }
        };
        if was_offered {
            let uid = joining.intent.uid.clone();
            self.effect(Effect::Withdraw { uid });
        }
        match outside {
            None if was_saving => self.effect(Effect::Persist(None)),
            None if !is_changed => {
                self.effect(Effect::Hangup);
                return Phase::Gone;
            }
            // A capture that failed has undone itself.
            Some(outside) if !was_saving => return Phase::Outside(outside),
            _ => {}
        }
        self.begin_removal(outside)
    }
}
