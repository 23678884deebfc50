//! `/config_dump`, in the shape of ztunnel's, which `istioctl ztunnel-config` reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh::gateway::Vip;
use mesh::{Identity, Mesh, Policy, Service, Workload};
use serde::Serialize;
use serde_json::{Value, json};

use crate::effective::Effective;
use crate::identity::{self, Held};
use crate::inpod::PodStatus;
use crate::telemetry::{Direction, Facts, Open};

/// What is dumped.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dump<'a> {
    pub(crate) workloads: Vec<&'a Arc<Workload>>,
    pub(crate) services: Vec<DumpedService<'a>>,
    pub(crate) policies: Vec<&'a Arc<Policy>>,
    /// Services that workloads belong to and that nobody has told of, with these workloads.
    pub(crate) staged_services: Value,
    pub(crate) certificates: Vec<identity::Dump>,
    /// The pods of this node, by uid.
    pub(crate) workload_state: BTreeMap<String, Value>,
    /// The settings in force.
    pub(crate) config: &'a Effective,
    /// What was given besides the control plane: nothing ever is.
    pub(crate) static_config: Value,
    pub(crate) version: Value,
}

/// A service with its endpoints, by uid.
#[derive(Serialize)]
pub(crate) struct DumpedService<'a> {
    #[serde(flatten)]
    service: Value,
    endpoints: BTreeMap<&'a str, Value>,
}

impl<'a> Dump<'a> {
    /// Everything of a snapshot, and what is held for its pods.
    pub(crate) fn new(
        mesh: &'a Mesh,
        certificates: &[(Identity, Held)],
        pods: &[PodStatus],
        open: &[Arc<Open>],
        config: &'a Effective,
    ) -> Self {
        let staged = mesh.staged_services();
        Self {
            workloads: mesh.workloads().collect(),
            services: mesh.services().map(|s| service(mesh, s)).collect(),
            policies: mesh.policies().collect(),
            staged_services: json!(staged.into_iter().map(|(k, v)| (k.as_str(), v)).collect::<BTreeMap<_, _>>()),
            certificates: certificates.iter().map(|(identity, held)| identity::Dump::new(identity, held)).collect(),
            workload_state: pods.iter().map(|pod| state(pod, open)).collect(),
            config,
            static_config: json!({ "workloads": [], "services": [], "policies": [] }),
            version: json!({ "version": env!("CARGO_PKG_VERSION"), "component": "underpass-proxy" }),
        }
    }
}

fn service<'a>(mesh: &'a Mesh, service: &Service) -> DumpedService<'a> {
    let key = service.key();
    let endpoints = mesh.endpoints(service).map(|e| {
        let uid = e.workload.uid.as_str();
        (uid, json!({ "workloadUid": uid, "service": key, "port": e.ports, "status": e.workload.status }))
    });
    let mut value = json!(service);
    // Ranges stand apart from addresses, for readers that know addresses only.
    let (ranges, addresses): (Vec<&Vip>, Vec<&Vip>) = service.vips.iter().partition(|v| v.address().is_none());
    value["vips"] = addresses.iter().map(|v| json!(v)).collect();
    if !ranges.is_empty() {
        value["cidrVips"] = ranges.iter().map(|v| json!({ "network": v.network, "cidr": v.net })).collect();
    }
    DumpedService { service: value, endpoints: endpoints.collect() }
}

/// A pod with its open connections.
fn state(pod: &PodStatus, open: &[Arc<Open>]) -> (String, Value) {
    let of_pod = |direction: Direction| {
        let own = open.iter().filter(|o| o.facts.direction == direction && is_of(pod, &o.facts));
        own.map(|o| connection(o)).collect::<Value>()
    };
    let info = json!({
        "name": pod.name,
        "namespace": pod.namespace,
        "trustDomain": pod.identity.trust_domain,
        "serviceAccount": pod.identity.service_account,
    });
    let connections = json!({ "inbound": of_pod(Direction::Inbound), "outbound": of_pod(Direction::Outbound) });
    (pod.uid.clone(), json!({ "state": "Up", "info": info, "connections": connections }))
}

fn is_of(pod: &PodStatus, facts: &Facts) -> bool {
    let own = match facts.direction {
        Direction::Outbound => &facts.source,
        Direction::Inbound => &facts.destination,
    };
    own.workload.as_ref().is_some_and(|name| *name == *pod.name) && own.attributes.namespace == *pod.namespace
}

fn connection(open: &Open) -> Value {
    let facts = &open.facts;
    let peer = match facts.direction {
        Direction::Outbound => &facts.destination,
        Direction::Inbound => &facts.source,
    };
    let actual = facts.destination_addr;
    json!({
        "src": facts.client.to_string(),
        "originalDst": facts.asked_for.to_string(),
        "actualDst": actual.to_string(),
        "protocol": if facts.authority.is_some() { "HBONE" } else { "TCP" },
        "peerIdentity": peer.identity.as_ref().map(ToString::to_string),
        "service": facts.service.as_ref().map(|s| s.hostname.clone()),
        "bytesReceived": open.received.load(Ordering::Relaxed),
        "bytesSent": open.sent.load(Ordering::Relaxed),
        "ageMs": u64::try_from(open.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}
