//! The proxies of this node: each is told of every pod, in order, and answers each time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use agent_status::ProxyStatus;
use anyhow::Context;
use netns::NetNs;
use netns::seqpacket::{AsyncSeqPacket, AsyncSeqPacketListener};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zds::Request;
use zds::agent::{Session, Urgency};

use crate::agent::Agent;

/// Requests that may be unanswered at a time: ztunnel takes the next one only after it has answered.
const WINDOW: usize = 1;

/// A proxy that has gone is followed by the next one within this time, as a rule: sooner, nobody need know.
const UNTIL_THE_NEXT: Duration = Duration::from_secs(5);

/// How one proxy took a pod.
pub(crate) type Taken = Result<(), String>;

/// The connected proxies, and who waits for their answers.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    connected: RefCell<BTreeMap<u64, Proxy>>,
    next_id: RefCell<u64>,
    waiting: RefCell<HashMap<String, UnboundedSender<Taken>>>,
    /// Told whenever a proxy has taken the whole snapshot, and when none has been there for a while.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Proxy {
    pid: i32,
    synced: bool,
    ask: UnboundedSender<(Request, Option<Rc<NetNs>>)>,
}

impl Proxies {
    /// Asks every connected proxy.
    pub(crate) fn ask_all(&self, request: &Request, netns: Option<&Rc<NetNs>>) {
        for proxy in self.connected.borrow().values() {
            let _ = proxy.ask.send((request.clone(), netns.cloned())); // its connection has just ended
        }
    }

    /// Answers of proxies about a pod arrive here from now on, also of proxies that connect later.
    pub(crate) fn await_answers(&self, uid: &str) -> UnboundedReceiver<Taken> {
        let (sender, receiver) = unbounded_channel();
        self.waiting.borrow_mut().insert(uid.to_owned(), sender);
        receiver
    }

    /// Nobody waits for this pod any more.
    pub(crate) fn stop_waiting(&self, uid: &str) {
        self.waiting.borrow_mut().remove(uid);
    }

    /// How many proxies are connected.
    pub(crate) fn count(&self) -> usize {
        self.connected.borrow().len()
    }

    /// Whether a proxy has taken the whole snapshot.
    pub(crate) fn any_synced(&self) -> bool {
        self.connected.borrow().values().any(|p| p.synced)
    }

    pub(crate) fn status(&self) -> Vec<ProxyStatus> {
        self.connected.borrow().values().map(|p| ProxyStatus { pid: p.pid, synced: p.synced }).collect()
    }
}

/// Accepts proxies for as long as the agent lives.
pub(crate) async fn serve(agent: Rc<Agent>, listener: AsyncSeqPacketListener) {
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(e) => {
                tracing::warn!("cannot accept a proxy: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::task::spawn_local(attend(agent.clone(), socket));
    }
}

/// One proxy, from its connection to its end.
async fn attend(agent: Rc<Agent>, socket: AsyncSeqPacket) {
    let pid = match socket.peer() {
        Ok(peer) if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() => peer.pid,
        Ok(peer) => return tracing::warn!("a process of user {} is no proxy of ours", peer.uid),
        Err(e) => return tracing::warn!("a proxy has gone at once: {e}"),
    };
    let (ask, asked) = unbounded_channel();
    let id = {
        let mut next = agent.proxies.next_id.borrow_mut();
        *next += 1;
        *next
    };
    agent.proxies.connected.borrow_mut().insert(id, Proxy { pid, synced: false, ask });
    agent.metrics.proxies.inc();
    tracing::info!(pid, "a proxy has connected");
    let end = converse(&agent, &socket, id, asked).await;
    agent.proxies.connected.borrow_mut().remove(&id);
    agent.metrics.proxies.dec();
    let then = agent.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(UNTIL_THE_NEXT).await;
        if !then.proxies.any_synced() {
            then.proxies.changed.notify_waiters();
        }
    });
    match end {
        Ok(()) => tracing::info!(pid, "the proxy has gone"),
        Err(e) => tracing::warn!(pid, "the connection to the proxy is given up: {e:#}"),
    }
}

async fn converse(
    agent: &Agent,
    socket: &AsyncSeqPacket,
    id: u64,
    mut asked: UnboundedReceiver<(Request, Option<Rc<NetNs>>)>,
) -> anyhow::Result<()> {
    let mut session = Session::new(WINDOW, Instant::now());
    let mut namespaces: HashMap<String, Rc<NetNs>> = HashMap::new();
    let waited_for = |uid: Option<&str>| {
        let waiting = agent.proxies.waiting.borrow();
        if uid.is_some_and(|u| waiting.contains_key(u)) { Urgency::SomebodyWaits } else { Urgency::InTurn }
    };
    for pod in agent.pods.borrow().enrolled() {
        namespaces.extend(pod.netns.clone().map(|n| (pod.record.uid.clone(), n)));
        session.ask(pod.request(), waited_for(Some(&pod.record.uid)));
    }
    session.ask(Request::SnapshotSent, Urgency::InTurn);
    loop {
        while let Some(packet) = session.poll_transmit(Instant::now()) {
            let (bytes, request) = match packet {
                Ok(packet) => packet,
                Err(e) => {
                    tracing::error!("a pod cannot be named to the proxy: {e}");
                    continue;
                }
            };
            let netns = match &request {
                Request::Add { uid, .. } => Some(namespaces.get(uid).context("a pod without a namespace")?.clone()),
                _ => None,
            };
            socket.send(&bytes, netns.as_ref().map(|n| n.as_fd())).await?;
        }
        let deadline = session.deadline().map(tokio::time::Instant::from_std);
        let timeout = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            packet = socket.recv() => {
                let Some(packet) = packet? else { return Ok(()) };
                if let Some(answer) = session.handle(&packet.data)? {
                    took(agent, id, &session, answer, &mut namespaces);
                }
            }
            Some((request, netns)) = asked.recv() => {
                let uid = request.uid().map(str::to_owned);
                namespaces.extend(uid.clone().zip(netns));
                session.ask(request, waited_for(uid.as_deref()));
            }
            () = timeout => session.handle_timeout(Instant::now())?,
        }
    }
}

fn took(
    agent: &Agent,
    id: u64,
    session: &Session,
    answer: zds::agent::Answer,
    namespaces: &mut HashMap<String, Rc<NetNs>>,
) {
    if let Some(proxy) = agent.proxies.connected.borrow_mut().get_mut(&id) {
        proxy.synced = session.synced();
    }
    let Some(uid) = answer.request.uid() else {
        return agent.proxies.changed.notify_waiters(); // the end of the snapshot
    };
    if let Err(why) = &answer.outcome {
        tracing::warn!(uid, "the proxy refused a pod: {why}");
    }
    match &answer.request {
        Request::Add { .. } => {
            let waiting = agent.proxies.waiting.borrow();
            if let Some(waiting) = waiting.get(uid) {
                let _ = waiting.send(answer.outcome.clone()); // who waited has just given up
            }
        }
        _ => {
            namespaces.remove(uid);
        }
    }
}
