//! Looks after every enrolled pod: whenever the kernel says that somebody changed its rules, now and then, and when asked.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use agent_status::VerificationStatus;
use netns::NetNs;
use netns::watch::{Author, Watch};
use redirect::Plan;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::agent::Agent;
use crate::event::{Drifted, Looked, ProbeFailed, Repaired, Unverified, Verified, names};
use crate::pace::Pace;
use crate::pods::Enrolled;
use crate::prober::Probed;
use crate::verification::{Finding, Repair, Verification};
use crate::{listening, prober};

/// Without anything having changed, a pod is looked at this often.
const INTERVAL: Duration = Duration::from_secs(30);
/// Less often where there are so many pods that more than four a second would be looked at.
const FOR_EACH_POD: Duration = Duration::from_millis(250);
/// Those that are due within this time are looked at together.
const TOGETHER: Duration = Duration::from_secs(5);
/// A pod that was found wanting is looked at again this soon, and less often the longer it lasts.
const RETRY: Duration = Duration::from_secs(1);

/// The pods that are looked after, by uid.
#[derive(Debug, Default)]
pub(crate) struct Verifier(HashMap<String, Watched>);

/// A pod that is looked after.
#[derive(Debug)]
struct Watched {
    task: AbortHandle,
    watch: Option<Rc<Watch>>,
    /// What the last look has found.
    found: Option<Verification>,
    /// The last good look; before the first one, when looking after it began.
    good_at: Instant,
    repair: Option<Repair>,
}

impl Verifier {
    /// What is known about a pod.
    pub(crate) fn of(&self, uid: &str) -> Option<&Verification> {
        self.0.get(uid)?.found.as_ref()
    }

    /// The same for people and programs.
    pub(crate) fn status(&self, uid: &str) -> Option<VerificationStatus> {
        let (watched, now) = (self.0.get(uid)?, Instant::now());
        Some(watched.found.as_ref()?.status(watched.repair.as_ref(), now))
    }

    /// How long ago the pod that has waited the longest was last verified.
    pub(crate) fn age(&self) -> Duration {
        self.0.values().map(|w| w.good_at.elapsed()).max().unwrap_or_default()
    }

    /// How often a pod is looked at that is well.
    fn interval(&self) -> Duration {
        let pods = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        INTERVAL.max(FOR_EACH_POD.saturating_mul(pods))
    }

    /// A pod has left.
    pub(crate) fn forget(&mut self, uid: &str) {
        if let Some(watched) = self.0.remove(uid) {
            watched.task.abort();
        }
    }

    fn watch(&self, uid: &str) -> Option<Rc<Watch>> {
        self.0.get(uid)?.watch.clone()
    }
}

/// Begins to look after a pod, in a task of its own.
pub(crate) fn look_after(agent: &Rc<Agent>, uid: &str) {
    let open = |netns: &NetNs| {
        Watch::open(netns).inspect_err(|e| tracing::warn!(uid, "changes in the pod are not told: {e}")).ok()
    };
    let watch = agent.pod(uid).and_then(|p| p.netns).and_then(|n| open(&n)).map(Rc::new);
    let task = tokio::task::spawn_local(watch_over(agent.clone(), uid.to_owned(), watch.clone()));
    let watched = Watched { task: task.abort_handle(), watch, found: None, good_at: Instant::now(), repair: None };
    if let Some(earlier) = agent.verifier.borrow_mut().0.insert(uid.to_owned(), watched) {
        earlier.task.abort();
    }
}

async fn watch_over(agent: Rc<Agent>, uid: String, watch: Option<Rc<Watch>>) {
    let (mut retry, mut pace) = (RETRY, Pace::default());
    let (mut probed, mut first) = (Probed::All, true);
    loop {
        // Asked for before looking, so that a proxy that comes or goes meanwhile is not missed.
        let proxies_changed = agent.proxies.changed.notified();
        let Some(good) = look(&agent, &uid, probed).await else { return };
        // Pods that have joined together are not looked at together for ever.
        let share = if first { rand::random_range(0.2..1.0) } else { 1.0 };
        first = false;
        let again = if good { together(agent.verifier.borrow().interval().mul_f64(share)) } else { retry };
        retry = if good { RETRY } else { (retry * 2).min(INTERVAL) };
        probed = Probed::All;
        tokio::select! {
            () = sleep(again) => if good {
                probed = Probed::One;
            },
            () = proxies_changed => {}
            () = changed(watch.as_deref()) => sleep(pace.delay(Instant::now())).await,
        }
    }
}

/// A little longer, so that some pods are looked at one right after the other: a processor that has slept finds nothing in
/// its caches, and one look alone costs twice as much.
fn together(wait: Duration) -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let (grid, now) = (TOGETHER.as_millis(), BEGAN.elapsed().as_millis());
    let due = (now + wait.as_millis()).next_multiple_of(grid);
    Duration::from_millis(u64::try_from(due - now).unwrap_or(u64::MAX))
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) if watch.changed().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Looks at a pod, puts right what differs, and remembers what was found: whether it is verified, or none when it is
/// no pod of the mesh (any more).
pub(crate) async fn look_now(agent: &Agent, uid: &str) -> Option<bool> {
    look(agent, uid, Probed::All).await
}

async fn look(agent: &Agent, uid: &str, probed: Probed) -> Option<bool> {
    let pod = agent.pod(uid).filter(|p| !p.record.leaving)?;
    let started = Instant::now();
    let found = match &pod.netns {
        Some(netns) => examine_and_repair(agent, &pod, netns, probed).await,
        None => Err(not_found_again()),
    };
    Looked { took: started.elapsed() }.tell(&agent.metrics);
    let good = found.is_ok();
    note(agent, &pod, found)?;
    Some(good)
}

/// Rules, listeners, probes; nothing is changed.
pub(crate) async fn examine(agent: &Agent, pod: &Enrolled) -> Result<(), Finding> {
    let netns = pod.netns.as_ref().ok_or_else(not_found_again)?;
    match difference(&pod.record.plan, netns)? {
        Some(what) => Err(Finding::Drift(what)),
        None => served(agent, pod, netns, Probed::All).await,
    }
}

fn not_found_again() -> Finding {
    Finding::Silence("the pod's namespace was not found again after a restart".to_owned())
}

/// Rules, listeners, probes; rules that differ are put right at once.
async fn examine_and_repair(agent: &Agent, pod: &Enrolled, netns: &NetNs, probed: Probed) -> Result<(), Finding> {
    repair(agent, pod, netns)?;
    served(agent, pod, netns, probed).await
}

/// Whether the proxy serves the pod.
async fn served(agent: &Agent, pod: &Enrolled, netns: &NetNs, probed: Probed) -> Result<(), Finding> {
    let (plan, uid) = (&pod.record.plan, &pod.record.uid);
    listening::check(plan, &inside(netns, redirect::listeners)?)?;
    prober::probe(netns, plan, uid, probed).await.map_err(|why| {
        ProbeFailed.tell(&agent.metrics);
        Finding::Silence(why)
    })
}

/// The first difference between a plan and what is there.
fn difference(plan: &Plan, netns: &NetNs) -> Result<Option<String>, Finding> {
    let observed = inside(netns, redirect::read_back)?;
    Ok(redirect::diff(plan, &observed).first().map(ToString::to_string))
}

fn repair(agent: &Agent, pod: &Enrolled, netns: &NetNs) -> Result<(), Finding> {
    let (plan, uid) = (&pod.record.plan, &pod.record.uid);
    let watch = agent.verifier.borrow().watch(uid);
    // Before every reading: what was told until here is in what is read, and need not be looked at again.
    let told = || watch.as_ref().map(|w| w.take()).unwrap_or_default();
    let started = Instant::now();
    let by = told();
    let Some(what) = difference(plan, netns)? else { return Ok(()) };
    let done = inside(netns, || redirect::repair(plan));
    told(); // that was us, also when it failed half-way: it is tried again later, not at once and without end
    done?;
    if let Some(still) = difference(plan, netns)? {
        return Err(Finding::Drift(format!("{still}; it could not be repaired")));
    }
    let since = agent.verifier.borrow().of(uid).and_then(Verification::drifted_since);
    repaired(agent, pod, &what, &by, since.unwrap_or(started));
    Ok(())
}

fn repaired(agent: &Agent, pod: &Enrolled, what: &str, by: &[Author], since: Instant) {
    Repaired { pod: &pod.record, what, by, lasted: since.elapsed() }.tell(&agent.metrics);
    if let Some(events) = agent.events() {
        events.repaired(&pod.record.pod, what, &names(by));
    }
    if let Some(watched) = agent.verifier.borrow_mut().0.get_mut(&pod.record.uid) {
        watched.repair = Some(Repair { what: what.to_owned(), by: names(by), at: Instant::now() });
    }
}

fn inside<T>(netns: &NetNs, work: impl FnOnce() -> Result<T, redirect::RedirectError>) -> Result<T, Finding> {
    let entered = netns.run(work).map_err(|e| Finding::Silence(e.to_string()))?;
    entered.map_err(|e| Finding::Drift(format!("{}: {e}", e.code())))
}

/// Remembers what a look has found, and tells what is new; none when the pod has left meanwhile.
fn note(agent: &Agent, pod: &Enrolled, found: Result<(), Finding>) -> Option<()> {
    let mut verifier = agent.verifier.borrow_mut();
    let watched = verifier.0.get_mut(&pod.record.uid)?;
    let (previous, at) = (watched.found.take(), Instant::now());
    let now = Verification::after(previous.as_ref(), found, at);
    let news = previous.as_ref().map(Verification::state) != Some(now.state());
    if news {
        match &now {
            Verification::Verified { .. } => {
                let after = previous.as_ref().map(|p| (p.state(), at.saturating_duration_since(p.since())));
                Verified { pod: &pod.record, after }.tell(&agent.metrics);
            }
            Verification::Drifted { what, .. } => Drifted { pod: &pod.record, what }.tell(),
            Verification::Unverified { why, .. } => Unverified { pod: &pod.record, why }.tell(),
        }
        if let (Some(events), Verification::Drifted { what: why, .. } | Verification::Unverified { why, .. }) =
            (agent.events(), &now)
        {
            events.not_verified(&pod.record.pod, why);
        }
    }
    if matches!(now, Verification::Verified { .. }) {
        watched.good_at = at;
    }
    watched.found = Some(now);
    drop(verifier);
    if news {
        agent.state_changed();
    }
    Some(())
}
