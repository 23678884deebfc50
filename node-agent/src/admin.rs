//! Status, metrics and readiness over HTTP.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use admin_http::{Answer, Asked, Reply, json, metrics, not_found, text};
use agent_status::{NodeStatus, PodState, PodStatus};
use http::{Method, StatusCode};

use crate::agent::Agent;
use crate::pods::Enrolled;
use crate::readiness::unready;
use crate::verifier;

/// Answers one request.
pub(crate) fn answer(agent: &Rc<Agent>, asked: &Asked<'_>) -> Reply {
    let answer = match asked.path {
        "/status" => json(&status(agent)),
        "/verify" if asked.method == Method::POST => return verify(agent, asked.query),
        "/verify" => text(StatusCode::METHOD_NOT_ALLOWED, "it probes now, so it takes a POST\n"),
        "/metrics" => {
            agent.metrics.verification_age.set(agent.verifier.borrow().age().as_secs_f64());
            metrics(agent.metrics.encode())
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match unready(agent) {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        _ => not_found(&["/status", "/verify?pod=NAMESPACE/NAME", "/metrics", "/healthz", "/readyz"]),
    };
    answer.into()
}

/// Looks at a pod now, as the timer does, and answers with what was found.
fn verify(agent: &Rc<Agent>, query: &str) -> Reply {
    // Names are DNS labels: nothing else in them can be escaped.
    let asked = query.split('&').find_map(|p| p.strip_prefix("pod=")).map(|pod| pod.replace("%2F", "/"));
    let Some((namespace, name)) = asked.as_deref().and_then(|pod| pod.split_once('/')) else {
        return text(StatusCode::BAD_REQUEST, "which pod? /verify?pod=NAMESPACE/NAME\n").into();
    };
    let is = |p: &&Enrolled| !p.record.leaving && p.record.pod.namespace == namespace && p.record.pod.name == name;
    let Some(uid) = agent.pods.borrow().enrolled().find(is).map(|p| p.record.uid.clone()) else {
        return not_enrolled(namespace, name).into();
    };
    let (agent, namespace, name) = (agent.clone(), namespace.to_owned(), name.to_owned());
    Reply::later(async move {
        verifier::look_now(&agent, &uid).await;
        // It may have left meanwhile.
        agent.pod(&uid).map_or_else(|| not_enrolled(&namespace, &name), |pod| json(&enrolled(&agent, &pod)))
    })
}

fn not_enrolled(namespace: &str, name: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("no pod {namespace}/{name} is enrolled on this node\n"))
}

fn enrolled(agent: &Agent, pod: &Enrolled) -> PodStatus {
    PodStatus {
        namespace: pod.record.pod.namespace.clone(),
        name: pod.record.pod.name.clone(),
        uid: Some(pod.record.uid.clone()),
        state: if pod.record.leaving { PodState::Leaving } else { PodState::Enrolled },
        reason: pod.record.reason.clone(),
        ips: pod.record.plan.addresses.clone(),
        exempted_connections: pod.record.exempted,
        verification: agent.verifier.borrow().status(&pod.record.uid),
    }
}

/// The node's clock, in milliseconds since 1970.
fn time_ms() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_millis()).ok())
}

fn status(agent: &Agent) -> NodeStatus {
    let pods = agent.pods.borrow();
    let skipped = pods.skipped().map(|p| PodStatus {
        namespace: p.pod.namespace.clone(),
        name: p.pod.name.clone(),
        uid: p.pod.uid.clone(),
        state: PodState::Skipped,
        reason: p.reason.clone(),
        ips: p.addresses.clone(),
        exempted_connections: 0,
        verification: None,
    });
    let unpresented = agent.facts.cluster().map(|c| c.unpresented(agent)).unwrap_or_default();
    NodeStatus {
        node: agent.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms: time_ms(),
        unready: unready(agent),
        plugin_missing: agent.install.missing(),
        capture: agent.capture.status(),
        proxies: agent.proxies.status(),
        host_probes: agent.host_probes.status(),
        pods: pods.enrolled().map(|p| enrolled(agent, p)).chain(skipped).chain(unpresented).collect(),
    }
}
