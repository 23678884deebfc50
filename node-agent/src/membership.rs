//! Pods that run already: they join and leave the mesh when what is known about them changes, without losing a connection.

use std::future::ready;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::iter;
use handoff::PodRef;
use mesh::Workload;
use mesh::enrol::Enrolment;
use netns::NetNs;
use redirect::{Plan, RedirectError};
use tokio::time::timeout;
use zds::Request;

use crate::agent::Agent;
use crate::kubernetes::{present_newcomers, release_departed};
use crate::plan::{look_for_istio, plan_for};
use crate::pods::{Enrolled, Record, Skipped, find_again};
use crate::refusal::Refusal;
use crate::{sandbox_check, verifier};

/// How long a proxy may take to serve a pod.
const PROXY_DEADLINE: Duration = Duration::from_secs(5);
/// Pods that join or leave at a time: one whose proxy is silent, or whose namespace is slow, does not hold up the others.
const AT_ONCE: usize = 8;
/// A pod that could not join, or has not left yet, is looked at again this soon.
const AGAIN: Duration = Duration::from_secs(1);
/// A pod that leaves is served for at least this long: until the control plane has heard of it and told the proxies of others.
const LINGERS: Duration = Duration::from_secs(5);

/// Makes every pod a member or not, for as long as the agent lives.
pub(crate) async fn keep(agent: Rc<Agent>) {
    loop {
        let cluster = agent.facts.cluster().cloned();
        let mut pending = false;
        if let Some(cluster) = &cluster {
            pending |= release_departed(&agent, cluster).await;
            present_newcomers(&agent, cluster).await;
        }
        pending |= look_at_all(&agent).await;
        let search = cluster.and_then(|c| c.search.next()).map(tokio::time::Instant::from_std);
        tokio::select! {
            () = agent.membership.notified() => {}
            () = tokio::time::sleep(AGAIN), if pending => {}
            () = tokio::time::sleep_until(search.unwrap_or_else(tokio::time::Instant::now)), if search.is_some() => {}
        }
    }
}

/// Looks at every pod; returns whether one is to be looked at again soon.
async fn look_at_all(agent: &Rc<Agent>) -> bool {
    let (enrolled, outside): (Vec<Enrolled>, Vec<Skipped>) = {
        let pods = agent.pods.borrow();
        (pods.enrolled().filter(|p| p.joined).cloned().collect(), pods.skipped().cloned().collect())
    };
    let joining = iter(outside).map(|pod| async move {
        let decision = agent.decide(&pod.pod);
        match decision.outcome {
            Enrolment::Enrol(workload) => join(agent, &pod, &workload, decision.reason).await,
            Enrolment::Skip => stay_out(agent, &pod, decision.reason).await,
            Enrolment::Unknown => true,
        }
    });
    let joined = joining.buffer_unordered(AT_ONCE).fold(true, |all, done| ready(all & done)).await;
    let following = iter(enrolled).map(|pod| async move {
        let decision = agent.decide(&pod.record.pod);
        match (decision.outcome, pod.record.leaving) {
            (Enrolment::Skip, _) | (Enrolment::Unknown, true) => leave(agent, pod, decision.reason).await,
            (Enrolment::Enrol(workload), leaving) => {
                follow(agent, pod, &workload, leaving.then_some(decision.reason)).await
            }
            (Enrolment::Unknown, false) => true,
        }
    });
    let followed = following.buffer_unordered(AT_ONCE).fold(true, |all, done| ready(all & done)).await;
    !(joined && followed)
}

/// A pod stays outside, and nothing of ours is there. Returns whether that is sure.
async fn stay_out(agent: &Agent, pod: &Skipped, reason: String) -> bool {
    let PodRef { namespace, name, .. } = &pod.pod;
    let placed = if pod.is_clear { None } else { find_again(pod.netns_path.as_deref(), pod.netns_inode) };
    let netns = placed.filter(|netns| !agent.node_namespaces.contains(&netns.id()));
    let cleared = match &netns {
        None => Ok(false),
        Some(netns) => inside(netns, clear).await,
    };
    let (reason, is_clear) = match &cleared {
        Ok(_) => (reason, pod.is_clear || netns.is_some()),
        Err(refusal) => (format!("{reason}; rules of ours may be there still: {}", refusal.explained()), false),
    };
    if matches!(cleared, Ok(true)) {
        tracing::warn!(namespace, name, "was cut off by rules of a join that had not come to its end; they are gone");
    }
    if reason != pod.reason {
        tracing::info!(namespace, name, "stays outside the mesh: {reason}");
    }
    if reason != pod.reason || is_clear != pod.is_clear {
        let known = agent.pods.borrow().skipped().find(|p| p.attachment == pod.attachment).cloned();
        // Not written down: the next agent finds it out by itself.
        if let Some(known) = known {
            agent.pods.borrow_mut().skip(Skipped { reason, is_clear, ..known });
            agent.state_changed();
        }
    }
    cleared.is_ok()
}

/// Takes back what a join has left in the calling thread's namespace; returns whether there was anything.
fn clear() -> Result<bool, RedirectError> {
    // What istio-cni has looks like ours in part.
    let is_ours = redirect::foreign()?.is_empty();
    Ok(is_ours && redirect::remove()?.anything)
}

/// A running pod joins: a proxy serves it before its packets are captured. Returns whether that is done.
async fn join(agent: &Rc<Agent>, pod: &Skipped, workload: &Workload, reason: String) -> bool {
    let PodRef { namespace, name, .. } = &pod.pod;
    match try_to_join(agent, pod, workload, reason).await {
        Ok(()) => {
            tracing::info!(namespace, name, "joined the mesh while running");
            agent.count_enrolment("enrolled");
            true
        }
        Err(refusal) => {
            let why = format!("cannot join yet: {}", refusal.explained());
            let known = agent.pods.borrow().skipped().find(|p| p.attachment == pod.attachment).cloned();
            if let Some(known) = known.filter(|k| k.reason != why) {
                tracing::warn!(namespace, name, "{why}");
                agent.count_enrolment(refusal.outcome());
                // Where pods can be found by their processes, the place where it was once must not keep it from that.
                let is_lost = |path: &PathBuf| {
                    agent.facts.cluster().is_some() && find_again(Some(path), known.netns_inode).is_none()
                };
                let netns_path = known.netns_path.clone().filter(|path| !is_lost(path));
                agent.skip(Skipped { reason: why, netns_path, is_clear: false, ..known });
                if let Some(events) = agent.events() {
                    events.not_enrolled(&pod.pod, &refusal);
                }
            }
            false
        }
    }
}

async fn try_to_join(agent: &Rc<Agent>, pod: &Skipped, workload: &Workload, reason: String) -> Result<(), Refusal> {
    let netns = find_again(pod.netns_path.as_deref(), pod.netns_inode)
        .map(Rc::new)
        .ok_or_else(|| Refusal::NetNs("its namespace is not found any more".to_owned()))?;
    sandbox_check::check(&netns, &agent.node_namespaces, &pod.addresses)?;
    let is_known = |a: &IpAddr| workload.workload_ips.contains(a);
    if agent.facts.know_addresses_beforehand() && !pod.addresses.iter().all(is_known) {
        return Err(Refusal::Address { pod: pod.addresses.clone(), mesh: workload.workload_ips.clone() });
    }
    let of_runtime = agent.facts.annotations_of_runtime(&pod.annotations);
    let mut plan = plan_for(&agent.plans, &pod.addresses, &workload.annotations, of_runtime)?;
    look_for_istio(&mut plan, &netns)?;
    let record = Record {
        attachment: pod.attachment.clone(),
        pod: pod.pod.clone(),
        uid: pod.pod.uid.clone().unwrap_or_else(|| workload.uid.to_string()),
        service_account: workload.service_account.to_string(),
        netns_inode: pod.netns_inode,
        netns_path: pod.netns_path.clone(),
        plan,
        exempted: 0,
        reason,
        annotations: pod.annotations.clone(),
        leaving: false,
    };
    let uid = record.uid.clone();
    let mut enrolled = Enrolled { record, netns: Some(netns.clone()), joined: true, leaving_since: None };
    let undo = |refusal| {
        agent.proxies.ask_all(&Request::Del { uid: uid.clone() }, None);
        refusal
    };
    served(agent, &enrolled, &netns).await.map_err(undo)?;
    let plan = enrolled.record.plan.clone();
    enrolled.record.exempted = inside(&netns, move || redirect::join(&plan)).await.map_err(undo)?.exempted;
    let still_there = agent.pods.borrow().skipped().any(|p| p.attachment == pod.attachment);
    let remembered = if still_there { agent.enrol(enrolled) } else { Err(Refusal::PluginGone) };
    if let Err(refusal) = remembered {
        let _ = inside(&netns, redirect::remove).await; // the refusal is what is told
        return Err(undo(refusal));
    }
    verifier::look_after(agent, &uid);
    Ok(())
}

/// Waits until one proxy serves the pod.
async fn served(agent: &Agent, pod: &Enrolled, netns: &Rc<NetNs>) -> Result<(), Refusal> {
    if agent.proxies.count() == 0 {
        return Err(Refusal::NoProxy);
    }
    let request = pod.request();
    if !request.fits() {
        return Err(Refusal::Names(format!("uid {:?} and the names of the pod are too long", pod.record.uid)));
    }
    let mut answers = agent.proxies.await_answers(&pod.record.uid);
    agent.proxies.ask_all(&request, Some(netns));
    let answered = timeout(PROXY_DEADLINE, answers.recv()).await;
    agent.proxies.stop_waiting(&pod.record.uid);
    match answered {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(why))) => Err(Refusal::ProxyRefused(why)),
        Ok(None) | Err(_) => Err(Refusal::ProxySilent(PROXY_DEADLINE.as_millis())),
    }
}

/// An enrolled pod's plan is what its annotations say now; one that was leaving stays, for a reason.
async fn follow(agent: &Rc<Agent>, mut pod: Enrolled, workload: &Workload, stays: Option<String>) -> bool {
    let Some(netns) = pod.netns.clone() else { return true };
    let record = &mut pod.record;
    let of_runtime = agent.facts.annotations_of_runtime(&record.annotations);
    let plan = match plan_for(&agent.plans, &record.plan.addresses, &workload.annotations, of_runtime) {
        // The capture stays for as long as the sandbox does: connections hang on it.
        Ok(plan) => Plan { capture: record.plan.capture, ..plan },
        Err(e) => {
            tracing::warn!(uid = record.uid, "the plan stays as it was: {e}");
            record.plan.clone()
        }
    };
    if plan == record.plan && stays.is_none() {
        return true;
    }
    let uid = record.uid.clone();
    let (new, leaving) = (plan.clone(), stays.is_some());
    // It would put the old plan back.
    agent.verifier.borrow_mut().forget(&uid);
    let applied = inside(&netns, move || {
        // What was opened while it was leaving was never captured, and goes on.
        if leaving { redirect::join(&new).map(|a| a.exempted) } else { redirect::repair(&new).map(|()| 0) }
    });
    let exempted = match applied.await {
        Ok(exempted) => exempted,
        Err(refusal) => {
            tracing::warn!(uid, "the pod's plan could not be changed: {}", refusal.explained());
            verifier::look_after(agent, &uid);
            return false;
        }
    };
    record.plan = plan;
    record.leaving = false;
    record.reason = stays.unwrap_or_else(|| std::mem::take(&mut record.reason));
    record.exempted += exempted;
    pod.leaving_since = None;
    tracing::info!(uid, "the pod's plan has changed");
    match agent.enrol(pod) {
        Ok(()) => verifier::look_after(agent, &uid),
        Err(refusal) => tracing::warn!(uid, "{}", refusal.explained()),
    }
    true
}

/// A running pod leaves: from now on nothing new is captured. Its proxies serve it for a while, for others still come by
/// tunnels. Returns whether it is out.
async fn leave(agent: &Rc<Agent>, mut pod: Enrolled, reason: String) -> bool {
    let uid = pod.record.uid.clone();
    // It would put the rules back.
    agent.verifier.borrow_mut().forget(&uid);
    let lingers = pod.leaving_since.get_or_insert_with(Instant::now).elapsed() < LINGERS;
    let open = match &pod.netns {
        Some(netns) => {
            let plan = pod.record.plan.clone();
            inside(netns, move || redirect::leave(&plan, lingers)).await
        }
        None => Ok(0),
    };
    match open {
        Ok(0) if !lingers || pod.netns.is_none() => {
            is_out(agent, &pod, reason);
            return true;
        }
        Ok(open) if !pod.record.leaving => {
            tracing::info!(uid, open, "leaves the mesh; connections that are captured go on until they close");
            pod.record.leaving = true;
            pod.record.reason = reason;
            if let Err(refusal) = agent.enrol(pod) {
                tracing::warn!(uid, "{}", refusal.explained());
            }
        }
        Ok(_) => {}
        Err(refusal) => tracing::warn!(uid, "its rules could not be taken back: {}", refusal.explained()),
    }
    false
}

/// The last captured connection has closed.
fn is_out(agent: &Agent, pod: &Enrolled, reason: String) {
    let there = agent.pods.borrow().enrolled().any(|p| p.record.attachment == pod.record.attachment);
    if there {
        tracing::info!(uid = pod.record.uid, "left the mesh: {reason}");
        agent.proxies.ask_all(&Request::Del { uid: pod.record.uid.clone() }, None);
        agent.skip(pod.record.outside(reason));
    }
}

/// Works in a pod's namespace, beside the agent's own thread: a fresh IPv6 address may have to be waited for.
async fn inside<T: Send + 'static>(
    netns: &NetNs,
    work: impl FnOnce() -> Result<T, RedirectError> + Send + 'static,
) -> Result<T, Refusal> {
    let netns = netns.try_clone().map_err(|e| Refusal::NetNs(e.to_string()))?;
    let entered = tokio::task::spawn_blocking(move || netns.run(work)).await;
    let done = entered.map_err(|e| Refusal::NetNs(e.to_string()))?.map_err(|e| Refusal::NetNs(e.to_string()))?;
    done.map_err(Refusal::Redirect)
}
