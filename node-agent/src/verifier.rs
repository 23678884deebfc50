//! Looks after every enrolled pod: whenever the kernel says that somebody changed its rules, and now and then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh::probe;
use netns::NetNs;
use netns::watch::Watch;
use redirect::{CaptureKind, Plan};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::pods::Enrolled;
use crate::verification::{Finding, Verification};

/// Without anything having changed, a pod is looked at this often.
const INTERVAL: Duration = Duration::from_secs(30);
/// A pod that was found wanting is looked at again this soon, and less often the longer it lasts.
const RETRY: Duration = Duration::from_secs(1);
/// Several changes in a row are looked at once.
const SETTLE: Duration = Duration::from_millis(5);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// The pods that are looked after, by uid.
#[derive(Debug, Default)]
pub(crate) struct Verifier {
    found: HashMap<String, Verification>,
    tasks: HashMap<String, AbortHandle>,
}

impl Verifier {
    /// What is known about a pod.
    pub(crate) fn of(&self, uid: &str) -> Option<&Verification> {
        self.found.get(uid)
    }

    /// A pod has left.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.found.remove(uid);
        if let Some(task) = self.tasks.remove(uid) {
            task.abort();
        }
    }
}

/// Begins to look after a pod, in a task of its own.
pub(crate) fn look_after(agent: &Rc<Agent>, uid: &str) {
    let task = tokio::task::spawn_local(watch_over(agent.clone(), uid.to_owned()));
    let mut verifier = agent.verifier.borrow_mut();
    if let Some(earlier) = verifier.tasks.insert(uid.to_owned(), task.abort_handle()) {
        earlier.abort();
    }
}

async fn watch_over(agent: Rc<Agent>, uid: String) {
    let Some(netns) = agent.pod(&uid).and_then(|p| p.netns) else {
        let finding = Finding::Silence("the pod's namespace was not found again after a restart".to_owned());
        return note(&agent, &uid, Err(finding));
    };
    let watch = Watch::open(&netns).inspect_err(|e| tracing::warn!(uid, "changes in the pod are not told: {e}")).ok();
    let mut retry = RETRY;
    loop {
        let Some(pod) = agent.pod(&uid) else { return };
        // Asked for before looking, so that a proxy that comes meanwhile is not missed.
        let proxy_came = agent.proxies.came.notified();
        let found = look(&agent, &pod, &netns).await;
        let again = if found.is_ok() { INTERVAL } else { retry };
        retry = if found.is_ok() { RETRY } else { (retry * 2).min(INTERVAL) };
        note(&agent, &uid, found);
        tokio::select! {
            () = sleep(again) => {}
            () = proxy_came => {}
            () = changed(watch.as_ref()) => sleep(SETTLE).await,
        }
    }
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) if watch.changed().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Rules, listeners, probes; nothing is changed.
pub(crate) async fn examine(agent: &Agent, pod: &Enrolled) -> Result<(), Finding> {
    let Some(netns) = &pod.netns else {
        return Err(Finding::Silence("the pod's namespace was not found again after a restart".to_owned()));
    };
    match difference(&pod.record.plan, netns)? {
        Some(what) => Err(Finding::Drift(what)),
        None => served(agent, pod, netns).await,
    }
}

/// Rules, listeners, probes; rules that differ are put right at once.
async fn look(agent: &Agent, pod: &Enrolled, netns: &NetNs) -> Result<(), Finding> {
    repair(agent, pod, netns)?;
    served(agent, pod, netns).await
}

/// Whether the proxy serves the pod.
async fn served(agent: &Agent, pod: &Enrolled, netns: &NetNs) -> Result<(), Finding> {
    let ports = inside(netns, redirect::listening_ports)?;
    let planned = [pod.record.plan.ports.outbound, pod.record.plan.ports.inbound, pod.record.plan.ports.hbone];
    if let Some(port) = planned.iter().find(|p| !ports.contains(p)) {
        return Err(Finding::Silence(format!("nobody listens on port {port} in the pod: the proxy is away")));
    }
    for v6 in [false, true] {
        let Some(own) = pod.record.plan.addresses.iter().find(|a| a.is_ipv6() == v6) else { continue };
        let routed = pod.record.plan.capture == CaptureKind::Routed;
        ask_proxy(netns, *own, &pod.record.uid, routed).await.map_err(|why| {
            agent.metrics.probe_failures.inc();
            Finding::Silence(why)
        })?;
    }
    Ok(())
}

/// The first difference between a plan and what is there.
fn difference(plan: &Plan, netns: &NetNs) -> Result<Option<String>, Finding> {
    let observed = inside(netns, redirect::read_back)?;
    Ok(redirect::diff(plan, &observed).first().map(ToString::to_string))
}

fn repair(agent: &Agent, pod: &Enrolled, netns: &NetNs) -> Result<(), Finding> {
    let plan = &pod.record.plan;
    let Some(what) = difference(plan, netns)? else { return Ok(()) };
    let started = Instant::now();
    inside(netns, || redirect::repair(plan))?;
    if let Some(still) = difference(plan, netns)? {
        return Err(Finding::Drift(format!("{still}; it could not be repaired")));
    }
    agent.metrics.repairs.inc();
    let (namespace, name) = (&pod.record.pod.namespace, &pod.record.pod.name);
    let took = started.elapsed();
    tracing::warn!(
        uid = pod.record.uid,
        namespace,
        name,
        ?took,
        "somebody changed the pod's redirection ({what}): repaired"
    );
    Ok(())
}

fn inside<T>(netns: &NetNs, work: impl FnOnce() -> Result<T, redirect::RedirectError>) -> Result<T, Finding> {
    let entered = netns.run(work).map_err(|e| Finding::Silence(e.to_string()))?;
    entered.map_err(|e| Finding::Drift(format!("{}: {e}", e.code())))
}

/// Connects as an application would, and sees whether the proxy gets it.
async fn ask_proxy(netns: &NetNs, own: IpAddr, uid: &str, routed: bool) -> Result<(), String> {
    let to = probe::destination(own);
    let token = format!("{:016x}", rand::random::<u64>());
    let failed = |what: &str| format!("a probe to {to} {what}");
    let socket = netns.run(|| if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() });
    let socket = socket.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let exchange = async {
        let mut stream = socket.connect(to).await?;
        stream.write_all(format!("{token}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(1024).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(PROBE_DEADLINE, exchange).await {
        Ok(Ok(answer)) if answer == probe::answer(&token, uid) => Ok(()),
        // NAT takes what is about to leave. From a pod without a default route the probe does not get that far, nor would
        // anything else that goes there.
        Ok(Err(e)) if !routed && e.kind() == std::io::ErrorKind::NetworkUnreachable => Ok(()),
        Ok(Ok(_)) => Err(failed("was answered by something that is not the proxy of this pod")),
        Ok(Err(e)) => Err(failed(&format!("failed: {e}"))),
        Err(_) => Err(failed("was not answered")),
    }
}

fn note(agent: &Agent, uid: &str, found: Result<(), Finding>) {
    let mut verifier = agent.verifier.borrow_mut();
    let previous = verifier.found.get(uid);
    let now = Verification::after(previous, found, Instant::now());
    if previous.map(Verification::state) != Some(now.state()) {
        match &now {
            Verification::Verified { .. } => tracing::info!(uid, "verified"),
            Verification::Drifted { what, .. } => tracing::error!(uid, "drifted: {what}"),
            Verification::Unverified { why, .. } => tracing::warn!(uid, "unverified: {why}"),
        }
    }
    verifier.found.insert(uid.to_owned(), now);
    drop(verifier);
    agent.count_pods();
}
