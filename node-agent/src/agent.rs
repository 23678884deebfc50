//! The agent's loop: takes a message from the inbox, lets `pod_life::step` decide, and hands the
//! effects to performers. It never waits for a single pod.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_status::LateCause;
use handoff::FromAgent;
use netns::NetNs;
use pod_life::{
    Effect, Event, Generation, Input, LateStart, Life, LifeId, Phase, Sandbox, Standing, Verdict,
    step,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::decider::Decider;
use crate::disk::Disk;
use crate::host_probes::HostProbes;
use crate::inbox::{AddRequest, Deletion, Inbox, Message, PluginReply};
use crate::interrupted_add::has_failed;
use crate::kernel::{Kernel, PodWatch, Work};
use crate::plugins::still_attached;
use crate::pods_view::PodsView;
use crate::prober::{self, Probed};
use crate::proxies::Proxies;
use crate::reporter::Reporter;
use crate::retire::HeldPod;
use crate::runtime_calls::RuntimeCalls;
use crate::sandbox_check::open_netns;

/// Interval at which a retiring agent checks whether work in pods is in progress.
const IDLE_POLL: Duration = Duration::from_millis(10);
/// Time limit for that work.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// Longest time until records are written for which no pod waits.
const SAVE_DELAY: Duration = Duration::from_secs(1);

/// What performs the effects.
#[derive(Debug)]
pub(crate) struct Performers {
    pub(crate) kernel: Kernel,
    pub(crate) proxies: Rc<Proxies>,
    pub(crate) disk: Disk,
    pub(crate) reporter: Rc<Reporter>,
    pub(crate) host_probes: Rc<HostProbes>,
    pub(crate) runtime_calls: Rc<RuntimeCalls>,
}

/// The agent of one node.
#[derive(Debug)]
pub(crate) struct Agent {
    pods: PodsView,
    decider: Decider,
    performers: Performers,
    inbox: Inbox,
    started: Instant,
    /// Of ADDs, members and leaving pods.
    namespaces: HashMap<LifeId, Arc<NetNs>>,
    watches: HashMap<LifeId, PodWatch>,
    plugins: HashMap<LifeId, (u64, PluginReply)>,
    verifications: Vec<(LifeId, Generation, oneshot::Sender<()>)>,
    deletions: Vec<(Vec<LifeId>, oneshot::Sender<Deletion>)>,
    /// Writes that pods wait for.
    saving: Vec<(LifeId, Generation)>,
    /// Whether records have changed.
    is_unsaved: bool,
    /// When to write the records, unless another write does.
    save_at: Option<Instant>,
}

impl Agent {
    /// Creates the agent, with the pods of the previous one.
    pub(crate) fn new(
        pods: PodsView,
        decider: Decider,
        performers: Performers,
        inbox: Inbox,
    ) -> Self {
        let mut agent = Self {
            pods,
            decider,
            performers,
            inbox,
            started: Instant::now(),
            namespaces: HashMap::new(),
            watches: HashMap::new(),
            plugins: HashMap::new(),
            verifications: Vec::new(),
            deletions: Vec::new(),
            saving: Vec::new(),
            is_unsaved: false,
            save_at: None,
        };
        agent.take_over();
        agent
    }

    fn take_over(&mut self) {
        let records = self.performers.disk.load();
        let mut restored = Vec::new();
        for record in records.pods {
            let (path, inode) = (&record.sandbox.netns_path, record.sandbox.netns_inode);
            let netns = open_netns(path.as_deref(), inode);
            if netns.is_none() {
                tracing::warn!(
                    uid = record.membership.uid,
                    "pod's network namespace not found; proxies that already serve the pod keep it"
                );
            }
            if record.unanswered {
                self.is_unsaved = true;
                if netns
                    .as_ref()
                    .is_some_and(|n| has_failed(&record, n, self.started))
                {
                    tracing::info!(
                        event = "add_failed",
                        uid = record.membership.uid,
                        "the ADD of this pod failed when the last agent ended"
                    );
                    continue;
                }
            }
            let life = Life::restored(record, netns.is_some(), Instant::now());
            let id = self.pods.write().insert(life);
            self.namespaces
                .extend(netns.map(|netns| (id, Arc::new(netns))));
            restored.push(id);
        }
        for record in records.outside {
            let life = Life::restored_outside(record);
            restored.push(self.pods.write().insert(life));
        }
        for id in restored {
            self.step(id, Input::Begun);
        }
        self.pods_changed();
    }

    /// Handles messages, forever.
    pub(crate) async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        loop {
            let deadline = self.pods.read().deadline();
            let deadline = deadline.into_iter().chain(self.save_at).min();
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Message::Retire(done)) => return self.retire(done).await,
                    Some(message) => {
                        self.handle(message);
                        // Let plugins and proxies have their messages before the node's table
                        // is written.
                        tokio::task::yield_now().await;
                    }
                    None => return,
                },
                () = due => {
                    let now = Instant::now();
                    self.is_unsaved |= self.save_at.is_some_and(|at| at <= now);
                    let is_due = |life: &Life| life.deadline().is_some_and(|at| at <= now);
                    self.step_all(is_due, &Input::Tick);
                }
            }
            self.settle();
        }
    }

    /// Sends the pods that may have rules, and handles no further message. First it waits for work
    /// in pods, which could restore rules; a pod where it is stuck is not waited for.
    async fn retire(self, done: oneshot::Sender<Vec<HeldPod>>) {
        let waited = Instant::now();
        while !self.performers.kernel.is_idle() && waited.elapsed() < IDLE_LIMIT {
            tokio::time::sleep(IDLE_POLL).await;
        }
        let held = |(id, life): (LifeId, &Life)| {
            let netns = self.namespaces.get(&id).cloned();
            let is_member = matches!(life.standing(), Standing::Member(_) | Standing::Leaving(_));
            let may_have_rules = match life.phase {
                Phase::New | Phase::Waiting { .. } | Phase::Outside(_) | Phase::Gone => false,
                _ => is_member || netns.is_some(),
            };
            let (path, inode) = (&life.sandbox.netns_path, life.sandbox.netns_inode);
            may_have_rules.then(|| HeldPod {
                pod: life.sandbox.pod.clone(),
                netns: netns.or_else(|| open_netns(path.as_deref(), inode).map(Arc::new)),
                is_member,
            })
        };
        let pods = self.pods.read().iter().filter_map(held).collect();
        let _ = done.send(pods); // the agent may have waited too long
        // Writing the state would delay the removal of rules while the disk is slow.
        std::future::pending().await
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Add(request) => self.add(*request),
            Message::Plugin(connection, input) => {
                let mut plugins = self.plugins.iter();
                let of = plugins.find(|(_, (number, _))| *number == connection);
                if let Some(id) = of.map(|(id, _)| *id) {
                    self.step(id, input);
                }
            }
            Message::Delete {
                attachment,
                pod,
                done,
            } => {
                let ids = if self.pods.write().detach(&attachment) {
                    self.is_unsaved = true;
                    Vec::new()
                } else {
                    self.pods.read().deleted_by(&attachment, pod.as_ref())
                };
                self.delete(ids, done);
            }
            Message::Collect { valid, done } => {
                let ids = self.pods.read().collected_by(&valid);
                self.delete(ids, done);
            }
            Message::Reconcile => {
                let all = self.pods.read().find(|_| true);
                for id in all {
                    self.decide(id);
                }
            }
            Message::Found(sandbox, late) => self.found(sandbox, late),
            Message::Pod(id, input) => self.step(id, input),
            Message::Done {
                id,
                generation,
                answer,
                netns,
            } => {
                if self.pods.read().get(id).is_some() {
                    self.namespaces.extend(netns.map(|netns| (id, netns)));
                }
                self.step(id, Input::Answered(generation, answer));
            }
            Message::ProxiesChanged => {
                let is_member = |life: &Life| matches!(life.phase, Phase::Member(_));
                self.step_all(is_member, &Input::ProxiesChanged);
            }
            Message::Namespace(id, done) => {
                if let Some(netns) = self.namespaces.get(&id) {
                    let _ = done.send(netns.clone()); // the plugin may have exited
                }
            }
            Message::Retire(_) => {} // handled by the caller
            Message::Ping(done) => {
                let _ = done.send(()); // the client may no longer wait
            }
            Message::Verify(id, done) => {
                let at = self.pods.read().get(id).map(Life::generation);
                if let Some(at) = at {
                    self.verifications.push((id, at, done));
                    self.step(id, Input::VerifyRequested);
                }
            }
        }
    }

    fn delete(&mut self, ids: Vec<LifeId>, done: oneshot::Sender<Deletion>) {
        for id in &ids {
            self.step(*id, Input::Deleted);
        }
        self.deletions.push((ids, done));
    }

    fn add(&mut self, request: AddRequest) {
        let AddRequest {
            sandbox,
            netns,
            deadline,
            connection,
            plugin,
        } = request;
        self.performers.runtime_calls.called();
        if let (Some(cluster), Some(uid)) = (self.decider.source.cluster(), &sandbox.pod.uid) {
            cluster.late_starts.presented(uid);
        }
        let verdict = self.decider.decide(&sandbox);
        let uid = match &verdict {
            Verdict::Enrol(intent) => Some(intent.uid.as_str()),
            _ => sandbox.pod.uid.as_deref(),
        };
        let other = {
            let pods = self.pods.read();
            let (attachment, inode) = (&sandbox.attachment, sandbox.netns_inode);
            let other = pods.attached_otherwise(attachment, inode, Some(&sandbox.pod));
            other.and_then(|id| Some((id, pods.get(id)?.sandbox.attachment.clone())))
        };
        if let Some((id, other)) = other {
            self.pods.write().attach(id, sandbox.attachment);
            self.is_unsaved = true;
            let reason = still_attached(&other);
            plugin.send(FromAgent::Skip { reason });
            return;
        }
        let (conflict, repeated) = {
            let pods = self.pods.read();
            let conflict = pods.conflict(None, &sandbox, uid);
            (conflict, pods.is_repeated(&sandbox))
        };
        let id = self.pods.write().insert(Life::presented(sandbox));
        self.namespaces.insert(id, netns);
        self.plugins.insert(id, (connection, plugin));
        self.step(
            id,
            Input::Presented {
                verdict,
                conflict,
                repeated,
                deadline,
            },
        );
    }

    /// A running pod was found: one whose namespace was lost, or one that no plugin presented.
    fn found(&mut self, sandbox: Sandbox, late: Option<LateStart>) {
        let known = {
            let pods = self.pods.read();
            let mut of_pod = pods
                .iter()
                .filter(|(_, life)| life.uid() == sandbox.pod.uid.as_deref());
            // A member without a namespace is replaced if the pod has another sandbox.
            of_pod.find_map(|(id, life)| Some((id, life.accepts_namespace(sandbox.netns_inode)?)))
        };
        match known {
            Some((_, false)) => {} // an ADD has arrived in the meantime
            Some((id, true)) => {
                let (path, inode) = (sandbox.netns_path, sandbox.netns_inode);
                let netns = open_netns(path.as_deref(), inode);
                if let (Some(netns), Some(path)) = (netns, path) {
                    self.namespaces.insert(id, Arc::new(netns));
                    self.step(id, Input::Located { path, inode });
                }
            }
            None => {
                let reason = match late.map(|late| late.cause) {
                    Some(LateCause::PluginNotCalled) => "the runtime did not call the plugin",
                    _ => "the pod is older than the agent",
                };
                let life = Life::found(sandbox, reason).with_late_start(late);
                let id = self.pods.write().insert(life);
                self.step(id, Input::Begun);
            }
        }
    }

    fn step_all(&mut self, which: impl Fn(&Life) -> bool, input: &Input) {
        let ids = self.pods.read().find(which);
        for id in ids {
            self.step(id, input.clone());
        }
    }

    fn decide(&mut self, id: LifeId) {
        let verdict = {
            let pods = self.pods.read();
            pods.get(id).map(|life| self.decider.decide(&life.sandbox))
        };
        if let Some(verdict) = verdict {
            self.step(id, Input::Decided(verdict));
        }
    }

    /// Lets one life take a step, and performs the effects.
    fn step(&mut self, id: LifeId, input: Input) {
        let now = pod_life::Now {
            at: Instant::now(),
            started: self.started,
            members: self.pods.read().members(),
            proxies: self.performers.proxies.count(),
        };
        let Some(life) = self.pods.write().take(id) else {
            return;
        };
        let uid = life.uid().map(str::to_owned);
        let (life, effects) = step(life, input, &now);
        let (sandbox, is_located) = (life.sandbox.clone(), life.located);
        let is_gone = life.phase == Phase::Gone;
        let uid = life.uid().map(str::to_owned).or(uid);
        self.pods.write().put(id, life);
        let mut decides = false;
        for effect in effects {
            match effect {
                Effect::Decide => decides = true,
                Effect::Supersede { uid, is_offered } => {
                    let replaced = self.pods.read().superseded_by(id, &sandbox, uid.as_deref());
                    for other in replaced {
                        let uid = uid.clone().filter(|_| is_offered);
                        self.step(other, Input::Superseded { uid });
                    }
                }
                effect => self.perform(id, &sandbox, uid.as_deref(), effect),
            }
        }
        if is_gone || !is_located {
            self.namespaces.remove(&id);
        }
        if is_gone {
            self.watches.remove(&id);
            self.plugins.remove(&id);
        }
        if decides {
            self.decide(id);
        }
    }

    fn perform(&mut self, id: LifeId, sandbox: &Sandbox, uid: Option<&str>, effect: Effect) {
        let netns = self.namespaces.get(&id);
        match effect {
            Effect::Kernel(generation, work) => {
                self.performers.kernel.perform(Work {
                    id,
                    generation,
                    work,
                    netns: netns.cloned(),
                    path: sandbox.netns_path.clone(),
                    inode: sandbox.netns_inode,
                    addresses: sandbox.addresses.clone(),
                    watch: self.watches.get(&id).map(PodWatch::handle),
                });
            }
            Effect::Probe {
                generation,
                plan,
                addresses,
                uid,
                all,
            } => {
                let pod = Probed {
                    plan,
                    addresses,
                    uid,
                    all,
                };
                let (netns, inbox) = (netns.cloned(), self.inbox.clone());
                let node = self.performers.host_probes.netns();
                tokio::task::spawn_local(async move {
                    let answer = prober::answer(netns, &node, &pod).await;
                    inbox.answer(id, generation, answer);
                });
            }
            Effect::Offer {
                generation,
                request,
                urgent,
            } => {
                let awaited = urgent.then_some(generation);
                self.performers
                    .proxies
                    .offer(id, request, netns.cloned(), awaited);
            }
            Effect::Withdraw { uid } => self.performers.proxies.withdraw(id, &uid),
            Effect::Persist(waiting) => {
                self.is_unsaved = true;
                self.saving.extend(waiting.map(|g| (id, g)));
            }
            Effect::PersistSoon => {
                self.save_at.get_or_insert(Instant::now() + SAVE_DELAY);
            }
            Effect::Answer(message) => {
                if let Some((_, plugin)) = self.plugins.get(&id) {
                    plugin.send(message);
                }
            }
            Effect::Hangup => {
                self.plugins.remove(&id);
            }
            Effect::Watch => {
                let opened = netns.and_then(|n| PodWatch::open(id, n, uid, self.inbox.clone()));
                self.watches.extend(opened.map(|watch| (id, watch)));
            }
            Effect::Unwatch => {
                self.watches.remove(&id);
            }
            Effect::Emit(event) => {
                if let Event::StartedOutside {
                    cause: LateCause::PluginNotCalled,
                    ..
                } = event
                {
                    self.performers.runtime_calls.missed(&sandbox.pod);
                }
                self.performers.reporter.emit(&sandbox.pod, uid, &event);
            }
            Effect::Decide | Effect::Supersede { .. } => {} // performed by the caller
        }
    }

    /// Does what depends on all pods, after each message.
    fn settle(&mut self) {
        let waiting = {
            let pods = self.pods.read();
            let is_waiting = |life: &Life| matches!(life.phase, Phase::Waiting { .. });
            let mut waiting = pods.find(is_waiting);
            waiting.retain(|id| {
                let life = pods.get(*id);
                life.is_some_and(|l| pods.conflict(Some(*id), &l.sandbox, l.uid()).is_none())
            });
            waiting
        };
        for id in waiting {
            self.step(id, Input::Unblocked);
        }
        self.pods_changed();
        let pods = self.pods.read();
        self.verifications.retain(|(id, at, _)| {
            let Some(Phase::Member(member)) = pods.get(*id).map(|life| &life.phase) else {
                return false;
            };
            member.checks.completed <= *at
        });
        let write = self.performers.disk.last_write();
        for index in (0..self.deletions.len()).rev() {
            if self.deletions[index]
                .0
                .iter()
                .all(|id| pods.get(*id).is_none())
            {
                let (_, done) = self.deletions.swap_remove(index);
                let _ = done.send(write); // the plugin may have exited
            }
        }
    }

    /// Updates what depends on the set of pods or their verification.
    fn pods_changed(&mut self) {
        let pods = self.pods.read();
        if std::mem::take(&mut self.is_unsaved) {
            let (members, outside) = pods.records();
            let waiting = std::mem::take(&mut self.saving);
            self.save_at = None;
            self.performers.disk.write(members, outside, waiting);
        }
        let reporter = &self.performers.reporter;
        self.performers
            .host_probes
            .set_pods(&pods.probed_addresses());
        if reporter.update_gauges(&pods)
            && let Some(cluster) = self.decider.source.cluster()
        {
            cluster.unsettled.notify_one();
            cluster.changed.notify_one();
        }
    }
}
