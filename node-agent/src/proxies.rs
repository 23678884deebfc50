//! The proxies of this node. Each receives every pod, in order, and answers each request.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_status::ProxyStatus;
use anyhow::Context;
use netns::NetNs;
use netns::seqpacket::{AsyncSeqPacket, AsyncSeqPacketListener};
use pod_life::{Answer, Generation, LifeId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zds::Request;
use zds::agent::{Session, Urgency};

use crate::inbox::{Inbox, Message};
use crate::metrics::Metrics;

/// Limit of unanswered requests: ztunnel reads the next request only after it has answered.
const WINDOW: usize = 1;

/// After a proxy disconnects, time for its successor to connect before pods are verified again.
const RECONNECT_GRACE: Duration = Duration::from_secs(5);

/// The connected proxies, and the pods that each of them receives.
#[derive(Debug)]
pub(crate) struct Proxies {
    inbox: Inbox,
    metrics: Rc<Metrics>,
    connected: RefCell<BTreeMap<u64, Proxy>>,
    last_id: Cell<u64>,
    /// The pods, by uid.
    offers: RefCell<BTreeMap<String, Offer>>,
}

/// A pod that proxies are to serve.
#[derive(Debug, Clone)]
struct Offer {
    life: LifeId,
    request: Request,
    netns: Option<Arc<NetNs>>,
    /// Of the answers; `None` if the pod does not wait for any.
    awaited: Option<Generation>,
}

#[derive(Debug)]
struct Proxy {
    pid: i32,
    synced: bool,
    requests: UnboundedSender<(Request, Option<Offer>)>,
}

impl Proxies {
    /// No proxy is connected yet.
    pub(crate) fn new(inbox: Inbox, metrics: Rc<Metrics>) -> Self {
        Self {
            inbox,
            metrics,
            connected: RefCell::default(),
            last_id: Cell::default(),
            offers: RefCell::default(),
        }
    }

    /// Announces a pod to all proxies, also those that connect later. Replaces an earlier
    /// announcement of the same uid.
    pub(crate) fn offer(
        &self,
        life: LifeId,
        request: Request,
        netns: Option<Arc<NetNs>>,
        awaited: Option<Generation>,
    ) {
        let uid = request.uid().unwrap_or_default().to_owned();
        let offer = Offer {
            life,
            request: request.clone(),
            netns,
            awaited,
        };
        self.offers.borrow_mut().insert(uid, offer.clone());
        self.send_to_all(&request, Some(&offer));
    }

    /// Removes a pod from all proxies, unless another life has announced the uid since.
    pub(crate) fn withdraw(&self, life: LifeId, uid: &str) {
        let mut offers = self.offers.borrow_mut();
        if offers.get(uid).is_some_and(|offer| offer.life == life) {
            offers.remove(uid);
            let uid = uid.to_owned();
            self.send_to_all(&Request::Del { uid }, None);
        }
    }

    fn send_to_all(&self, request: &Request, offer: Option<&Offer>) {
        for proxy in self.connected.borrow().values() {
            // It may just have left.
            let _ = proxy.requests.send((request.clone(), offer.cloned()));
        }
    }

    /// The number of connected proxies.
    pub(crate) fn count(&self) -> usize {
        self.connected.borrow().len()
    }

    /// Whether a proxy has accepted the whole snapshot.
    pub(crate) fn any_synced(&self) -> bool {
        self.connected.borrow().values().any(|p| p.synced)
    }

    pub(crate) fn status(&self) -> Vec<ProxyStatus> {
        self.connected
            .borrow()
            .values()
            .map(|p| ProxyStatus {
                pid: p.pid,
                synced: p.synced,
            })
            .collect()
    }
}

/// Accepts connections of proxies, forever.
pub(crate) async fn serve(proxies: Rc<Proxies>, listener: AsyncSeqPacketListener) {
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(e) => {
                tracing::warn!("cannot accept a proxy connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::task::spawn_local(serve_proxy(proxies.clone(), socket));
    }
}

/// Serves one proxy until it disconnects.
async fn serve_proxy(proxies: Rc<Proxies>, socket: AsyncSeqPacket) {
    let pid = match socket.peer() {
        Ok(peer) if peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw() => peer.pid,
        Ok(peer) => {
            let (event, uid) = ("proxy_rejected", peer.uid);
            return tracing::warn!(
                event,
                uid,
                "rejected proxy connection from uid {uid}: only root may connect"
            );
        }
        Err(e) => return tracing::warn!("proxy disconnected immediately: {e}"),
    };
    let (requests, receiver) = unbounded_channel();
    let id = proxies.last_id.get() + 1;
    proxies.last_id.set(id);
    let proxy = Proxy {
        pid,
        synced: false,
        requests,
    };
    proxies.connected.borrow_mut().insert(id, proxy);
    proxies.metrics.proxies.inc();
    tracing::info!(pid, "proxy connected");
    let ended = run_session(&proxies, &socket, id, receiver).await;
    proxies.connected.borrow_mut().remove(&id);
    proxies.metrics.proxies.dec();
    match ended {
        Ok(()) => tracing::info!(pid, "proxy disconnected"),
        Err(e) => {
            let code = error_code::agent::PROXY_CONNECTION;
            tracing::warn!(pid, "{code}: closed the connection to the proxy: {e:#}");
        }
    }
    drop(socket);
    tokio::time::sleep(RECONNECT_GRACE).await;
    if !proxies.any_synced() {
        proxies.inbox.send(Message::ProxiesChanged);
    }
}

async fn run_session(
    proxies: &Proxies,
    socket: &AsyncSeqPacket,
    id: u64,
    mut requests: UnboundedReceiver<(Request, Option<Offer>)>,
) -> anyhow::Result<()> {
    let mut session = Session::new(WINDOW, Instant::now());
    // Those of queued and of sent requests, by uid.
    let (mut queued, mut sent) = (proxies.offers.borrow().clone(), HashMap::new());
    for offer in queued.values() {
        session.enqueue(offer.request.clone(), offer.urgency());
    }
    session.enqueue(Request::SnapshotSent, Urgency::Normal);
    loop {
        while let Some(packet) = session.poll_transmit(Instant::now()) {
            let (bytes, request) = match packet {
                Ok(packet) => packet,
                Err(e) => {
                    tracing::error!("cannot encode a request to the proxy: {e}");
                    continue;
                }
            };
            let offer = request.uid().and_then(|uid| queued.remove(uid));
            let netns = match (&request, &offer) {
                (Request::Add { .. }, Some(offer)) => offer.netns.clone(),
                _ => None,
            };
            if matches!(request, Request::Add { .. }) {
                netns.as_ref().context("pod without a network namespace")?;
            }
            sent.extend(request.uid().map(str::to_owned).zip(offer));
            socket
                .send(&bytes, netns.as_ref().map(|n| n.as_fd()))
                .await?;
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
                    proxies.handle_answer(id, &session, answer, &mut sent);
                }
            }
            Some((request, offer)) = requests.recv() => {
                let urgency = offer.as_ref().map_or(Urgency::Normal, Offer::urgency);
                queued.extend(request.uid().map(str::to_owned).zip(offer));
                session.enqueue(request, urgency);
            }
            () = timeout => session.handle_timeout(Instant::now())?,
        }
    }
}

impl Offer {
    fn urgency(&self) -> Urgency {
        if self.awaited.is_some() {
            Urgency::Expedited
        } else {
            Urgency::Normal
        }
    }
}

impl Proxies {
    fn handle_answer(
        &self,
        id: u64,
        session: &Session,
        answer: zds::agent::Reply,
        sent: &mut HashMap<String, Offer>,
    ) {
        if let Some(proxy) = self.connected.borrow_mut().get_mut(&id) {
            proxy.synced = session.synced();
        }
        let Some(uid) = answer.request.uid() else {
            return self.inbox.send(Message::ProxiesChanged); // the end of the snapshot
        };
        if let Err(why) = &answer.outcome {
            tracing::warn!(uid, "the proxy rejected the pod: {why}");
        }
        let offer = sent.remove(uid);
        let (Request::Add { .. }, Some(offer)) = (&answer.request, offer) else {
            return;
        };
        if let Some(generation) = offer.awaited {
            let is_served = answer.outcome.is_ok();
            let answer = Answer::Proxy(answer.outcome);
            self.inbox.answer(offer.life, generation, answer);
            let mut offers = self.offers.borrow_mut();
            let is_same = |o: &&mut Offer| (o.life, o.awaited) == (offer.life, offer.awaited);
            if let Some(current) = offers.get_mut(uid).filter(is_same)
                && is_served
            {
                current.awaited = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pod_life::{Life, Pods};
    use zds::WorkloadInfo;
    use zds::agent::Reply;

    use super::*;

    fn lives() -> [LifeId; 2] {
        let sandbox = serde_json::json!({
            "attachment": { "containerId": "c", "ifname": "eth0" },
            "pod": { "namespace": "shop", "name": "web" },
            "netnsInode": 7,
        });
        let mut pods = Pods::default();
        [(); 2].map(|()| {
            let sandbox = serde_json::from_value(sandbox.clone()).unwrap();
            pods.insert(Life::found(sandbox, ""))
        })
    }

    fn add(uid: &str) -> Request {
        let info = WorkloadInfo {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
        };
        let uid = uid.to_owned();
        Request::Add { uid, info }
    }

    /// A connected proxy that receives requests.
    fn connect(proxies: &Proxies) -> UnboundedReceiver<(Request, Option<Offer>)> {
        let (requests, receiver) = unbounded_channel();
        let proxy = Proxy {
            pid: 1,
            synced: false,
            requests,
        };
        proxies.connected.borrow_mut().insert(1, proxy);
        receiver
    }

    #[test]
    fn a_pod_is_withdrawn_only_by_the_life_that_offered_it_last() {
        let (inbox, _messages) = Inbox::new();
        let proxies = Proxies::new(inbox, Rc::new(Metrics::new()));
        let ([old, new], mut requests) = (lives(), connect(&proxies));
        proxies.offer(old, add("u"), None, None);
        proxies.offer(new, add("u"), None, Some(Generation(3)));
        proxies.withdraw(old, "u");
        proxies.withdraw(new, "other");
        let sent = |requests: &mut UnboundedReceiver<_>| -> Vec<Request> {
            std::iter::from_fn(|| requests.try_recv().ok())
                .map(|(request, _)| request)
                .collect()
        };
        assert_eq!(sent(&mut requests), [add("u"), add("u")]);
        proxies.withdraw(new, "u");
        let uid = "u".to_owned();
        assert_eq!(sent(&mut requests), [Request::Del { uid }]);
        assert!(proxies.offers.borrow().is_empty());
    }

    #[test]
    fn an_answer_belongs_to_the_offer_that_was_sent() {
        let (inbox, mut messages) = Inbox::new();
        let proxies = Proxies::new(inbox, Rc::new(Metrics::new()));
        let [old, new] = lives();
        proxies.offer(old, add("u"), None, Some(Generation(1)));
        let mut sent = HashMap::from([("u".to_owned(), proxies.offers.borrow()["u"].clone())]);
        proxies.offer(new, add("u"), None, Some(Generation(2)));
        let answer = || Reply {
            request: add("u"),
            outcome: Ok(()),
        };
        let session = Session::new(WINDOW, Instant::now());
        proxies.handle_answer(1, &session, answer(), &mut sent);
        let Ok(Message::Done { id, generation, .. }) = messages.try_recv() else {
            panic!("no answer")
        };
        assert_eq!((id, generation), (old, Generation(1)));
        let is_urgent = || proxies.offers.borrow()["u"].urgency() == Urgency::Expedited;
        assert!(is_urgent(), "the newer one still waits");
        sent.insert("u".to_owned(), proxies.offers.borrow()["u"].clone());
        proxies.handle_answer(1, &session, answer(), &mut sent);
        assert!(!is_urgent(), "it is served");
    }
}
