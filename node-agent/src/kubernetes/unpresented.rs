//! Pods of this node that no runtime has presented: they have the node's network, have finished, are excluded, or are older
//! than the agent.

use agent_status::{PodState, PodStatus};
use mesh::enrol::Enrolment;

use super::facts::{Cluster, KnownPod};
use crate::agent::Agent;

impl Cluster {
    /// These pods, each with why it is outside.
    pub(crate) fn unpresented(&self, agent: &Agent) -> Vec<PodStatus> {
        let outside = |pod: KnownPod| {
            let reference = pod.reference();
            let uid = pod.workload.uid.to_string();
            let decision = self.decide(&reference);
            let reason = match decision.outcome {
                Enrolment::Skip | Enrolment::Unknown => decision.reason,
                Enrolment::Enrol(_) if self.search.missed(&uid) => {
                    format!("{}: {}, and no process of it was found", error_code::agent::NOT_FOUND, decision.reason)
                }
                Enrolment::Enrol(_) => format!("{}, and it has not started yet", decision.reason),
            };
            PodStatus {
                namespace: reference.namespace,
                name: reference.name,
                uid: Some(uid),
                state: PodState::Skipped,
                reason,
                ips: pod.workload.workload_ips.clone(),
                exempted_connections: 0,
                verification: None,
            }
        };
        let known = agent.known_uids();
        self.pods().into_iter().filter(|pod| !known.contains(&*pod.workload.uid)).map(outside).collect()
    }
}
