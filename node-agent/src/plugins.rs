//! Serves CNI plugins: one connection per ADD, DEL, CHECK, STATUS or GC.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use error_code::agent as codes;
use handoff::{Attachment, FromAgent, FromPlugin, PodRef};
use mesh::Decision;
use mesh::enrol::Enrolment;
use netns::NetNs;
use netns::seqpacket::{AsyncSeqPacket, AsyncSeqPacketListener, Packet};
use pod_life::{Event, Finding, Input, LifeId, Refusal, Sandbox, Standing, Via};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::decider::Decider;
use crate::inbox::{AddRequest, Deletion, Inbox, Message, PluginReply};
use crate::pods_view::PodsView;
use crate::prober::Probed;
use crate::proxies::Proxies;
use crate::refusal::WorkError;
use crate::reporter::Reporter;
use crate::sandbox_check::SandboxError;
use crate::{kernel, prober};

/// Time limit for a plugin's first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The agent's deadline precedes the plugin's by an eighth of it, within these limits, so that its
/// error still arrives on a busy node.
const ANSWER_MARGIN: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(2);
/// Limit of an ADD's deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(600);
/// Time limit for a pod to be removed, within the plugin's own for the answer to DEL.
const DELETION_TIMEOUT: Duration = Duration::from_millis(800);

/// What the connections of plugins need.
#[derive(Debug)]
pub(crate) struct Plugins {
    pub(crate) decider: Decider,
    pub(crate) pods: PodsView,
    pub(crate) proxies: Rc<Proxies>,
    pub(crate) reporter: Rc<Reporter>,
    pub(crate) inbox: Inbox,
    /// The number of the last write of the state that has completed.
    pub(crate) written: watch::Receiver<u64>,
    pub(crate) connections: Cell<u64>,
    /// The node's network namespace.
    pub(crate) node: Arc<NetNs>,
}

/// Accepts connections of plugins, forever.
pub(crate) async fn serve(plugins: Plugins, listener: AsyncSeqPacketListener) {
    let plugins = Rc::new(plugins);
    loop {
        match listener.accept().await {
            Ok(socket) => {
                tokio::task::spawn_local(serve_plugin(plugins.clone(), socket));
            }
            Err(e) => {
                tracing::warn!("cannot accept a plugin connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_plugin(plugins: Rc<Plugins>, socket: AsyncSeqPacket) {
    let socket = Arc::new(socket);
    match socket.peer() {
        Ok(peer) if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() => {}
        Ok(peer) => {
            let (event, uid) = ("plugin_rejected", peer.uid);
            return tracing::warn!(
                event,
                uid,
                "rejected plugin connection from uid {uid}: only root may connect"
            );
        }
        Err(e) => return tracing::warn!("plugin disconnected immediately: {e}"),
    }
    let refusal = match timeout(FIRST_MESSAGE_TIMEOUT, socket.recv()).await {
        Ok(Ok(Some(packet))) => match plugins.handle(&socket, packet).await {
            Ok(()) => return,
            Err(refusal) => {
                plugins.reporter.request_failed(&refusal);
                refusal
            }
        },
        Ok(Ok(None)) => return,
        Ok(Err(e)) => {
            tracing::warn!("cannot receive a plugin's message: {e}");
            Refusal::new(&codes::PROTOCOL, e)
        }
        Err(_) => {
            return tracing::warn!(
                "closed plugin connection: no message within {} s",
                FIRST_MESSAGE_TIMEOUT.as_secs()
            );
        }
    };
    let _ = send(&socket, &refusal.message()).await; // the plugin may have exited
}

impl Plugins {
    async fn handle(&self, socket: &Arc<AsyncSeqPacket>, packet: Packet) -> Result<(), Refusal> {
        let started = Instant::now();
        let message = parse(&packet)?;
        check_version(&message)?;
        let answer = match message {
            FromPlugin::Add {
                attachment,
                pod,
                addresses,
                annotations,
                netns_path,
                deadline_ms,
                ..
            } => {
                let limit = Duration::from_millis(deadline_ms);
                let margin = (limit / 8).clamp(*ANSWER_MARGIN.start(), *ANSWER_MARGIN.end());
                let limit = limit.saturating_sub(margin);
                let deadline = started + limit.min(MAX_DEADLINE);
                let mut sandbox = Sandbox {
                    attachment,
                    further: Vec::new(),
                    synthesised: false,
                    pod,
                    addresses,
                    annotations,
                    netns_inode: 0, // known once the descriptor is checked
                    netns_path,
                };
                match self.complete(packet.fds, &mut sandbox, deadline).await {
                    Ok(netns) => self.relay(socket, sandbox, netns, deadline).await,
                    Err(refusal) => {
                        let _ = send(socket, &refusal.message()).await; // it may have exited
                        let via = Via::Add;
                        self.reporter
                            .emit(&sandbox.pod, None, &Event::Refused { via, refusal });
                    }
                }
                return Ok(());
            }
            FromPlugin::Del {
                attachment, pod, ..
            } => {
                let message = |attachment, pod| {
                    move |done| Message::Delete {
                        attachment,
                        pod,
                        done,
                    }
                };
                let inode = inode_of(packet.fds);
                let (of, named) = (attachment.clone(), pod.clone());
                self.delete(message(attachment, pod)).await;
                match self.attached_otherwise(&of, inode, named.as_ref()) {
                    Some((_, other)) => FromAgent::Skip {
                        reason: still_attached(&other),
                    },
                    None => FromAgent::Gone,
                }
            }
            FromPlugin::Check {
                attachment, pod, ..
            } => self.check(&attachment, &pod, inode_of(packet.fds)).await?,
            FromPlugin::Status { .. } if self.proxies.any_synced() => FromAgent::Ready,
            FromPlugin::Status { .. } => {
                Refusal::new(&codes::NO_PROXY, "no proxy is connected").message()
            }
            FromPlugin::Gc { valid, .. } => {
                self.delete(|done| Message::Collect { valid, done }).await;
                FromAgent::Gone
            }
            FromPlugin::Installed => {
                let why = "received Installed without Add";
                return Err(Refusal::new(&codes::PROTOCOL, why));
            }
        };
        send(socket, &answer).await
    }

    /// Completes what the runtime sent about a pod: its namespace, and what the API server knows.
    async fn complete(
        &self,
        fds: Vec<OwnedFd>,
        sandbox: &mut Sandbox,
        deadline: Instant,
    ) -> Result<NetNs, Refusal> {
        let not_one = |fds: Vec<_>| WorkError::from(SandboxError::Descriptors(fds.len()));
        let [fd] = <[_; 1]>::try_from(fds).map_err(not_one)?;
        let netns = NetNs::from_fd(fd).map_err(WorkError::from)?;
        sandbox.netns_inode = netns.id().ino;
        let (source, pod) = (&self.decider.source, &mut sandbox.pod);
        source.fetch_missing(pod, deadline).await?;
        if let Some(cluster) = source.cluster() {
            pod.uid = pod.uid.take().or_else(|| cluster.uid_of(pod));
        }
        Ok(netns)
    }

    /// Relays messages between the plugin and its pod's life, until the latter hangs up.
    async fn relay(
        &self,
        socket: &Arc<AsyncSeqPacket>,
        sandbox: Sandbox,
        netns: NetNs,
        deadline: Instant,
    ) {
        let connection = self.connections.get();
        self.connections.set(connection + 1);
        let (queue, mut messages) = unbounded_channel();
        let plugin = PluginReply {
            socket: socket.clone(),
            queue,
        };
        self.inbox.send(Message::Add(Box::new(AddRequest {
            sandbox,
            netns: Arc::new(netns),
            deadline,
            connection,
            plugin,
        })));
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Some(message) => {
                        let _ = send(socket, &message).await; // `recv` reports that it exited
                    }
                    None => return,
                },
                packet = socket.recv(), if is_open => {
                    let expected = "expected Installed, received";
                    let input = match packet {
                        Ok(Some(packet)) => match parse(&packet) {
                            Ok(FromPlugin::Installed) => Input::Installed,
                            Ok(other) => Input::PluginFailed(Refusal::new(
                                &codes::PROTOCOL,
                                format!("{expected} {other:?}"),
                            )),
                            Err(refusal) => Input::PluginFailed(refusal),
                        },
                        Ok(None) | Err(_) => Input::PluginFailed(Refusal::plugin_disconnected()),
                    };
                    is_open = input == Input::Installed;
                    self.inbox.send(Message::Plugin(connection, input));
                }
            }
        }
    }

    /// Waits until pods are removed, also from the state on disk, but not for long: the plugin
    /// removes the rules as well.
    async fn delete(&self, message: impl FnOnce(oneshot::Sender<Deletion>) -> Message) {
        let (done, deleted) = oneshot::channel();
        self.inbox.send(message(done));
        let mut written = self.written.clone();
        let removed = async {
            let Ok(write) = deleted.await else { return };
            let _ = written.wait_for(|completed| *completed >= write).await; // the agent exits
        };
        let _ = timeout(DELETION_TIMEOUT, removed).await; // it continues in the background
    }

    /// The member in a namespace that has another attachment.
    fn attached_otherwise(
        &self,
        attachment: &Attachment,
        inode: Option<u64>,
        pod: Option<&PodRef>,
    ) -> Option<(LifeId, Attachment)> {
        let pods = self.pods.read();
        let id = pods.attached_otherwise(attachment, inode?, pod)?;
        Some((id, pods.get(id)?.sandbox.attachment.clone()))
    }

    /// Verifies a pod like the agent itself does, but repairs nothing.
    async fn check(
        &self,
        attachment: &Attachment,
        pod: &PodRef,
        inode: Option<u64>,
    ) -> Result<FromAgent, Refusal> {
        let other = self.attached_otherwise(attachment, inode, Some(pod));
        let member = self.pods.read().iter().find_map(|(id, life)| {
            let is_other = other.as_ref().is_some_and(|(other, _)| *other == id);
            let is_presented = is_other || life.sandbox.attachment == *attachment;
            let Standing::Member(membership) = life.standing() else {
                return None;
            };
            is_presented.then(|| (id, membership.clone()))
        });
        let not_enrolled = |why: String| Refusal::new(&codes::NOT_VERIFIED, why);
        let Some((id, membership)) = member else {
            let Decision {
                outcome, reason, ..
            } = self.decider.source.decide(&self.decider.node, pod, &[]);
            return match outcome {
                Enrolment::Skip => Ok(FromAgent::Skip { reason }),
                Enrolment::Enrol(_) | Enrolment::Unknown => Err(not_enrolled(format!(
                    "{reason}, but the pod is not enrolled"
                ))),
            };
        };
        let (done, netns) = oneshot::channel();
        self.inbox.send(Message::Namespace(id, done));
        let lost = |_| not_enrolled(Finding::netns_lost().to_string());
        let netns = netns.await.map_err(lost)?;
        let (of_check, of_pod) = (membership.clone(), netns.clone());
        let check = move || {
            let exceptions = of_check.known_exceptions();
            kernel::check((&of_check.plan, exceptions.as_ref()), &of_pod)
        };
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = match checked {
            Ok(Ok(addresses)) => {
                let pod = Probed {
                    plan: membership.plan,
                    addresses,
                    uid: membership.uid,
                    all: true,
                };
                let probed = prober::probe(netns, &self.node, &pod).await;
                probed.map_err(|e| not_enrolled(e.to_string()))
            }
            Ok(Err(finding)) => Err(not_enrolled(finding.to_string())),
            Err(e) => Err(not_enrolled(e.to_string())),
        };
        checked.map(|_| FromAgent::Ready)
    }
}

/// Why an attachment changes nothing, or its end.
pub(crate) fn still_attached(by: &Attachment) -> String {
    let Attachment {
        container_id,
        ifname,
    } = by;
    format!("the pod is in the mesh by interface {ifname} of container {container_id}")
}

/// The inode of the network namespace that a plugin has sent; `None` if it sent none.
fn inode_of(fds: Vec<OwnedFd>) -> Option<u64> {
    let netns = NetNs::from_fd(fds.into_iter().next()?).ok()?;
    Some(netns.id().ino)
}

fn check_version(message: &FromPlugin) -> Result<(), Refusal> {
    let (FromPlugin::Add { version, .. }
    | FromPlugin::Del { version, .. }
    | FromPlugin::Check { version, .. }
    | FromPlugin::Status { version }
    | FromPlugin::Gc { version, .. }) = message
    else {
        return Ok(());
    };
    let expected = handoff::VERSION;
    if *version == expected {
        return Ok(());
    }
    let why = format!("protocol version mismatch: plugin {version}, agent {expected}");
    Err(Refusal::new(&codes::PROTOCOL, why))
}

fn parse(packet: &Packet) -> Result<FromPlugin, Refusal> {
    serde_json::from_slice(&packet.data).map_err(|e| Refusal::new(&codes::PROTOCOL, e))
}

async fn send(socket: &AsyncSeqPacket, message: &FromAgent) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec(message).map_err(|e| Refusal::new(&codes::PROTOCOL, e))?;
    let sent = socket.send(&bytes, None).await;
    sent.map_err(|_| Refusal::plugin_disconnected())
}
