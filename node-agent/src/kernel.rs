//! Performs work in the network namespaces of pods, on threads of its own, since it may block.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use agent_status::VerificationReason;
use netns::watch::Watch;
use netns::{NetNs, NetNsId};
use pod_life::{
    Answer, Exceptions, Finding, Generation, Input, Leftovers, LifeId, Refusal, RulesCheck,
};
use redirect::{CaptureKind, Examination, Listener, ObservedState, Plan, RedirectError};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::inbox::{Inbox, Message};
use crate::listening;
use crate::plan::resolve_istio_redirection;
use crate::refusal::WorkError;
use crate::reporter::names;
use crate::sandbox_check::{self, SandboxError, open_netns};

/// Threads for kernel work; each pod occupies one at a time.
pub(crate) const THREADS: usize = 8;

/// Starts all threads, so that their number does not depend on the load, nor that of their
/// descriptors: each keeps its own namespace open. Call it in the runtime.
pub(crate) fn start_threads() {
    let all = Arc::new(Barrier::new(THREADS));
    for _ in 0..THREADS {
        let all = all.clone();
        tokio::task::spawn_blocking(move || {
            all.wait();
            let _ = NetNs::current().map(|own| own.run(|| ())); // otherwise, later work fails
        });
    }
}

/// Performs kernel work.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) inbox: Inbox,
    /// The namespaces that are never a pod's.
    pub(crate) node_namespaces: Arc<[NetNsId]>,
    /// Whether pods without a known namespace are searched for.
    pub(crate) searches: bool,
    /// Cloned while work is in progress.
    pub(crate) in_progress: Arc<()>,
}

/// Work in the namespace of one pod.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: LifeId,
    pub(crate) generation: Generation,
    pub(crate) work: pod_life::Work,
    /// The open namespace; otherwise it is opened by its path and inode.
    pub(crate) netns: Option<Arc<NetNs>>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) inode: u64,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) watch: Option<WatchHandle>,
}

impl Kernel {
    /// Whether no work is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.in_progress) == 1
    }

    /// Starts work, which is answered in the inbox.
    pub(crate) fn perform(&self, work: Work) {
        let kernel = self.clone();
        tokio::task::spawn_blocking(move || {
            let (id, generation) = (work.id, work.generation);
            let netns = match &work.netns {
                Some(netns) => Some(netns.clone()),
                None => open_netns(work.path.as_deref(), work.inode).map(Arc::new),
            };
            let answer = kernel.answer(work, netns.as_deref());
            let opened = match &answer {
                Answer::Prepared { plan: Ok(_), .. } => netns,
                _ => None,
            };
            kernel.inbox.send(Message::Done {
                id,
                generation,
                answer,
                netns: opened,
            });
        });
    }

    fn answer(&self, work: Work, netns: Option<&NetNs>) -> Answer {
        let gone = || Refusal::from(WorkError::from(SandboxError::Gone));
        let run_in = |f: &dyn Fn() -> Result<Exceptions, RedirectError>| {
            let netns = netns.ok_or_else(gone)?;
            Ok(netns
                .run(f)
                .map_err(WorkError::from)?
                .map_err(WorkError::from)?)
        };
        match work.work {
            pod_life::Work::ClearLeftovers => Answer::Cleared(match netns {
                Some(netns) if !self.node_namespaces.contains(&netns.id()) => {
                    clear_leftovers(netns).map_err(Refusal::from)
                }
                _ => Ok(Leftovers::Unplaced),
            }),
            pod_life::Work::Prepare { plan } => Answer::Prepared {
                plan: netns
                    .ok_or_else(gone)
                    .and_then(|netns| self.prepare(netns, &work.addresses, plan)),
                lost: self.searches && netns.is_none(),
            },
            pod_life::Work::ReadBack { plan } => Answer::ReadBack(
                netns
                    .ok_or_else(gone)
                    .and_then(|netns| Ok(read_back(&plan, netns)?)),
            ),
            pod_life::Work::Join { plan } => {
                Answer::Joined(run_in(&|| Ok(redirect::join(&plan)?.exempted)))
            }
            pod_life::Work::Repair { plan, exceptions } => {
                let repair = || {
                    let exceptions = known(exceptions.as_ref())?;
                    redirect::repair(&plan, &exceptions).map(|()| exceptions)
                };
                Answer::PlanApplied(run_in(&repair).map(drop))
            }
            pod_life::Work::Verify { plan, exceptions } => Answer::RulesChecked(match netns {
                Some(netns) => {
                    let desired = (&plan, exceptions.as_ref());
                    verify(desired, netns, work.watch.as_ref())
                }
                None => RulesCheck {
                    repaired: None,
                    result: Err(Finding::netns_lost()),
                },
            }),
            pod_life::Work::ReleaseExceptions { plan, exceptions } => {
                Answer::ExceptionsReleased(run_in(&|| {
                    redirect::release_closed_exceptions(&plan, &known(exceptions.as_ref())?)
                }))
            }
            pod_life::Work::Leave {
                plan,
                exceptions,
                keep_return_path,
            } => Answer::Left(netns.ok_or_else(gone).and_then(|netns| {
                let left = netns.run(|| {
                    let exceptions = known(exceptions.as_ref())?;
                    redirect::leave(&plan, &exceptions, keep_return_path)
                });
                Ok(left.map_err(WorkError::from)?.map_err(WorkError::from)?)
            })),
            pod_life::Work::Remove => {
                Answer::Removed(run_in(&|| redirect::remove().map(|_| Exceptions::new())).map(drop))
            }
        }
    }

    /// Checks that a namespace is the pod's, and adapts the plan to what is in it.
    fn prepare(
        &self,
        netns: &NetNs,
        addresses: &[IpAddr],
        plan: Result<Plan, Refusal>,
    ) -> Result<Plan, Refusal> {
        sandbox_check::check(netns, &self.node_namespaces, addresses).map_err(WorkError::from)?;
        let mut plan = plan?;
        resolve_istio_redirection(&mut plan, netns)?;
        if !netns.is_of_own_users() {
            // The proxy's user has no id in the user namespace of the pod.
            plan.proxy_user = None;
        }
        Ok(plan)
    }
}

/// The exceptions of the pod's record, or those that are there if it has only their number.
fn known(exceptions: Option<&Exceptions>) -> Result<Exceptions, RedirectError> {
    match exceptions {
        Some(exceptions) => Ok(exceptions.clone()),
        None => Ok(redirect::read_back()?.exempted_connections()),
    }
}

/// Removes the rules of an interrupted join.
fn clear_leftovers(netns: &NetNs) -> Result<Leftovers, WorkError> {
    let removed = netns.run(|| {
        // Rules of istio-cni partly look like Underpass's.
        let is_own = redirect::find_foreign_redirection()?.is_empty();
        Ok::<_, RedirectError>(is_own && redirect::remove()?.found)
    })??;
    Ok(if removed {
        Leftovers::Removed
    } else {
        Leftovers::None
    })
}

/// Compares the rules that the plugin installed with the plan.
fn read_back(plan: &Plan, netns: &NetNs) -> Result<Exceptions, WorkError> {
    let (observed, exempted) = netns
        .run(|| {
            let observed = redirect::read_back()?;
            let exempted = redirect::exempted_connections(plan, &observed)?;
            Ok((observed, exempted))
        })?
        .map_err(WorkError::ReadBack)?;
    match redirect::diff(plan, &observed).into_iter().next() {
        Some(difference) => Err(WorkError::NotAsPlanned(difference)),
        None => Ok(exempted),
    }
}

/// What a verification reads in a pod.
struct Examined {
    examination: Examination,
    listeners: Result<Vec<Listener>, RedirectError>,
}

impl Examined {
    fn read(plan: &Plan, netns: &NetNs) -> Result<Self, Finding> {
        run_in(netns, || {
            Ok(Self {
                examination: redirect::examine(plan)?,
                listeners: redirect::listeners(),
            })
        })
    }

    fn observed(&self) -> &ObservedState {
        &self.examination.observed
    }

    /// The first difference between a plan and the observed rules.
    fn difference(&self, (plan, exceptions): Desired<'_>) -> Option<String> {
        let mut differences = match exceptions {
            Some(exceptions) => redirect::diff_with(plan, exceptions, self.observed()),
            None => redirect::diff(plan, self.observed()),
        }
        .into_iter();
        differences.next().map(|d| d.to_string())
    }

    /// Checks what other programs have set up in the pod: listeners on the proxy's ports, and what
    /// may change where its packets go. Returns the pod's addresses.
    fn check_others(self, plan: &Plan) -> Result<Vec<IpAddr>, Finding> {
        let addresses = plan.addresses_within(&self.observed().surroundings);
        listening::check(plan, &self.listeners.map_err(unreadable)?)?;
        let bypasses = self.examination.bypasses.map_err(unreadable)?;
        let Some(bypass) = bypasses.first() else {
            return Ok(addresses);
        };
        let reason = if bypass.is_below_the_stack() {
            VerificationReason::BelowTheStack
        } else {
            VerificationReason::ForeignRules
        };
        Err(Finding::Unverified(reason, bypass.to_string()))
    }
}

/// A pod's plan, and the exceptions of its record.
pub(crate) type Desired<'a> = (&'a Plan, Option<&'a Exceptions>);

/// Checks a pod's rules and the proxy's listeners without repairing anything; returns the pod's
/// addresses.
pub(crate) fn check(desired: Desired<'_>, netns: &NetNs) -> Result<Vec<IpAddr>, Finding> {
    let examined = Examined::read(desired.0, netns)?;
    match examined.difference(desired) {
        Some(what) => Err(Finding::Drift(what)),
        None => examined.check_others(desired.0),
    }
}

fn verify(desired: Desired<'_>, netns: &NetNs, watch: Option<&WatchHandle>) -> RulesCheck {
    let mut repaired = None;
    let checked = repair(desired, netns, watch, &mut repaired).and_then(|examined| {
        cut_uncaptured(desired, netns, &examined, &mut repaired)?;
        examined.check_others(desired.0)
    });
    if let Some(watch) = watch {
        watch.drained.notify_one();
    }
    RulesCheck {
        repaired,
        result: checked,
    }
}

/// Repairs rules that differ from the plan; `repaired` then receives what, who and how long.
fn repair(
    desired: Desired<'_>,
    netns: &NetNs,
    watch: Option<&WatchHandle>,
    repaired: &mut Option<(String, String, Duration)>,
) -> Result<Examined, Finding> {
    // Drained before every reading, which covers all changes reported until then.
    let drain = || watch.map(|w| w.watch.drain()).unwrap_or_default();
    let (started, by) = (Instant::now(), drain());
    let examined = Examined::read(desired.0, netns)?;
    let Some(what) = examined.difference(desired) else {
        return Ok(examined);
    };
    let result = run_in(netns, || redirect::repair(desired.0, &known(desired.1)?));
    // Drops the repair's own changes, even if it failed half-way, so that they do not trigger a
    // retry at once.
    drain();
    result?;
    let examined = Examined::read(desired.0, netns)?;
    if let Some(remaining) = examined.difference(desired) {
        return Err(Finding::Drift(format!(
            "still differs after a repair: {remaining}"
        )));
    }
    *repaired = Some((what, names(&by), started.elapsed()));
    Ok(examined)
}

/// Cuts connections that bypass the proxy, because they were opened while rules were missing, and
/// adds their number to what was `repaired`.
fn cut_uncaptured(
    (plan, exceptions): Desired<'_>,
    netns: &NetNs,
    examined: &Examined,
    repaired: &mut Option<(String, String, Duration)>,
) -> Result<(), Finding> {
    if plan.capture == CaptureKind::Routed {
        return Ok(()); // leaves none
    }
    let cut = run_in(netns, || {
        redirect::cut_uncaptured(plan, &known(exceptions)?, examined.observed())
    })?;
    if cut > 0 {
        let (what, ..) = repaired.get_or_insert_with(|| {
            let what = "connections bypassed the proxy".to_owned();
            (what, "unknown".to_owned(), Duration::ZERO)
        });
        what.push_str(&format!(
            "; {cut} connections that bypassed the proxy were cut"
        ));
    }
    Ok(())
}

fn run_in<T>(netns: &NetNs, work: impl FnOnce() -> Result<T, RedirectError>) -> Result<T, Finding> {
    let unavailable = |e: netns::NetNsError| {
        let reason = VerificationReason::NamespaceUnavailable;
        Finding::Unverified(reason, e.to_string())
    };
    netns.run(work).map_err(unavailable)?.map_err(unreadable)
}

/// What follows from an error of reading or changing a pod's rules.
fn unreadable(e: RedirectError) -> Finding {
    match e.is_too_many() {
        true => {
            let next_step = e.code().next_step;
            let why = format!("{}: {e}. Next step: {next_step}", e.code());
            Finding::Unverified(VerificationReason::TooManyObjects, why)
        }
        false => Finding::Drift(format!("{}: {e}", e.code())),
    }
}

/// Watches the rules of a pod until it is dropped.
#[derive(Debug)]
pub(crate) struct PodWatch {
    handle: WatchHandle,
    task: AbortHandle,
}

/// What a verification needs of a watch.
#[derive(Debug, Clone)]
pub(crate) struct WatchHandle {
    watch: Arc<Watch>,
    /// Notified when a verification has read everything that was reported until then.
    drained: Arc<Notify>,
}

impl PodWatch {
    /// Watches a pod; each change is reported once, until a verification has drained it.
    pub(crate) fn open(id: LifeId, netns: &NetNs, uid: Option<&str>, inbox: Inbox) -> Option<Self> {
        let warn = |e: &std::io::Error| {
            let event = "pod_changes_unwatched";
            tracing::warn!(
                event,
                uid,
                "cannot watch the pod's network namespace; falling back to polling: {e}"
            );
        };
        let handle = WatchHandle {
            watch: Arc::new(Watch::open(netns).inspect_err(warn).ok()?),
            drained: Arc::default(),
        };
        let WatchHandle { watch, drained } = handle.clone();
        let task = tokio::task::spawn_local(async move {
            while watch.changed().await.is_ok() {
                inbox.send(Message::Pod(id, Input::Changed));
                drained.notified().await;
            }
        });
        let task = task.abort_handle();
        Some(Self { handle, task })
    }

    pub(crate) fn handle(&self) -> WatchHandle {
        self.handle.clone()
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
