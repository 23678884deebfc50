//! All pods that are served, on the control thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh::Mesh;
use netns::NetNs;
use serde::Serialize;
use tokio::sync::watch;
use zds::WorkloadInfo;

use super::pod::{PORTS, Pod};
use crate::data::{Listener, Node, Workers, sockets};
use crate::dns;
use crate::identity::{Credentials, CredentialsError, LocalCa};

/// Why a pod cannot be served, as the agent is told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{code}: port {port}: {source}", code = error_code::proxy::LISTEN)]
    Listen { port: u16, source: std::io::Error },
    #[error("{code}: port {port} (UDP): {source}", code = error_code::proxy::LISTEN)]
    ListenUdp { port: u16, source: std::io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The pods that are served.
pub(crate) struct Pods {
    node: Arc<Node>,
    workers: RefCell<Workers>,
    ca: LocalCa,
    ipv6: bool,
    served: RefCell<BTreeMap<String, Served>>,
    /// True when the agent has named every pod.
    pub(crate) synced: std::cell::Cell<bool>,
}

struct Served {
    pod: Arc<Pod>,
    leave: watch::Sender<bool>,
}

/// What the admin interface says of a pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    uid: String,
    namespace: String,
    name: String,
    identity: String,
    certificate_expires_in_s: u64,
    netns: String,
}

impl Pods {
    pub(crate) fn new(node: Arc<Node>, workers: Workers, ca: LocalCa, ipv6: bool) -> Self {
        Self { node, workers: RefCell::new(workers), ca, ipv6, served: RefCell::default(), synced: Default::default() }
    }

    /// Listens in a pod and serves it. A pod of the same uid is given up first.
    pub(crate) fn start(&self, uid: &str, info: WorkloadInfo, netns: NetNs) -> Result<(), StartError> {
        self.stop(uid);
        let listen = |kind, port| {
            let socket = sockets::listen(&netns, port, self.ipv6);
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
            let socket = dns::listen(&netns, PORTS.dns, self.ipv6);
            datagrams = socket.map_err(|source| StartError::ListenUdp { port: PORTS.dns, source })?;
        }
        let identity = Pod::identity(&info, &self.node.mesh.load());
        let credentials = ArcSwap::from_pointee(Credentials::issue(&self.ca, identity)?);
        let (leave, gone) = watch::channel(false);
        tracing::info!(uid, namespace = info.namespace, name = info.name, netns = %netns.id(), "serving a pod");
        let pod = Arc::new(Pod { uid: uid.to_owned(), info, netns, credentials, dns: Default::default(), gone });
        self.workers.borrow_mut().serve(&pod, listeners, datagrams);
        self.served.borrow_mut().insert(uid.to_owned(), Served { pod, leave });
        self.node.metrics.pods_started.inc();
        self.node.metrics.active_pods.inc();
        Ok(())
    }

    /// Gives a pod up: its listeners close and its connections are cut.
    pub(crate) fn stop(&self, uid: &str) {
        let Some(served) = self.served.borrow_mut().remove(uid) else { return };
        tracing::info!(uid, "a pod has left");
        let _ = served.leave.send(true); // nothing of it was open
        self.workers.borrow().pod_gone(uid);
        self.node.metrics.pods_stopped.inc();
        self.node.metrics.active_pods.dec();
    }

    /// Puts a new mesh in force. A pod whose identity it changes gets new credentials.
    pub(crate) fn mesh_changed(&self, mesh: Arc<Mesh>) {
        self.workers.borrow().mesh_changed(mesh);
        self.renew(SystemTime::now());
    }

    /// Renews credentials whose time has come.
    pub(crate) fn renew(&self, now: SystemTime) {
        let mesh = self.node.mesh.load_full();
        for served in self.served.borrow().values() {
            let pod = &served.pod;
            let identity = Pod::identity(&pod.info, &mesh);
            let current = pod.credentials.load();
            if current.identity == identity && now < current.renew_at {
                continue;
            }
            match Credentials::issue(&self.ca, identity) {
                Ok(credentials) => pod.credentials.store(Arc::new(credentials)),
                // Tried again at the next turn; the present ones are good for half their life yet.
                Err(e) => tracing::error!(uid = pod.uid, "credentials cannot be renewed: {e}"),
            }
        }
    }

    pub(crate) fn status(&self) -> Vec<PodStatus> {
        let now = SystemTime::now();
        let status = |served: &Served| {
            let credentials = served.pod.credentials.load();
            PodStatus {
                uid: served.pod.uid.clone(),
                namespace: served.pod.info.namespace.clone(),
                name: served.pod.info.name.clone(),
                identity: credentials.identity.to_string(),
                certificate_expires_in_s: credentials.not_after.duration_since(now).unwrap_or_default().as_secs(),
                netns: served.pod.netns.id().to_string(),
            }
        };
        self.served.borrow().values().map(status).collect()
    }
}
