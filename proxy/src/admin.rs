//! Admin, metrics and readiness over HTTP.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use admin_http::{Answer, Asked, json, metrics, not_found, text};
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use crate::data::{Node, Phase};
use crate::inpod::{PodStatus, Pods};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: &'static str,
    ready: bool,
    connections: usize,
    pods: Vec<PodStatus>,
}

/// The admin interface, for people on the node.
pub(crate) fn admin(node: &Node, pods: &Pods, asked: &Asked<'_>) -> Answer {
    match asked.path {
        "/status" => json(&Status {
            version: env!("CARGO_PKG_VERSION"),
            ready: is_ready(node, pods),
            connections: node.connections.load(Ordering::Relaxed),
            pods: pods.status(),
        }),
        "/config_dump" => json(&config_dump(node, pods)),
        "/metrics" => metrics(node.metrics.encode()),
        _ => not_found(&["/status", "/config_dump", "/metrics"]),
    }
}

/// What a scraper asks for.
pub(crate) fn stats(node: &Node, asked: &Asked<'_>) -> Answer {
    match asked.path {
        "/metrics" | "/stats/prometheus" => metrics(node.metrics.encode()),
        _ => not_found(&["/metrics", "/stats/prometheus"]),
    }
}

/// What a kubelet asks for.
pub(crate) fn readiness(node: &Node, pods: &Pods, asked: &Asked<'_>) -> Answer {
    match asked.path {
        "/healthz/ready" if is_ready(node, pods) => text(StatusCode::OK, "ready\n"),
        "/healthz/ready" if *node.phase.borrow() != Phase::Serving => {
            text(StatusCode::INTERNAL_SERVER_ERROR, "not ready, stopping\n")
        }
        "/healthz/ready" => text(StatusCode::INTERNAL_SERVER_ERROR, "not ready, pending: workload proxy manager\n"),
        _ => not_found(&["/healthz/ready"]),
    }
}

fn is_ready(node: &Node, pods: &Pods) -> bool {
    pods.synced.get() && *node.phase.borrow() == Phase::Serving
}

fn config_dump(node: &Node, pods: &Pods) -> BTreeMap<&'static str, Value> {
    let mesh = node.mesh.load();
    fn list<T: Serialize>(items: impl Iterator<Item = T>) -> Value {
        items.filter_map(|i| serde_json::to_value(i).ok()).collect()
    }
    BTreeMap::from([
        ("workloads", list(mesh.workloads().map(|w| &**w))),
        ("services", list(mesh.services().map(|s| &**s))),
        ("policies", list(mesh.policies().map(|p| &**p))),
        ("pods", list(pods.status().into_iter())),
    ])
}
