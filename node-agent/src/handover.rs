//! The conversation with one plugin: a pod joins, stays outside, or is refused; or it goes away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use handoff::{Attachment, FromAgent, FromPlugin, PodRef};
use mesh::Workload;
use mesh::enrol::Enrolment;
use netns::NetNs;
use netns::seqpacket::{AsyncSeqPacket, AsyncSeqPacketListener, Packet};
use redirect::Plan;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::joining::{Subject, Turn};
use crate::plan::{look_for_istio, plan_for};
use crate::pods::{Enrolled, Record, Skipped};
use crate::proxies::Taken;
use crate::refusal::Refusal;
use crate::{sandbox_check, verifier};

/// How long a plugin may take for its first message.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How much earlier than the plugin the agent gives up, so that its reason still arrives.
const MARGIN: Duration = Duration::from_millis(250);

/// A pod that a plugin has presented.
struct Presented {
    attachment: Attachment,
    pod: PodRef,
    addresses: Vec<IpAddr>,
    annotations: BTreeMap<String, String>,
    netns: Rc<NetNs>,
    netns_path: Option<PathBuf>,
    started: Instant,
    deadline: Instant,
}

/// An ADD that was refused, and what it has left; nobody else joins in that namespace before that is undone.
struct Refused {
    why: Refusal,
    left: Option<(Turn, Attachment, Rc<NetNs>)>,
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why, left: None }
    }
}

impl Presented {
    fn outside(&self, reason: String) -> Skipped {
        Skipped {
            attachment: self.attachment.clone(),
            pod: self.pod.clone(),
            reason,
            addresses: self.addresses.clone(),
            annotations: self.annotations.clone(),
            netns_inode: self.netns.id().ino,
            netns_path: self.netns_path.clone(),
            is_clear: true,
        }
    }
}

/// Accepts plugins for as long as the agent lives.
pub(crate) async fn serve(agent: Rc<Agent>, listener: AsyncSeqPacketListener) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                tokio::task::spawn_local(attend(agent.clone(), socket));
            }
            Err(e) => {
                tracing::warn!("cannot accept a plugin: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn attend(agent: Rc<Agent>, socket: AsyncSeqPacket) {
    match socket.peer() {
        Ok(peer) if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() => {}
        Ok(peer) => return tracing::warn!("a process of user {} is no plugin", peer.uid),
        Err(e) => return tracing::warn!("a plugin has gone at once: {e}"),
    }
    match timeout(HELLO_DEADLINE, socket.recv()).await {
        Ok(Ok(Some(packet))) => {
            if let Err(Refused { why, left }) = begin(&agent, &socket, packet).await {
                agent.count_enrolment(why.outcome());
                tracing::warn!("a pod was refused: {}: {why}", why.outcome());
                // Undoing may take longer than the plugin waits for the reason; it cleans up when the socket is closed.
                let _ = send(&socket, &why.message()).await; // a plugin that has gone cannot be told
                if let Some((_turn, attachment, netns)) = left {
                    agent.remove(&attachment);
                    undo(&netns);
                }
            }
        }
        Ok(Ok(None)) => {}
        Ok(Err(e)) => {
            tracing::warn!("a plugin's message could not be received: {e}");
            let _ = send(&socket, &Refusal::Protocol(e.to_string()).message()).await; // a plugin that has gone cannot be told
        }
        Err(_) => tracing::warn!("a plugin connected and said nothing"),
    }
}

async fn begin(agent: &Rc<Agent>, socket: &AsyncSeqPacket, packet: Packet) -> Result<(), Refused> {
    let started = Instant::now();
    let same = |version: u32| {
        let ours = handoff::VERSION;
        let why = || Refusal::Protocol(format!("the plugin speaks version {version}, the agent {ours}"));
        (version == ours).then_some(()).ok_or_else(why)
    };
    match parse(&packet)? {
        FromPlugin::Add { version, attachment, pod, addresses, annotations, netns_path, deadline_ms, .. } => {
            same(version)?;
            let one = |fds: Vec<_>| Refusal::NetNs(format!("{} descriptors came with the pod, not one", fds.len()));
            let [fd] = <[_; 1]>::try_from(packet.fds).map_err(one)?;
            let netns = Rc::new(NetNs::from_fd(fd).map_err(|e| Refusal::NetNs(e.to_string()))?);
            let limit = Duration::from_millis(deadline_ms).saturating_sub(MARGIN);
            let deadline = started + limit.min(Duration::from_secs(600));
            let presented = Presented { attachment, pod, addresses, annotations, netns, netns_path, started, deadline };
            let pod = presented.pod.clone();
            let added = add(agent, socket, presented).await;
            if let (Err(refused), Some(events)) = (&added, agent.events()) {
                events.not_enrolled(&pod, &refused.why);
            }
            added
        }
        FromPlugin::Del { version, attachment, .. } => {
            same(version)?;
            leave(agent, &attachment);
            Ok(send(socket, &FromAgent::Gone).await?)
        }
        FromPlugin::Check { version, attachment, pod } => {
            same(version)?;
            Ok(send(socket, &check(agent, &attachment, &pod).await?).await?)
        }
        FromPlugin::Status { version } => {
            same(version)?;
            if agent.proxies.any_synced() {
                Ok(send(socket, &FromAgent::Ready).await?)
            } else {
                Ok(send(socket, &Refusal::NoProxy.message()).await?)
            }
        }
        FromPlugin::Gc { version, valid } => {
            same(version)?;
            collect_garbage(agent, &valid);
            Ok(send(socket, &FromAgent::Gone).await?)
        }
        FromPlugin::Installed => Err(Refusal::Protocol("Installed without Add".to_owned()).into()),
    }
}

async fn add(agent: &Rc<Agent>, socket: &AsyncSeqPacket, mut presented: Presented) -> Result<(), Refused> {
    let decision = agent.facts.decide_about_new(&agent.node, &presented.pod, presented.deadline).await?;
    if let Some(cluster) = agent.facts.cluster() {
        presented.pod.uid = presented.pod.uid.take().or_else(|| cluster.uid_of(&presented.pod));
    }
    let (namespace, name) = (&presented.pod.namespace, &presented.pod.name);
    let workload = match decision.outcome {
        Enrolment::Skip => {
            tracing::info!(namespace, name, "stays outside the mesh: {}", decision.reason);
            agent.count_enrolment("skipped");
            // The pod waits for the answer, not for the disk.
            let answered = send(socket, &FromAgent::Skip { reason: decision.reason.clone() }).await;
            agent.skip(presented.outside(decision.reason));
            return Ok(answered?);
        }
        Enrolment::Unknown => return Err(Refusal::UnknownPod(decision.reason).into()),
        Enrolment::Enrol(workload) => workload,
    };
    sandbox_check::check(&presented.netns, &agent.node_namespaces, &presented.addresses)?;
    let is_known = |a| workload.workload_ips.contains(a);
    if agent.facts.know_addresses_beforehand() && !presented.addresses.iter().all(is_known) {
        return Err(Refusal::Address { pod: presented.addresses, mesh: workload.workload_ips.clone() }.into());
    }
    let of_runtime = agent.facts.annotations_of_runtime(&presented.annotations);
    let mut plan = plan_for(&agent.plans, &presented.addresses, &workload.annotations, of_runtime)?;
    look_for_istio(&mut plan, &presented.netns)?;
    let uid = presented.pod.uid.clone().unwrap_or_else(|| workload.uid.to_string());
    let subject = Subject { attachment: presented.attachment.clone(), uid, netns: presented.netns.id() };
    let turn = agent.joining.begin(subject).ok_or(Refusal::Busy)?;
    let enrolled = enrol(agent, socket, &presented, &workload, plan, decision.reason).await;
    enrolled.map_err(|why| Refused { why, left: Some((turn, presented.attachment, presented.netns)) })
}

/// Looks at a pod as the verifier does, without repairing anything.
async fn check(agent: &Agent, attachment: &Attachment, pod: &PodRef) -> Result<FromAgent, Refusal> {
    let known = agent.pods.borrow().enrolled().find(|p| p.record.attachment == *attachment).cloned();
    let Some(known) = known else {
        let decision = agent.decide(pod);
        return match decision.outcome {
            Enrolment::Skip => Ok(FromAgent::Skip { reason: decision.reason }),
            Enrolment::Enrol(_) | Enrolment::Unknown => {
                Err(Refusal::NotEnrolled(format!("{}, and it has not joined", decision.reason)))
            }
        };
    };
    match verifier::examine(agent, &known).await {
        Ok(()) => Ok(FromAgent::Ready),
        Err(finding) => Err(Refusal::NotEnrolled(finding.to_string())),
    }
}

/// Forgets every attachment that the runtime does not name, and takes its rules back where its namespace is still there.
fn collect_garbage(agent: &Agent, valid: &[Attachment]) {
    let stale: Vec<Enrolled> =
        agent.pods.borrow().enrolled().filter(|p| p.joined && !valid.contains(&p.record.attachment)).cloned().collect();
    for pod in stale {
        tracing::info!(uid = pod.record.uid, "the runtime does not know this pod any more");
        leave(agent, &pod.record.attachment);
    }
    agent.pods.borrow_mut().forget_skipped(valid);
}

/// Forgets an attachment, and takes its rules back where its namespace is still there.
fn leave(agent: &Agent, attachment: &Attachment) {
    if let Some(netns) = agent.remove(attachment) {
        undo(&netns);
    }
}

/// From the plan to Ready; the caller undoes everything when this fails.
async fn enrol(
    agent: &Rc<Agent>,
    socket: &AsyncSeqPacket,
    presented: &Presented,
    workload: &Workload,
    plan: Plan,
    reason: String,
) -> Result<(), Refusal> {
    send(socket, &FromAgent::Enrol { plan: Box::new(plan.clone()) }).await?;
    installed(socket, presented.deadline).await?;
    let observed = presented.netns.run(redirect::read_back).map_err(|e| Refusal::NetNs(e.to_string()))??;
    if let Some(difference) = redirect::diff(&plan, &observed).first() {
        return Err(Refusal::NotAsPlanned(difference.to_string()));
    }
    let record = Record {
        attachment: presented.attachment.clone(),
        pod: presented.pod.clone(),
        uid: presented.pod.uid.clone().unwrap_or_else(|| workload.uid.to_string()),
        service_account: workload.service_account.to_string(),
        netns_inode: presented.netns.id().ino,
        netns_path: presented.netns_path.clone(),
        plan,
        exempted: observed.exempted(),
        reason,
        annotations: presented.annotations.clone(),
        leaving: false,
    };
    let uid = record.uid.clone();
    let pod = Enrolled { record, netns: Some(presented.netns.clone()), joined: false, leaving_since: None };
    let request = pod.request();
    if !request.fits() {
        return Err(Refusal::Names(format!("uid {uid:?} and the names of the pod are too long")));
    }
    let mut answers = agent.proxies.await_answers(&uid);
    let served = async {
        agent.joins(pod.clone());
        agent.proxies.ask_all(&request, Some(&presented.netns));
        served(agent, socket, &mut answers, presented).await
    };
    let served = served.await;
    agent.proxies.stop_waiting(&uid);
    served?;
    agent.enrol(Enrolled { joined: true, ..pod })?;
    send(socket, &FromAgent::Ready).await?;
    verifier::look_after(agent, &uid);
    let took = presented.started.elapsed();
    agent.metrics.enrolment_seconds.observe(took.as_secs_f64());
    agent.count_enrolment("enrolled");
    tracing::info!(uid, namespace = presented.pod.namespace, name = presented.pod.name, ?took, "joined the mesh");
    Ok(())
}

async fn installed(socket: &AsyncSeqPacket, deadline: Instant) -> Result<(), Refusal> {
    let packet = tokio::time::timeout_at(deadline.into(), socket.recv()).await.map_err(|_| Refusal::PluginGone)?;
    match packet {
        Ok(Some(packet)) => match parse(&packet)? {
            FromPlugin::Installed => Ok(()),
            other => Err(Refusal::Protocol(format!("{other:?} is not expected here"))),
        },
        Ok(None) | Err(_) => Err(Refusal::PluginGone),
    }
}

/// Waits until one proxy serves the pod, all that are connected have refused it, time is up, or the plugin has gone.
async fn served(
    agent: &Agent,
    socket: &AsyncSeqPacket,
    answers: &mut UnboundedReceiver<Taken>,
    presented: &Presented,
) -> Result<(), Refusal> {
    let mut refused = 0;
    loop {
        tokio::select! {
            Some(answer) = answers.recv() => match answer {
                Ok(()) => return Ok(()),
                Err(why) => {
                    refused += 1;
                    if refused >= agent.proxies.count() {
                        return Err(Refusal::ProxyRefused(why));
                    }
                }
            },
            _ = socket.recv() => return Err(Refusal::PluginGone),
            () = tokio::time::sleep_until(presented.deadline.into()) => {
                let waited = presented.started.elapsed().as_millis();
                let absent = agent.proxies.count() == 0;
                return Err(if absent { Refusal::ProxyAbsent(waited) } else { Refusal::ProxySilent(waited) });
            }
        }
    }
}

/// The plugin removes what it installed; a plugin that was killed cannot.
fn undo(netns: &NetNs) {
    match netns.run(redirect::remove) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!("rules of a failed ADD could not be removed: {}: {e}", e.code()),
        Err(e) => tracing::warn!("rules of a failed ADD could not be removed: {e}"),
    }
}

fn parse(packet: &Packet) -> Result<FromPlugin, Refusal> {
    serde_json::from_slice(&packet.data).map_err(|e| Refusal::Protocol(e.to_string()))
}

async fn send(socket: &AsyncSeqPacket, message: &FromAgent) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec(message).map_err(|e| Refusal::Protocol(e.to_string()))?;
    socket.send(&bytes, None).await.map_err(|_| Refusal::PluginGone)
}
