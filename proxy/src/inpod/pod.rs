//! A pod that the proxy serves.

use std::sync::Arc;

use arc_swap::ArcSwap;
use identity::{CertificateHandle, Credentials, NoCredentials};
use mesh::workload::Protocol;
use mesh::{Identity, Mesh, Text, Workload};
use netns::NetNs;
use pod_socket::{PodNetwork, TcpOptions};
use tokio::sync::watch;
use zds::WorkloadInfo;

use crate::data::PodBudget;

/// Identifies a served pod in this process. Unlike a uid, it is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PodId(pub(super) u64);

/// The place of this proxy in the mesh.
#[derive(Debug)]
pub(crate) struct LocalNode {
    /// ID of its cluster.
    pub(crate) cluster: Text,
    /// Name of its node; empty if unknown.
    pub(crate) node: Text,
}

/// A pod that the proxy serves.
pub(crate) struct Pod {
    pub(crate) id: PodId,
    pub(super) local: Arc<LocalNode>,
    pub(crate) uid: String,
    pub(crate) info: WorkloadInfo,
    pub(crate) netns: NetNs,
    /// The handle of its certificate, replaced when the mesh changes the pod's identity.
    pub(super) certificate: ArcSwap<CertificateHandle>,
    /// Options of its TCP sockets.
    pub(crate) tcp: TcpOptions,
    /// What the pod may take from others.
    pub(crate) budget: Arc<PodBudget>,
    /// Limits on concurrent DNS queries.
    pub(crate) dns: dns::Limits,
    /// The answers to its forwarded DNS queries.
    pub(crate) dns_answers: dns::AnswerCache,
    /// Resolves the names of workloads without an address that the pod connects to.
    pub(crate) resolver: dns::Resolver,
    /// True once the pod has left.
    pub(crate) has_left: watch::Receiver<bool>,
}

impl Pod {
    /// Returns the pod's workload in the mesh, or else one made from the agent's description.
    pub(crate) fn workload(&self, mesh: &Mesh) -> Arc<Workload> {
        let in_mesh = self.find_in(mesh).cloned();
        in_mesh.unwrap_or_else(|| Arc::new(workload_from_agent(&self.uid, &self.info)))
    }

    /// Returns the pod's workload in the mesh.
    pub(crate) fn find_in<'m>(&self, mesh: &'m Mesh) -> Option<&'m Arc<Workload>> {
        self.local.find(mesh, &self.uid, &self.info)
    }

    /// Describes the pods of the same name in the mesh, none of which is this one.
    pub(crate) fn namesakes(&self, mesh: &Mesh) -> String {
        let all = mesh.workloads_by_name(&self.info.namespace, &self.info.name);
        let places: Vec<String> = all
            .iter()
            .map(|w| {
                let (cluster, node, account) = (&w.cluster_id, &w.node, &w.service_account);
                format!("cluster {cluster}, node {node:?}, service account {account}")
            })
            .collect();
        if places.is_empty() {
            return String::new();
        }
        let LocalNode { cluster, node } = &*self.local;
        format!(
            "; pods of this name are in {}, but this one is in cluster {cluster}, node {node:?}, \
             service account {}",
            places.join(" and "),
            account_of(&self.info)
        )
    }

    /// Returns the pod's credentials, waiting for them if they are being issued.
    pub(crate) async fn credentials(&self) -> Result<Arc<Credentials>, NoCredentials> {
        let handle = self.certificate.load_full();
        handle.get().await
    }

    /// The pod's identity.
    pub(crate) fn identity(&self) -> Identity {
        self.certificate.load().identity.clone()
    }
}

impl LocalNode {
    /// Finds the workload of a pod on this node: the one with its uid, if the agent has that from
    /// the mesh file, or else the one with its name. Pods of other clusters or nodes, and earlier
    /// ones, may have the same name.
    fn find<'m>(
        &self,
        mesh: &'m Mesh,
        uid: &str,
        info: &WorkloadInfo,
    ) -> Option<&'m Arc<Workload>> {
        let is_here = |w: &&Arc<Workload>| {
            let node = &self.node;
            w.cluster_id == self.cluster
                && (w.node == *node || w.node.is_empty() || node.is_empty())
        };
        let all = mesh.workloads_by_name(&info.namespace, &info.name);
        let of_account = all
            .iter()
            .filter(|w| w.service_account == *account_of(info));
        if let Some(workload) = of_account.clone().find(|w| w.uid == *uid) {
            return Some(workload);
        }
        // The form of istiod's uids for pods, which distinguishes them from a WorkloadEntry.
        let of_pod = format!("{}//Pod/{}/{}", self.cluster, info.namespace, info.name);
        of_account
            .filter(is_here)
            .min_by_key(|w| (w.uid != *of_pod, &w.uid))
    }

    /// Derives a pod's identity from its service account. The trust domain comes from the mesh, if
    /// it includes the pod, or else is the given one.
    pub(super) fn identity_of(
        &self,
        mesh: &Mesh,
        uid: &str,
        info: &WorkloadInfo,
        trust_domain: &Text,
    ) -> Identity {
        let workload = self.find(mesh, uid, info);
        Identity {
            trust_domain: workload.map_or(trust_domain, |w| &w.trust_domain).clone(),
            namespace: (&info.namespace).into(),
            service_account: account_of(info).into(),
        }
    }
}

fn account_of(info: &WorkloadInfo) -> &str {
    match info.service_account.as_str() {
        "" => "default",
        account => account,
    }
}

impl PodNetwork for Pod {
    fn netns(&self) -> &NetNs {
        &self.netns
    }

    fn tcp_options(&self) -> &TcpOptions {
        &self.tcp
    }
}

fn workload_from_agent(uid: &str, info: &WorkloadInfo) -> Workload {
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
