//! One pod that is served.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh::workload::Protocol;
use mesh::{Identity, Mesh, Text, Workload};
use netns::NetNs;
use tokio::sync::watch;
use zds::WorkloadInfo;

use crate::data::sockets::Tcp;
use crate::dns;
use crate::identity::{Credentials, Handle, NoCredentials};

/// Where the proxy listens in a pod.
pub(crate) struct Ports {
    /// Connections that the pod opens.
    pub(crate) outbound: u16,
    /// Plaintext connections to the pod.
    pub(crate) inbound: u16,
    /// Tunnels to the pod.
    pub(crate) hbone: u16,
    /// What the pod asks of name servers, over UDP and TCP.
    pub(crate) dns: u16,
}

/// Istio's ports.
pub(crate) const PORTS: Ports = Ports { outbound: 15001, inbound: 15006, hbone: 15008, dns: 15053 };

/// One pod that is served.
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) info: WorkloadInfo,
    pub(crate) netns: NetNs,
    /// The way to its certificate. Replaced when the mesh says that the pod is somebody else.
    pub(super) certificate: ArcSwap<Handle>,
    /// How its connections' sockets are set.
    pub(crate) tcp: Tcp,
    /// What may be asked at once.
    pub(crate) dns: dns::Limits,
    /// True when the pod has left.
    pub(crate) gone: watch::Receiver<bool>,
}

impl Pod {
    /// The pod as the mesh knows it; until the mesh does, what the agent said.
    pub(crate) fn workload(&self, mesh: &Mesh) -> Arc<Workload> {
        self.known(mesh).cloned().unwrap_or_else(|| Arc::new(unknown_to_mesh(&self.uid, &self.info)))
    }

    /// The pod as the mesh knows it. Another cluster may have one of the same name: with another service account, perhaps.
    pub(crate) fn known<'m>(&self, mesh: &'m Mesh) -> Option<&'m Arc<Workload>> {
        let all = mesh.workloads_by_name(&self.info.namespace, &self.info.name);
        let same_account = all.iter().rfind(|w| w.service_account == self.info.service_account);
        same_account.or(all.last())
    }

    /// What it proves its identity with; waited for, when it has just come.
    pub(crate) async fn credentials(&self) -> Result<Arc<Credentials>, NoCredentials> {
        let handle = self.certificate.load_full();
        handle.get().await
    }

    /// Who it is.
    pub(crate) fn identity(&self) -> Identity {
        self.certificate.load().identity.clone()
    }

    /// Who a pod is: its service account, in the trust domain that the mesh says, or else in ours.
    pub(super) fn identity_of(info: &WorkloadInfo, mesh: &Mesh, trust_domain: &Text) -> Identity {
        let known = mesh.workload_by_name(&info.namespace, &info.name);
        let trust_domain = known.map_or_else(|| trust_domain.clone(), |w| w.trust_domain.clone());
        let service_account = if info.service_account.is_empty() { "default" } else { &info.service_account };
        Identity { trust_domain, namespace: (&info.namespace).into(), service_account: service_account.into() }
    }
}

fn unknown_to_mesh(uid: &str, info: &WorkloadInfo) -> Workload {
    Workload {
        uid: uid.into(),
        name: (&info.name).into(),
        namespace: (&info.namespace).into(),
        protocol: Protocol::Hbone,
        service_account: (&info.service_account).into(),
        workload_name: (&info.name).into(),
        canonical_name: (&info.name).into(),
        canonical_revision: "latest".into(),
        cluster_id: Default::default(),
        ..Workload::default()
    }
}
