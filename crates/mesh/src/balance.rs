//! Choosing one endpoint of a service.

use crate::service::{HealthPolicy, LoadBalancerMode, Scope, Service};
use crate::snapshot::{Endpoint, Mesh};
use crate::workload::{HealthStatus, Workload};

/// Chooses an endpoint that serves `port` for `source`, by weight; `random` decides. `None` when there is none.
pub(crate) fn choose<'m>(
    mesh: &'m Mesh,
    service: &Service,
    port: u16,
    source: &Workload,
    random: u64,
) -> Option<(&'m Endpoint, u16)> {
    let balancer = &service.load_balancer;
    let candidates: Vec<(usize, &Endpoint, u16)> = mesh
        .endpoints(service)
        .iter()
        .filter(|e| balancer.health_policy == HealthPolicy::AllowAll || e.workload.status == HealthStatus::Healthy)
        .filter(|e| !e.workload.workload_ips.is_empty())
        .filter_map(|e| {
            Some((rank(&balancer.routing_preferences, source, &e.workload), e, target_port(service, e, port)?))
        })
        .collect();
    let wanted = match balancer.mode {
        LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => None,
        LoadBalancerMode::Strict => Some(balancer.routing_preferences.len()),
        LoadBalancerMode::Failover => candidates.iter().map(|(rank, ..)| *rank).max(),
    };
    let eligible: Vec<_> = candidates.into_iter().filter(|(rank, ..)| wanted.is_none_or(|w| *rank == w)).collect();
    let total: u64 = eligible.iter().map(|(_, e, _)| u64::from(e.workload.capacity)).sum();
    if total == 0 {
        return None;
    }
    let mut left = random % total;
    for (_, endpoint, port) in eligible {
        let weight = u64::from(endpoint.workload.capacity);
        if left < weight {
            return Some((endpoint, port));
        }
        left -= weight;
    }
    None
}

/// How many leading preferences two workloads have in common.
fn rank(preferences: &[Scope], a: &Workload, b: &Workload) -> usize {
    let same = |scope: &&Scope| match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    };
    preferences.iter().take_while(same).count()
}

/// The endpoint's own mapping goes before that of the service; 0 in the service's means "ask the endpoint".
fn target_port(service: &Service, endpoint: &Endpoint, port: u16) -> Option<u16> {
    endpoint.ports.get(port).or_else(|| service.ports.get(port)).filter(|p| *p != 0)
}
