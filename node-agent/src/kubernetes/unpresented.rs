//! Status of pods that no plugin has presented: those that use the host network, have finished, are
//! excluded, or are older than the agent.

use agent_status::{PodState, PodStatus};
use mesh::enrol::Enrolment;
use pod_life::{Pods, Standing};

use super::cluster::{Cluster, KnownPod};

impl Cluster {
    /// The status of these pods, each with the reason why it is not enrolled.
    pub(crate) fn unpresented(&self, pods: &Pods) -> Vec<PodStatus> {
        let outside = |pod: KnownPod| {
            let reference = pod.reference();
            let uid = pod.workload.uid.to_string();
            let decision = self.decide(&reference);
            let is_missing =
                matches!(decision.outcome, Enrolment::Enrol(_)) && self.search.is_missing(&uid);
            let reason_code = decision.code.filter(|_| !is_missing);
            let reason = match decision.outcome {
                Enrolment::Skip | Enrolment::Unknown => decision.reason,
                Enrolment::Enrol(_) if is_missing => {
                    let code = error_code::agent::NOT_FOUND;
                    format!(
                        "{code}: {}, but no process of the pod was found",
                        decision.reason
                    )
                }
                Enrolment::Enrol(_) => {
                    format!("{}, but the pod has not started yet", decision.reason)
                }
            };
            PodStatus {
                namespace: reference.namespace,
                name: reference.name,
                uid: Some(uid),
                state: PodState::Skipped,
                reason,
                reason_code,
                ips: pod.workload.workload_ips.clone(),
                exempted_connections: 0,
                capabilities: Vec::new(),
                started_outside: None,
                exclusions: None,
                verification: None,
            }
        };
        let is_listed = |pod: &KnownPod| {
            let is_pod = |uid: Option<&str>| uid == Some(&*pod.workload.uid);
            let mut lives = pods.iter().map(|(_, life)| life);
            lives.any(|l| is_pod(l.uid()) && !matches!(l.standing(), Standing::Hidden))
        };
        self.pods()
            .into_iter()
            .filter(|pod| !is_listed(pod))
            .map(outside)
            .collect()
    }
}
