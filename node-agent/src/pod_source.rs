//! The source of pod data: a mesh file, or the API server of a cluster.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use handoff::PodRef;
use ipnet::IpNet;
use mesh::enrol::{Enrolment, decide};
use mesh::{Decision, Mesh};
use pod_life::Refusal;

use crate::kubernetes::Cluster;

/// The source of data about pods and namespaces.
#[derive(Debug)]
pub(crate) enum PodSource {
    /// A mesh file; replaced as a whole when it changes.
    File(RefCell<Arc<Mesh>>),
    /// The API server of a cluster.
    Cluster(Rc<Cluster>),
}

impl PodSource {
    /// Creates a source from a mesh file.
    pub(crate) fn from_file(mesh: Mesh) -> Self {
        Self::File(RefCell::new(Arc::new(mesh)))
    }

    /// Replaces the mesh file.
    pub(crate) fn replace_mesh(&self, mesh: Mesh) {
        let (event, workloads) = ("mesh_file_reloaded", mesh.workloads().count());
        tracing::info!(event, workloads, "reloaded the mesh file");
        if let Self::File(known) = self {
            *known.borrow_mut() = Arc::new(mesh);
        }
    }

    /// The cluster, if this is one.
    pub(crate) fn cluster(&self) -> Option<&Rc<Cluster>> {
        match self {
            Self::File(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }

    /// Decides whether a pod with these addresses, if they are known, belongs to the mesh, from
    /// current data.
    pub(crate) fn decide(
        &self,
        node: &str,
        pod: &PodRef,
        addresses: &[IpAddr],
    ) -> Decision<Enrolment> {
        match self {
            Self::File(mesh) => {
                let mesh = mesh.borrow();
                decide(&mesh, node, &pod.namespace, &pod.name, addresses)
            }
            Self::Cluster(cluster) => cluster.decide(pod),
        }
    }

    /// Fetches what is missing to decide about a starting pod from the API server, until
    /// `deadline`.
    pub(crate) async fn fetch_missing(
        &self,
        pod: &PodRef,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        match self {
            Self::File(_) => Ok(()),
            Self::Cluster(cluster) => cluster.fetch_missing(pod, deadline).await,
        }
    }

    /// The annotations reported by the runtime at ADD, if they apply: in a cluster, the API server
    /// has newer ones.
    pub(crate) fn runtime_annotations<'a>(
        &self,
        reported: &'a BTreeMap<String, String>,
    ) -> &'a BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        match self {
            Self::File(_) => reported,
            Self::Cluster(_) => &EMPTY,
        }
    }

    /// The networks of the node's pods, if they are known.
    pub(crate) fn pod_networks(&self) -> Vec<IpNet> {
        self.cluster().map(|c| c.pod_networks()).unwrap_or_default()
    }

    /// Whether a starting pod's addresses must match the source's. The API server learns them only
    /// after the pod has started.
    pub(crate) fn has_addresses_at_add(&self) -> bool {
        matches!(self, Self::File(_))
    }
}
