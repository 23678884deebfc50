//! ADD: enrols a starting pod; if that fails, the pod does not start.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use cni_spec::{Command, Environment, PrevResult};
use handoff::{FromAgent, FromPlugin};
use netns::NetNs;
use redirect::Plan;

use crate::agent::Agent;
use crate::call::{Call, attachment};
use crate::excluded::Excluded;
use crate::failure::Failure;

/// Runs an ADD; returns the result to print.
pub(crate) fn run(input: &[u8]) -> Result<String, Failure> {
    if let Some(excluded) = Excluded::read(crate::variable, input) {
        return Ok(excluded.result());
    }
    let mut call = Call::parse(Command::Add, crate::variable, input)?;
    let prev_result = PrevResult::parse(call.prev_result.clone())?;
    let netns = pod_namespace(&call.environment)?;
    let unchanged = prev_result.to_output(&call.config.cni_version);
    let Some(pod) = call.mesh_candidate() else {
        return Ok(unchanged);
    };
    let limit = call.limit();
    let agent =
        Agent::connect(call.config.agent_socket.as_deref(), limit).map_err(|e| e.delays(&pod))?;
    let request = FromPlugin::Add {
        version: handoff::VERSION,
        attachment: attachment(&call.environment),
        pod,
        addresses: prev_result.addresses().to_vec(),
        annotations: annotations(std::mem::take(
            &mut call.config.runtime_config.pod_annotations,
        )),
        netns_path: call.environment.netns,
        traceparent: crate::variable("TRACEPARENT"),
        deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    };
    agent.send(&request, Some(netns.as_fd()))?;
    match Verdict::from_answer(agent.receive()?)? {
        Verdict::Outside(reason) => crate::report(format_args!("pod not enrolled: {reason}")),
        Verdict::Enrol(plan) => {
            enrol(&agent, &netns, &plan).inspect_err(|_| clean_up(&netns))?;
        }
    }
    Ok(unchanged)
}

/// The agent's decision about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The pod starts outside the mesh, for this reason.
    Outside(String),
    /// The pod is enrolled with this plan.
    Enrol(Box<Plan>),
}

impl Verdict {
    fn from_answer(answer: FromAgent) -> Result<Self, Failure> {
        match answer {
            FromAgent::Skip { reason } => Ok(Self::Outside(reason)),
            FromAgent::Enrol { plan } => Ok(Self::Enrol(plan)),
            other => Err(Failure::from_answer(other, Failure::Refused)),
        }
    }
}

/// Selects the annotations that affect a plan. An overlong value is truncated to a length that the
/// agent still rejects.
fn annotations(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let truncate = |text: String| {
        text.chars()
            .take(redirect::MAX_ANNOTATION_CHARS + 1)
            .collect()
    };
    let known = all
        .into_iter()
        .filter(|(key, _)| redirect::ANNOTATIONS.contains(&key.as_str()));
    known.map(|(key, value)| (key, truncate(value))).collect()
}

/// Applies the plan and waits until the proxy serves the pod.
fn enrol(agent: &Agent, netns: &NetNs, plan: &Plan) -> Result<(), Failure> {
    netns.run(|| redirect::apply(plan))??;
    agent.send(&FromPlugin::Installed, None)?;
    match agent.receive()? {
        FromAgent::Ready => Ok(()),
        other => {
            agent.await_close();
            Err(Failure::from_answer(other, Failure::Refused))
        }
    }
}

/// Removes the rules of a failed ADD.
fn clean_up(netns: &NetNs) {
    match netns.run(redirect::remove) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => crate::report(format_args!(
            "cannot remove the rules of the failed ADD: {}: {e}",
            e.code()
        )),
        Err(e) => crate::report(format_args!(
            "cannot remove the rules of the failed ADD: {e}"
        )),
    }
}

/// Opens the pod's network namespace. It must not be the plugin's own, where rules would redirect
/// the node's traffic.
pub(crate) fn pod_namespace(environment: &Environment) -> Result<NetNs, Failure> {
    let path = environment.netns.clone().unwrap_or_default();
    let netns = NetNs::open(&path)?;
    if netns.id() == NetNs::current()?.id() {
        return Err(Failure::OwnNamespace(path.display().to_string()));
    }
    Ok(netns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::tests::{enrol, failed, skip};

    #[test]
    fn the_pod_starts_outside_the_mesh_only_if_the_agent_says_so() {
        let outside = Verdict::from_answer(skip()).unwrap();
        assert_eq!(outside, Verdict::Outside("no label".to_owned()));
        assert!(matches!(
            Verdict::from_answer(enrol()),
            Ok(Verdict::Enrol(_))
        ));
        for retry in [false, true] {
            let error = Verdict::from_answer(failed(retry)).unwrap_err();
            assert!(matches!(&error, Failure::Refused(e) if e.retry == retry));
        }
        // Ready before the rules are installed would be a pod without capture.
        for unexpected in [FromAgent::Ready, FromAgent::Gone] {
            assert!(matches!(
                Verdict::from_answer(unexpected),
                Err(Failure::UnexpectedReply(_))
            ));
        }
    }

    #[test]
    fn only_known_annotations_are_sent_and_overlong_values_stay_too_long() {
        let known = redirect::ANNOTATIONS[0];
        let long = "ä".repeat(redirect::MAX_ANNOTATION_CHARS + 9);
        let all = [(known, &*long), ("other/annotation", "x")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sent = annotations(all.into());
        assert_eq!(sent.keys().collect::<Vec<_>>(), [known]);
        let chars = sent[known].chars().count();
        assert_eq!(chars, redirect::MAX_ANNOTATION_CHARS + 1);
    }

    #[test]
    fn the_own_namespace_and_a_missing_one_are_not_a_pods() {
        let open = |path: Option<&str>| {
            let variables = |name: &str| path.filter(|_| name == "CNI_NETNS").map(str::to_owned);
            pod_namespace(&Environment::for_del(variables))
        };
        let own = open(Some("/proc/self/ns/net"));
        assert!(matches!(own, Err(Failure::OwnNamespace(_))));
        for path in [None, Some("/nonexistent"), Some("/proc/self/ns/uts")] {
            assert!(matches!(open(path), Err(Failure::NetNs(_))), "{path:?}");
        }
    }
}
