//! All pods that are served, on the control thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh::{Identity, Mesh, Text};
use netns::NetNs;
use serde::Serialize;
use tokio::sync::watch;
use zds::WorkloadInfo;

use super::pod::{PORTS, Pod};
use crate::data::{Listener, Node, Workers, sockets};
use crate::dns::{self, UdpListener};
use crate::identity::{Certificates, Claim};

/// Why a pod cannot be served, as the agent is told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{code}: port {port}: {source}", code = error_code::proxy::LISTEN)]
    Listen { port: u16, source: std::io::Error },
    #[error("{code}: port {port} (UDP): {source}", code = error_code::proxy::LISTEN)]
    ListenUdp { port: u16, source: std::io::Error },
}

/// The pods that are served.
pub(crate) struct Pods {
    node: Arc<Node>,
    workers: RefCell<Workers>,
    certificates: Rc<Certificates>,
    /// Of pods of which the mesh says none.
    trust_domain: Text,
    ipv6: bool,
    served: RefCell<BTreeMap<String, Served>>,
    /// Pods that cannot be served yet, such as those in which something else has one of the ports.
    pending: RefCell<BTreeMap<String, (WorkloadInfo, NetNs)>>,
    /// True when the agent has named every pod.
    pub(crate) synced: std::cell::Cell<bool>,
}

struct Served {
    pod: Arc<Pod>,
    /// Of the pod's certificate.
    claim: Claim,
    leave: watch::Sender<bool>,
}

/// The sockets in a pod.
type Bound = (Vec<(Listener, TcpListener)>, Vec<UdpListener>);

/// What the admin interface says of a pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) identity: Identity,
    certificate_expires_in_s: u64,
    /// Why it has no certificate, or no newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_trouble: Option<String>,
    netns: String,
}

fn as_text<S: serde::Serializer>(identity: &Identity, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(identity)
}

impl Pods {
    pub(crate) fn new(
        node: Arc<Node>,
        workers: Workers,
        certificates: Rc<Certificates>,
        trust_domain: Text,
        ipv6: bool,
    ) -> Self {
        Self {
            node,
            workers: RefCell::new(workers),
            certificates,
            trust_domain,
            ipv6,
            served: RefCell::default(),
            pending: RefCell::default(),
            synced: Default::default(),
        }
    }

    /// Listens in a pod and serves it. A pod of the same uid is given up first. One that cannot be served is kept, and tried again
    /// by [`Pods::retry`].
    pub(crate) fn start(&self, uid: &str, info: WorkloadInfo, netns: NetNs) -> Result<(), StartError> {
        self.stop(uid);
        let bound = match self.listen(&netns) {
            Ok(bound) => bound,
            Err(why) => {
                self.pending.borrow_mut().insert(uid.to_owned(), (info, netns));
                self.count_pending();
                return Err(why);
            }
        };
        self.serve(uid, info, netns, bound);
        Ok(())
    }

    /// Tries again to serve the pods that could not be served.
    pub(crate) fn retry(&self) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for (uid, (info, netns)) in pending {
            if let Err(why) = self.start(&uid, info, netns) {
                tracing::warn!(uid, "a pod is still not served: {why}");
            }
        }
        self.count_pending();
    }

    /// Whether every pod that the agent has named is served.
    pub(crate) fn all_served(&self) -> bool {
        self.synced.get() && self.pending.borrow().is_empty()
    }

    /// The agent names every pod anew, those that could not be served, too.
    pub(crate) fn begin_snapshot(&self) {
        self.pending.borrow_mut().clear();
        self.count_pending();
    }

    fn count_pending(&self) {
        self.node.metrics.pending_pods.set(i64::try_from(self.pending.borrow().len()).unwrap_or(i64::MAX));
    }

    fn listen(&self, netns: &NetNs) -> Result<Bound, StartError> {
        let listen = |kind, port| {
            let socket = sockets::listen(netns, port, self.ipv6);
            socket.map(|s| (kind, s)).map_err(|source| StartError::Listen { port, source })
        };
        let mut listeners = vec![
            listen(Listener::Outbound, PORTS.outbound)?,
            listen(Listener::Inbound, PORTS.inbound)?,
            listen(Listener::Hbone, PORTS.hbone)?,
        ];
        let mut datagrams = Vec::new();
        if self.node.dns.is_some() {
            listeners.push(listen(Listener::Dns, PORTS.dns)?);
            let socket = dns::listen(netns, PORTS.dns, self.ipv6);
            datagrams = socket.map_err(|source| StartError::ListenUdp { port: PORTS.dns, source })?;
        }
        Ok((listeners, datagrams))
    }

    fn serve(&self, uid: &str, info: WorkloadInfo, netns: NetNs, (listeners, datagrams): Bound) {
        let identity = Pod::identity_of(&info, &self.node.mesh.load(), &self.trust_domain);
        let (claim, handle) = self.certificates.claim(&identity);
        let certificate = ArcSwap::from_pointee(handle);
        let (leave, gone) = watch::channel(false);
        tracing::info!(uid, namespace = info.namespace, name = info.name, netns = %netns.id(), "serving a pod");
        let tcp = self.node.options.tcp();
        let pod = Arc::new(Pod { uid: uid.to_owned(), info, netns, certificate, tcp, dns: Default::default(), gone });
        self.workers.borrow_mut().serve(&pod, listeners, datagrams);
        self.served.borrow_mut().insert(uid.to_owned(), Served { pod, claim, leave });
        self.node.metrics.pods_started.inc();
        self.node.metrics.active_pods.inc();
    }

    /// Gives a pod up: its listeners close and its connections are cut.
    pub(crate) fn stop(&self, uid: &str) {
        self.pending.borrow_mut().remove(uid);
        self.count_pending();
        let Some(served) = self.served.borrow_mut().remove(uid) else { return };
        tracing::info!(uid, "a pod has left");
        let _ = served.leave.send(true); // nothing of it was open
        self.workers.borrow().pod_gone(uid);
        self.node.metrics.pods_stopped.inc();
        self.node.metrics.active_pods.dec();
    }

    /// Puts a new mesh in force. A pod whose identity it changes gets another certificate.
    pub(crate) fn mesh_changed(&self, mesh: Arc<Mesh>) {
        self.workers.borrow().mesh_changed(mesh.clone());
        for served in self.served.borrow_mut().values_mut() {
            let identity = Pod::identity_of(&served.pod.info, &mesh, &self.trust_domain);
            if served.pod.identity() != identity {
                let (claim, handle) = self.certificates.claim(&identity);
                served.claim = claim;
                served.pod.certificate.store(Arc::new(handle));
            }
        }
    }

    pub(crate) fn status(&self) -> Vec<PodStatus> {
        let now = SystemTime::now();
        let status = |served: &Served| {
            let certificate = served.pod.certificate.load();
            let held = certificate.held();
            let not_after = held.credentials.as_ref().map(|c| c.validity.not_after);
            let left = not_after.and_then(|end| end.duration_since(now).ok()).unwrap_or_default();
            PodStatus {
                uid: served.pod.uid.clone(),
                namespace: served.pod.info.namespace.clone(),
                name: served.pod.info.name.clone(),
                identity: certificate.identity.clone(),
                certificate_expires_in_s: left.as_secs(),
                certificate_trouble: held.trouble,
                netns: served.pod.netns.id().to_string(),
            }
        };
        self.served.borrow().values().map(status).collect()
    }
}
