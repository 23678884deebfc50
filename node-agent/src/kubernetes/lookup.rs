//! Fetches pods and namespaces by name that start before the watch reports them.

use std::time::{Duration, Instant};

use ::kubernetes::{Api, Error, Namespace, Pod, status_of};
use error_code::agent as codes;
use handoff::PodRef;
use mesh::enrol::Enrolment;
use pod_life::Refusal;
use tokio::time::{timeout, timeout_at};

use super::cluster::Cluster;

/// Time limit of a request that no plugin waits for.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a pod exists, according to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existence {
    Exists,
    Deleted,
    /// The API server did not answer.
    Unknown,
}

impl Cluster {
    /// Fetches what is missing to decide about a starting pod. Fails if there is none by
    /// `deadline`, so that no unknown pod starts outside the mesh.
    pub(crate) async fn fetch_missing(
        &self,
        pod: &PodRef,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let known = self.decide(pod);
        if known.outcome != Enrolment::Unknown {
            return Ok(());
        }
        let fetch = async {
            self.fetch_pod(pod).await?;
            // The namespace may be unknown even though the pod is known now.
            if self.decide(pod).outcome == Enrolment::Unknown {
                self.fetch_namespace(&pod.namespace).await?;
            }
            Ok::<_, Refusal>(())
        };
        let late = |_| {
            let why = format!("{}, and the API server does not answer", known.reason);
            Refusal::new(&codes::API_UNREACHABLE, why)
        };
        timeout_at(deadline.into(), fetch).await.map_err(late)?
    }

    /// Asks the API server for a pod that is not in the watch.
    pub(super) async fn existence(&self, pod: &PodRef) -> Existence {
        match timeout(API_TIMEOUT, self.fetch_pod(pod)).await {
            Ok(Ok(())) => Existence::Exists,
            Ok(Err(refusal)) if refusal.code == &codes::POD_GONE => Existence::Deleted,
            Ok(Err(_)) | Err(_) => Existence::Unknown,
        }
    }

    async fn fetch_pod(&self, pod: &PodRef) -> Result<(), Refusal> {
        let PodRef {
            namespace,
            name,
            uid,
        } = pod;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get(name).await.map_err(|e| match status_of(&e) {
            Some(404) => {
                let why = format!("the API server has no pod {namespace}/{name}");
                Refusal::new(&codes::POD_GONE, why)
            }
            _ => fetch_failed(&format!("pod {namespace}/{name}"), &e),
        })?;
        if let Some(uid) = uid.as_ref().filter(|uid| *uid != found.runtime_uid()) {
            let found = found.runtime_uid();
            let why = format!(
                "pod {namespace}/{name} has uid {found}, but the runtime is starting {uid}"
            );
            return Err(Refusal::new(&codes::POD_GONE, why));
        }
        if found.spec.node_name != self.node {
            let (assigned, node) = (&found.spec.node_name, &self.node);
            let why = format!(
                "pod {namespace}/{name} is assigned to node {assigned:?}, not to this node, {node}"
            );
            return Err(Refusal::new(&codes::UNKNOWN_POD, why));
        }
        self.put_pod(found);
        Ok(())
    }

    async fn fetch_namespace(&self, name: &str) -> Result<(), Refusal> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = api
            .get(name)
            .await
            .map_err(|e| fetch_failed(&format!("namespace {name}"), &e))?;
        self.put_namespace(&found);
        Ok(())
    }
}

fn fetch_failed(what: &str, error: &Error) -> Refusal {
    let why = format!("cannot fetch {what} from the API server: {error}");
    Refusal::new(&codes::API_UNREACHABLE, why)
}
