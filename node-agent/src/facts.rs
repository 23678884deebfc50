//! Where the agent knows pods from: the mesh file of one machine, or the API server of a cluster. The decision is the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use handoff::PodRef;
use mesh::enrol::{Enrolment, decide};
use mesh::{Decision, Mesh};

use crate::kubernetes::Cluster;
use crate::refusal::Refusal;

/// What is known about pods and namespaces.
#[derive(Debug)]
pub(crate) enum Facts {
    /// From the mesh file, which is replaced as a whole.
    File(RefCell<Arc<Mesh>>),
    /// From the API server.
    Cluster(Rc<Cluster>),
}

impl Facts {
    /// From a mesh file.
    pub(crate) fn of_file(mesh: Mesh) -> Self {
        Self::File(RefCell::new(Arc::new(mesh)))
    }

    /// The cluster, if that is where they come from.
    pub(crate) fn cluster(&self) -> Option<&Rc<Cluster>> {
        match self {
            Self::File(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }

    /// Decides about a pod by what is known now.
    pub(crate) fn decide(&self, node: &str, pod: &PodRef) -> Decision<Enrolment> {
        match self {
            Self::File(mesh) => decide(&mesh.borrow(), node, &pod.namespace, &pod.name),
            Self::Cluster(cluster) => cluster.decide(pod),
        }
    }

    /// Decides about a pod that is being started; what is not known about it is asked for until `deadline`.
    pub(crate) async fn decide_about_new(
        &self,
        node: &str,
        pod: &PodRef,
        deadline: Instant,
    ) -> Result<Decision<Enrolment>, Refusal> {
        match self {
            Self::File(_) => Ok(self.decide(node, pod)),
            Self::Cluster(cluster) => cluster.decide_about_new(pod, deadline).await,
        }
    }

    /// What a runtime has said of a pod's annotations when it started, where nobody knows better.
    pub(crate) fn annotations_of_runtime<'a>(
        &self,
        said: &'a BTreeMap<String, String>,
    ) -> &'a BTreeMap<String, String> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        match self {
            Self::File(_) => said,
            Self::Cluster(_) => &NOTHING,
        }
    }

    /// Whether a pod that starts must have the addresses that are known. The API server learns them from its start.
    pub(crate) fn know_addresses_beforehand(&self) -> bool {
        matches!(self, Self::File(_))
    }
}
