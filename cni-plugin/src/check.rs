//! CHECK: a pod is as ADD left it, or the error says what is not.

use std::time::Duration;

use cni_spec::{Config, Environment};
use handoff::{Attachment, FromAgent, FromPlugin};

use crate::add::{kubernetes_pod, pod_namespace};
use crate::agent::Agent;
use crate::failure::Failure;

/// The agent probes the proxy from within the pod, which takes a second for each family at most.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs a CHECK.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    let environment = Environment::for_add(crate::variable)?;
    let config = Config::parse(input)?;
    config.prev_result.as_ref().ok_or(Failure::NoPrevResult)?;
    pod_namespace(&environment)?;
    let Some(pod) = kubernetes_pod(&environment) else { return Ok(()) };
    if config.exclude_namespaces.contains(&pod.namespace) {
        return Ok(());
    }
    let limit = config.deadline_ms.map_or(DEADLINE, Duration::from_millis);
    let agent = Agent::connect(config.agent_socket.as_deref().unwrap_or(handoff::DEFAULT_SOCKET), limit)?;
    let attachment = Attachment { container_id: environment.container_id, ifname: environment.ifname };
    agent.send(&FromPlugin::Check { version: handoff::VERSION, attachment, pod }, None)?;
    match agent.receive()? {
        FromAgent::Ready | FromAgent::Skip { .. } => Ok(()),
        FromAgent::Failed { code, why, next_step, .. } => Err(Failure::Check { code, why, next_step }),
        other => Err(Failure::AgentConfused(format!("{other:?} is no answer here"))),
    }
}
