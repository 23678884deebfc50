//! Status, metrics and readiness over HTTP.

use std::net::IpAddr;
use std::time::Instant;

use admin_http::{Answer, Asked, json, metrics, not_found, text};
use http::StatusCode;
use serde::Serialize;

use crate::agent::Agent;
use crate::capture_choice::Choice;
use crate::verification::VerificationStatus;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    node: &'a str,
    version: &'static str,
    capture: &'a Choice,
    proxies: Vec<crate::proxies::ProxyStatus>,
    pods: Vec<PodStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    namespace: String,
    name: String,
    uid: Option<String>,
    state: &'static str,
    reason: String,
    ips: Vec<IpAddr>,
    exempted_connections: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<VerificationStatus>,
}

/// Answers one request.
pub(crate) fn answer(agent: &Agent, asked: &Asked<'_>) -> Answer {
    match asked.path {
        "/status" => json(&status(agent)),
        "/metrics" => metrics(agent.metrics.encode()),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if agent.proxies.any_synced() => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no proxy has taken the snapshot\n"),
        _ => not_found(&["/status", "/metrics", "/healthz", "/readyz"]),
    }
}

fn status(agent: &Agent) -> Status<'_> {
    let pods = agent.pods.borrow();
    let enrolled = pods.enrolled().map(|p| PodStatus {
        namespace: p.record.pod.namespace.clone(),
        name: p.record.pod.name.clone(),
        uid: Some(p.record.uid.clone()),
        state: if p.record.leaving { "leaving" } else { "enrolled" },
        reason: p.record.reason.clone(),
        ips: p.record.plan.addresses.clone(),
        exempted_connections: p.record.exempted,
        verification: agent.verifier.borrow().of(&p.record.uid).map(|v| v.status(Instant::now())),
    });
    let skipped = pods.skipped().map(|p| PodStatus {
        namespace: p.pod.namespace.clone(),
        name: p.pod.name.clone(),
        uid: p.pod.uid.clone(),
        state: "skipped",
        reason: p.reason.clone(),
        ips: p.addresses.clone(),
        exempted_connections: 0,
        verification: None,
    });
    Status {
        node: &agent.node,
        version: env!("CARGO_PKG_VERSION"),
        capture: &agent.capture,
        proxies: agent.proxies.status(),
        pods: enrolled.chain(skipped).collect(),
    }
}
