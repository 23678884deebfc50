//! `/config_dump`, in the format of ztunnel's, which `istioctl ztunnel-config` reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use identity::{CertificateDump, CertificateState};
use mesh::gateway::Vip;
use mesh::{Identity, Mesh, Service};
use serde_json::{Value, json};
use telemetry::{ConnectionFacts, Direction, OpenConnection};

use crate::effective::EffectiveSettings;
use crate::inpod::ServedPodStatus;

/// Dumps a mesh snapshot, and the certificates and connections of this node's pods.
pub(crate) fn config_dump(
    mesh: &Mesh,
    certificates: &[(Identity, CertificateState)],
    pods: &[ServedPodStatus],
    open: &[Arc<OpenConnection>],
    config: &EffectiveSettings,
) -> Value {
    let certificate = |(identity, state): &(Identity, CertificateState)| {
        json!(CertificateDump::new(identity, state))
    };
    // Services not received yet that workloads refer to, with those workloads.
    let staged = mesh.staged_services().into_iter();
    let staged: BTreeMap<_, _> = staged.map(|(key, uids)| (key.as_str(), uids)).collect();
    let pods: BTreeMap<_, _> = pods.iter().map(|pod| pod_state(pod, open)).collect();
    json!({
        "workloads": mesh.workloads().collect::<Vec<_>>(),
        "services": mesh.services().map(|s| service(mesh, s)).collect::<Value>(),
        "policies": mesh.policies().collect::<Vec<_>>(),
        "stagedServices": staged,
        "certificates": certificates.iter().map(certificate).collect::<Value>(),
        "workloadState": pods,
        "config": config,
        // Configuration from other sources than the control plane: there is none.
        "staticConfig": { "workloads": [], "services": [], "policies": [] },
        "version": { "version": env!("CARGO_PKG_VERSION"), "component": "underpass-proxy" },
    })
}

/// Dumps a service with its endpoints, by workload uid.
fn service(mesh: &Mesh, service: &Service) -> Value {
    let key = service.key();
    let endpoints = mesh.endpoints(service).map(|e| {
        let uid = e.workload.uid.as_str();
        (
            uid,
            json!({
                "workloadUid": uid,
                "service": key,
                "port": e.ports,
                "status": e.workload.status,
            }),
        )
    });
    let mut value = json!(service);
    // Ranges are listed apart from addresses, for readers that only support addresses.
    let (ranges, addresses): (Vec<&Vip>, Vec<&Vip>) =
        service.vips.iter().partition(|v| v.address().is_none());
    value["vips"] = addresses.iter().map(|v| json!(v)).collect();
    if !ranges.is_empty() {
        value["cidrVips"] = ranges
            .iter()
            .map(|v| json!({ "network": v.network, "cidr": v.net }))
            .collect();
    }
    value["endpoints"] = json!(endpoints.collect::<BTreeMap<_, _>>());
    value
}

/// Dumps a pod with its open connections.
fn pod_state(pod: &ServedPodStatus, open: &[Arc<OpenConnection>]) -> (String, Value) {
    let connections = |direction: Direction| {
        let own = open
            .iter()
            .filter(|o| o.facts.direction == direction && belongs_to(pod, &o.facts));
        own.map(|o| connection(o)).collect::<Value>()
    };
    let info = json!({
        "name": pod.name,
        "namespace": pod.namespace,
        "trustDomain": pod.identity.trust_domain,
        "serviceAccount": pod.identity.service_account,
    });
    let connections = json!({
        "inbound": connections(Direction::Inbound),
        "outbound": connections(Direction::Outbound),
    });
    (
        pod.uid.clone(),
        json!({ "state": "Up", "info": info, "connections": connections }),
    )
}

fn belongs_to(pod: &ServedPodStatus, facts: &ConnectionFacts) -> bool {
    let own = match facts.direction {
        Direction::Outbound => &facts.source,
        Direction::Inbound => &facts.destination,
    };
    own.workload.as_ref().is_some_and(|name| *name == *pod.name)
        && own.attributes.namespace == *pod.namespace
}

fn connection(open: &OpenConnection) -> Value {
    let facts = &open.facts;
    let peer = match facts.direction {
        Direction::Outbound => &facts.destination,
        Direction::Inbound => &facts.source,
    };
    let actual = facts.destination_addr;
    json!({
        "src": facts.client.to_string(),
        "originalDst": facts.requested_addr.to_string(),
        "actualDst": actual.to_string(),
        "protocol": if facts.authority.is_some() { "HBONE" } else { "TCP" },
        "peerIdentity": peer.identity.as_ref().map(ToString::to_string),
        "service": facts.service.as_ref().map(|s| s.hostname.clone()),
        "bytesReceived": open.received.load(Ordering::Relaxed),
        "bytesSent": open.sent.load(Ordering::Relaxed),
        "ageMs": u64::try_from(open.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}
