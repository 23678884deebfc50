//! ADD: a pod starts in the mesh, or does not start.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use cni_spec::{Config, Environment, PrevResult};
use handoff::{Attachment, FromAgent, FromPlugin, PodRef};
use netns::NetNs;
use redirect::Plan;

use crate::agent::Agent;
use crate::failure::Failure;

/// How long an ADD may take in all.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs an ADD; returns what to print.
pub(crate) fn run(input: &[u8]) -> Result<String, Failure> {
    let environment = Environment::for_add(crate::variable)?;
    let config = Config::parse(input)?;
    let prev_result = PrevResult::parse(config.prev_result.clone().ok_or(Failure::NoPrevResult)?)?;
    let netns = pod_namespace(&environment)?;
    let unchanged = prev_result.to_output(&config.cni_version);
    let Some(pod) = kubernetes_pod(&environment) else {
        return Ok(unchanged);
    };
    if config.exclude_namespaces.contains(&pod.namespace) {
        return Ok(unchanged);
    }

    let limit = config.deadline_ms.map_or(DEADLINE, Duration::from_millis);
    let agent = Agent::connect(config.agent_socket.as_deref().unwrap_or(handoff::DEFAULT_SOCKET), limit)?;
    let hello = FromPlugin::Add {
        version: handoff::VERSION,
        attachment: Attachment { container_id: environment.container_id, ifname: environment.ifname },
        pod,
        addresses: prev_result.addresses().to_vec(),
        annotations: annotations(config.runtime_config.pod_annotations),
        netns_path: environment.netns,
        traceparent: crate::variable("TRACEPARENT"),
        deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    };
    agent.send(&hello, Some(netns.as_fd()))?;
    match agent.receive()? {
        FromAgent::Skip { reason } => {
            eprintln!("not enrolled: {reason}");
            Ok(unchanged)
        }
        FromAgent::Enrol { plan } => {
            enrol(&agent, &netns, &plan).inspect_err(|_| clean_up(&netns))?;
            Ok(unchanged)
        }
        other => Err(refusal(other)),
    }
}

/// Those that a plan looks at. One that is longer than any sensible value is cut, and the agent refuses it.
fn annotations(of_pod: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let longest = |text: String| text.chars().take(redirect::LONGEST_ANNOTATION + 1).collect();
    let known = of_pod.into_iter().filter(|(key, _)| redirect::ANNOTATIONS.contains(&key.as_str()));
    known.map(|(key, value)| (key, longest(value))).collect()
}

/// Installs the plan and waits until the proxy serves the pod.
fn enrol(agent: &Agent, netns: &NetNs, plan: &Plan) -> Result<(), Failure> {
    netns.run(|| redirect::apply(plan))??;
    agent.send(&FromPlugin::Installed, None)?;
    match agent.receive()? {
        FromAgent::Ready => Ok(()),
        other => {
            agent.await_close();
            Err(refusal(other))
        }
    }
}

/// A pod whose ADD failed keeps none of our rules.
fn clean_up(netns: &NetNs) {
    match netns.run(redirect::remove) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => eprintln!("rules of the failed ADD could not be removed: {}: {e}", e.code()),
        Err(e) => eprintln!("rules of the failed ADD could not be removed: {e}"),
    }
}

fn refusal(answer: FromAgent) -> Failure {
    match answer {
        FromAgent::Failed { code, why, next_step, retry } => Failure::Refused { code, why, next_step, retry },
        other => Failure::AgentConfused(format!("{other:?} is no answer here")),
    }
}

/// The pod's namespace, which must not be our own: rules there would redirect the node's traffic.
pub(crate) fn pod_namespace(environment: &Environment) -> Result<NetNs, Failure> {
    let path = environment.netns.clone().unwrap_or_default();
    let netns = NetNs::open(&path)?;
    if netns.id() == NetNs::current()?.id() {
        return Err(Failure::OwnNamespace(path.display().to_string()));
    }
    Ok(netns)
}

/// The pod as Kubernetes knows it; a container that is no pod is not ours.
pub(crate) fn kubernetes_pod(environment: &Environment) -> Option<PodRef> {
    let k = &environment.kubernetes;
    Some(PodRef { namespace: k.namespace.clone()?, name: k.name.clone()?, uid: k.uid.clone() })
}
