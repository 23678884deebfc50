//! A pod that starts before the watch has told of it is asked for by name.

use std::time::{Duration, Instant};

use ::kubernetes::{Api, Error, Namespace, Pod, status_of};
use handoff::PodRef;
use mesh::Decision;
use mesh::enrol::Enrolment;
use tokio::time::{timeout, timeout_at};

use super::facts::Cluster;
use crate::refusal::Refusal;

/// How long the API server may take where no runtime waits.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Decides about a pod that is being started. It never passes as a stranger: what is not known is asked for, and a pod
    /// about which nothing can be learnt until `deadline` has to wait.
    pub(crate) async fn decide_about_new(
        &self,
        pod: &PodRef,
        deadline: Instant,
    ) -> Result<Decision<Enrolment>, Refusal> {
        let known = self.decide(pod);
        if known.outcome != Enrolment::Unknown {
            return Ok(known);
        }
        let asked = async {
            self.ask_for_pod(pod).await?;
            // The pod may be known and its namespace not.
            if self.decide(pod).outcome == Enrolment::Unknown {
                self.ask_for_namespace(&pod.namespace).await?;
            }
            Ok::<_, Refusal>(())
        };
        let late = |_| Refusal::ApiAway(format!("{}, and the API server does not answer", known.reason));
        timeout_at(deadline.into(), asked).await.map_err(late)??;
        Ok(self.decide(pod))
    }

    /// Asks whether a pod is still there. None when that cannot be said.
    pub(super) async fn still_has(&self, pod: &PodRef) -> Option<bool> {
        match timeout(PATIENCE, self.ask_for_pod(pod)).await {
            Ok(Ok(())) => Some(true),
            Ok(Err(Refusal::PodGone(_))) => Some(false),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    async fn ask_for_pod(&self, pod: &PodRef) -> Result<(), Refusal> {
        let PodRef { namespace, name, uid } = pod;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get(name).await.map_err(|e| match status_of(&e) {
            Some(404) => Refusal::PodGone(format!("the API server has no pod {namespace}/{name}")),
            _ => away(&format!("pod {namespace}/{name}"), &e),
        })?;
        if let Some(uid) = uid.as_ref().filter(|uid| *uid != found.uid()) {
            let why = format!("pod {namespace}/{name} has the uid {}, and {uid} was to be started", found.uid());
            return Err(Refusal::PodGone(why));
        }
        if found.spec.node_name != self.node {
            let (there, here) = (&found.spec.node_name, &self.node);
            return Err(Refusal::UnknownPod(format!(
                "pod {namespace}/{name} is assigned to node {there:?}, and this is {here}"
            )));
        }
        self.put_pod(found);
        Ok(())
    }

    async fn ask_for_namespace(&self, name: &str) -> Result<(), Refusal> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = api.get(name).await.map_err(|e| away(&format!("namespace {name}"), &e))?;
        self.put_namespace(&found);
        Ok(())
    }
}

fn away(what: &str, error: &Error) -> Refusal {
    Refusal::ApiAway(format!("{what} is not known yet, and the API server cannot be asked for it: {error}"))
}
