//! The set of served pods, on the control thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use dns::UdpListener;
use identity::{Certificates, Claim};
use istio::port;
use mesh::{Identity, Mesh, Text};
use netns::{NetNs, NetNsId};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use zds::WorkloadInfo;

use super::handover::{InheritedSockets, SharedSockets, SocketKind};
use super::pod::{LocalNode, Pod, PodId};
use crate::data::{ExhaustedBudget, ListenerKind, ProxyState, Workers};

/// Why a pod cannot be served, reported to the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{code}: cannot listen on port {port}: {source}", code = error_code::proxy::LISTEN)]
    Listen { port: u16, source: std::io::Error },
    #[error("{code}: cannot listen on UDP port {port}: {source}", code = error_code::proxy::LISTEN)]
    ListenUdp { port: u16, source: std::io::Error },
}

/// The set of served pods.
pub(crate) struct Pods {
    proxy: Arc<ProxyState>,
    workers: RefCell<Workers>,
    certificates: Rc<Certificates>,
    local: Arc<LocalNode>,
    /// The trust domain of pods that the mesh does not include.
    trust_domain: Text,
    ipv6: bool,
    served: RefCell<BTreeMap<String, ServedPod>>,
    /// Pods that cannot be served yet, e.g. because another process uses one of the ports.
    pending: RefCell<BTreeMap<String, (WorkloadInfo, NetNs)>>,
    /// The sockets that the last proxy has handed over, until the agent has sent all its pods.
    inherited: RefCell<InheritedSockets>,
    /// Whether the agent has sent all its pods.
    pub(crate) synced: Cell<bool>,
    has_synced: Notify,
    next_id: Cell<u64>,
}

struct ServedPod {
    pod: Arc<Pod>,
    /// The claim on the pod's certificate.
    claim: Claim,
    set_left: watch::Sender<bool>,
    /// Its sockets, for the next proxy.
    shared: Option<SharedSockets>,
}

/// The listening sockets in a pod.
type PodSockets = (Vec<(ListenerKind, TcpListener)>, Vec<UdpListener>);

/// The state of a pod in the admin interface.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServedPodStatus {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) identity: Identity,
    certificate_expires_in_s: u64,
    /// Why the pod has no certificate or its certificate was not renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_trouble: Option<String>,
    netns: String,
    /// Open connections, tunnels of peers included.
    connections: usize,
    /// Received bytes that wait for applications that do not read.
    unread_bytes: usize,
    /// The budgets that it has exhausted, or had until a few minutes ago.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) exhausted_budgets: Vec<ExhaustedBudget>,
}

fn as_text<S: serde::Serializer>(identity: &Identity, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(identity)
}

impl Pods {
    pub(crate) fn new(
        proxy: Arc<ProxyState>,
        workers: Workers,
        certificates: Rc<Certificates>,
        local: LocalNode,
        trust_domain: Text,
        ipv6: bool,
    ) -> Self {
        Self {
            proxy,
            workers: RefCell::new(workers),
            certificates,
            local: Arc::new(local),
            trust_domain,
            ipv6,
            served: RefCell::default(),
            pending: RefCell::default(),
            inherited: RefCell::default(),
            synced: Cell::default(),
            has_synced: Notify::new(),
            next_id: Cell::default(),
        }
    }

    /// Listens in a pod and serves it, in place of any pod with the same uid in another namespace.
    /// A pod that cannot be served is kept for [`Pods::retry`].
    pub(crate) fn start(
        &self,
        uid: &str,
        info: WorkloadInfo,
        netns: NetNs,
    ) -> Result<(), StartError> {
        let is_served = |served: &ServedPod| served.pod.netns.id() == netns.id();
        if self.served.borrow().get(uid).is_some_and(is_served) {
            return Ok(()); // since a retry
        }
        match self.listen(&netns) {
            Ok(sockets) => {
                self.stop(uid);
                self.serve(uid, info, netns, sockets);
                Ok(())
            }
            Err(error) => {
                let pending = (info, netns);
                self.pending.borrow_mut().insert(uid.to_owned(), pending);
                self.count_pending();
                Err(error)
            }
        }
    }

    /// Retries the pods that could not be served.
    pub(crate) fn retry(&self) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for (uid, (info, netns)) in pending {
            if let Err(e) = self.start(&uid, info, netns) {
                tracing::warn!(uid, "still cannot serve pod: {e}");
            }
        }
        self.count_pending();
    }

    /// Whether all pods of the agent are being served.
    pub(crate) fn all_served(&self) -> bool {
        self.synced.get() && self.pending.borrow().is_empty()
    }

    /// Takes over the listening sockets of the proxy that now runs on the node, if there is one.
    pub(super) async fn inherit(&self, agent_socket: &Path) {
        let inherited = InheritedSockets::receive(agent_socket).await;
        *self.inherited.borrow_mut() = inherited;
    }

    /// Records that the agent has sent all its pods.
    pub(super) fn complete_snapshot(&self) {
        self.synced.set(true);
        self.inherited.take();
        self.has_synced.notify_one();
    }

    /// Waits until the agent has sent all its pods for the first time.
    pub(super) async fn until_synced(&self) {
        self.has_synced.notified().await;
    }

    /// The listening sockets of each pod, with its network namespace.
    pub(super) fn shared_sockets(&self) -> Vec<(NetNsId, SharedSockets)> {
        let of_pod = |served: &ServedPod| Some((served.pod.netns.id(), served.shared.clone()?));
        self.served.borrow().values().filter_map(of_pod).collect()
    }

    /// Stops sharing sockets, so that they close once connections are no longer accepted, unless
    /// the next proxy has them.
    pub(crate) fn stop_sharing(&self) {
        for served in self.served.borrow_mut().values_mut() {
            served.shared = None;
        }
    }

    /// Prepares for a snapshot from the agent, which includes the pods that could not be served.
    pub(crate) fn begin_snapshot(&self) {
        self.pending.borrow_mut().clear();
        self.count_pending();
    }

    fn count_pending(&self) {
        self.proxy
            .metrics
            .pending_pods
            .set(i64::try_from(self.pending.borrow().len()).unwrap_or(i64::MAX));
    }

    /// The kinds of connections that are accepted in a pod.
    fn listener_kinds(&self) -> impl Iterator<Item = ListenerKind> {
        use ListenerKind::{Dns, Hbone, Inbound, Outbound};
        let dns = self.proxy.dns.is_some().then_some(Dns);
        [Outbound, Inbound, Hbone].into_iter().chain(dns)
    }

    fn listen(&self, netns: &NetNs) -> Result<PodSockets, StartError> {
        if let Some(inherited) = self.take_over(netns) {
            return Ok(inherited);
        }
        let tcp = self.proxy.options.tcp();
        let listen = |kind: ListenerKind| {
            let port = kind.port();
            let socket = pod_socket::listen(netns, port, self.ipv6, &tcp);
            socket
                .map(|s| (kind, s))
                .map_err(|source| StartError::Listen { port, source })
        };
        let listeners = self.listener_kinds().map(listen);
        let listeners = listeners.collect::<Result<_, _>>()?;
        let mut dns_sockets = Vec::new();
        if self.proxy.dns.is_some() {
            let socket = dns::listen(netns, port::DNS, self.ipv6);
            dns_sockets = socket.map_err(|source| StartError::ListenUdp {
                port: port::DNS,
                source,
            })?;
        }
        Ok((listeners, dns_sockets))
    }

    /// Takes over the sockets that the last proxy had in a pod; `None` if they are not those that
    /// this one needs, as after a change of its settings.
    fn take_over(&self, netns: &NetNs) -> Option<PodSockets> {
        let tcp = self.proxy.options.tcp();
        let (mut listeners, mut dns_sockets) = (Vec::new(), Vec::new());
        for (kind, socket) in self.inherited.borrow_mut().take(netns.id()) {
            match kind {
                SocketKind::Tcp(kind) => {
                    let socket = pod_socket::adopt(socket, kind.port(), self.ipv6, &tcp)?;
                    listeners.push((kind, socket));
                }
                SocketKind::DnsOverUdp => {
                    dns_sockets.push(UdpListener::adopt(netns, socket, port::DNS).ok()?);
                }
            }
        }
        let needs_dns = self.proxy.dns.is_some();
        let has = |kind| listeners.iter().any(|(k, _)| *k == kind);
        let has_dns = |ipv6| {
            let mut families = dns_sockets.iter().filter_map(|s| s.is_ipv6().ok());
            families.any(|is_ipv6| is_ipv6 == ipv6)
        };
        let is_complete = self.listener_kinds().all(has)
            && listeners.len() == self.listener_kinds().count()
            && has_dns(false) == needs_dns
            && has_dns(true) == (needs_dns && self.ipv6);
        is_complete.then_some((listeners, dns_sockets))
    }

    fn serve(
        &self,
        uid: &str,
        info: WorkloadInfo,
        netns: NetNs,
        (listeners, dns_sockets): PodSockets,
    ) {
        let mesh = self.proxy.mesh.load();
        let identity = self
            .local
            .identity_of(&mesh, uid, &info, &self.trust_domain);
        let (claim, handle) = self.certificates.claim(&identity);
        let certificate = ArcSwap::from_pointee(handle);
        let (set_left, has_left) = watch::channel(false);
        tracing::info!(
            uid,
            namespace = info.namespace,
            name = info.name,
            netns = %netns.id(),
            "serving pod"
        );
        let tcp = self.proxy.options.tcp();
        let id = PodId(self.next_id.get());
        self.next_id.set(id.0 + 1);
        let pod = Arc::new(Pod {
            id,
            local: self.local.clone(),
            uid: uid.to_owned(),
            info,
            netns,
            certificate,
            tcp,
            budget: self.proxy.budget.pod(),
            dns: Default::default(),
            dns_answers: dns::AnswerCache::new(self.proxy.dns_budget.clone()),
            resolver: dns::Resolver::new(
                self.proxy.lookup_servers.clone(),
                self.proxy.dns_budget.clone(),
            ),
            has_left,
        });
        let shared = share(&listeners, &dns_sockets).inspect_err(|e| {
            tracing::warn!(uid, "cannot keep the pod's sockets for the next proxy: {e}");
        });
        self.workers
            .borrow_mut()
            .serve(&pod, listeners, dns_sockets);
        self.served.borrow_mut().insert(
            uid.to_owned(),
            ServedPod {
                pod,
                claim,
                set_left,
                shared: shared.ok(),
            },
        );
        self.proxy.metrics.pods_started.inc();
        self.proxy.metrics.active_pods.inc();
    }

    /// Stops serving a pod: closes its listeners and connections.
    pub(crate) fn stop(&self, uid: &str) {
        self.pending.borrow_mut().remove(uid);
        self.count_pending();
        let Some(served) = self.served.borrow_mut().remove(uid) else {
            return;
        };
        tracing::info!(uid, "stopped serving pod");
        let _ = served.set_left.send(true); // the pod may have no open sockets
        self.workers.borrow().pod_left(uid);
        if let Some(demand) = &self.proxy.demand {
            demand.forget_pod(uid);
        }
        self.proxy.metrics.pods_stopped.inc();
        self.proxy.metrics.active_pods.dec();
    }

    /// Completes once every worker has handled a command.
    pub(crate) fn ping_workers(&self) -> impl Future<Output = ()> + use<> {
        self.workers.borrow().ping()
    }

    /// Closes the tunnels to peers once their streams have ended.
    pub(crate) fn close_tunnels(&self) {
        self.workers.borrow().close_tunnels();
    }

    /// Applies a new mesh. A pod whose identity has changed gets a new certificate.
    pub(crate) fn mesh_changed(&self, mesh: Arc<Mesh>) {
        self.workers.borrow().mesh_changed(mesh.clone());
        for served in self.served.borrow_mut().values_mut() {
            let Pod { uid, info, .. } = &*served.pod;
            let identity = self.local.identity_of(&mesh, uid, info, &self.trust_domain);
            if served.pod.identity() != identity {
                let (claim, handle) = self.certificates.claim(&identity);
                served.claim = claim;
                served.pod.certificate.store(Arc::new(handle));
            }
        }
    }

    /// Describes the served pods for the admin interface.
    pub(crate) fn status(&self) -> Vec<ServedPodStatus> {
        let now = SystemTime::now();
        let status = |served: &ServedPod| {
            let certificate = served.pod.certificate.load();
            let state = certificate.state();
            let not_after = state.credentials.as_ref().map(|c| c.validity.not_after);
            let remaining = not_after
                .and_then(|end| end.duration_since(now).ok())
                .unwrap_or_default();
            ServedPodStatus {
                uid: served.pod.uid.clone(),
                namespace: served.pod.info.namespace.clone(),
                name: served.pod.info.name.clone(),
                identity: certificate.identity.clone(),
                certificate_expires_in_s: remaining.as_secs(),
                certificate_trouble: state.last_error.map(|e| e.to_string()),
                netns: served.pod.netns.id().to_string(),
                connections: served.pod.budget.connections(),
                unread_bytes: served.pod.budget.held(),
                exhausted_budgets: served.pod.budget.exhausted(),
            }
        };
        self.served.borrow().values().map(status).collect()
    }
}

/// Duplicates the descriptors of a pod's sockets, which share everything else.
fn share(
    listeners: &[(ListenerKind, TcpListener)],
    dns_sockets: &[UdpListener],
) -> io::Result<SharedSockets> {
    let duplicate = |kind, fd: BorrowedFd<'_>| Ok((kind, fd.try_clone_to_owned()?));
    let tcp = listeners.iter();
    let tcp = tcp.map(|(kind, socket)| duplicate(SocketKind::Tcp(*kind), socket.as_fd()));
    let udp = dns_sockets.iter();
    let udp = udp.map(|socket| duplicate(SocketKind::DnsOverUdp, socket.as_fd()));
    tcp.chain(udp).collect()
}
