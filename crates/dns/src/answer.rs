//! Resolution of names in the mesh. Pure: the input is a query, a mesh snapshot and the querying
//! pod.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use mesh::gateway::Vip;
use mesh::service::{HealthPolicy, IpFamilies, Service};
use mesh::workload::HealthStatus;
use mesh::{Mesh, Workload};

use crate::query::Query;

/// TTL of answers, in seconds; the same as ztunnel's.
const TTL: u32 = 30;

/// The querying pod and the mesh snapshot that answers it.
pub(super) struct QueryContext<'a> {
    pub(super) mesh: &'a Mesh,
    /// The workload of the querying pod.
    pub(super) workload: &'a Workload,
    /// Cluster domain, in lower case and without leading or trailing dots.
    pub(super) cluster_domain: &'a str,
}

/// How to answer a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// From the mesh, with the service's addresses of the queried family; possibly none.
    Mesh {
        service: Arc<Service>,
        addresses: Vec<IpAddr>,
    },
    /// By forwarding it to a name server, whose answer counts unless it is that the name does not
    /// exist.
    Forward(IfUnknown),
}

/// What replaces a name server's answer that a name does not exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfUnknown {
    /// Nothing: the mesh does not have the name either.
    Unknown,
    /// The answer that there are no records of the queried type.
    NoRecords,
    /// A service's addresses of the queried family; possibly none.
    Mesh(Vec<IpAddr>),
}

/// Decides how to answer a query.
pub(super) fn decide(query: &Query, context: &QueryContext<'_>) -> Resolution {
    let forward = Resolution::Forward(IfUnknown::Unknown);
    let Some(question) = query
        .question
        .as_ref()
        .filter(|q| q.query_class() == DNSClass::IN)
    else {
        return forward;
    };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let Some((service, is_certain)) = find_service(name.trim_end_matches('.'), context) else {
        return forward;
    };
    let Some(mut addresses) = addresses(service, context) else {
        return forward;
    };
    match question.query_type() {
        RecordType::A => addresses.retain(IpAddr::is_ipv4),
        RecordType::AAAA => addresses.retain(IpAddr::is_ipv6),
        _ => return Resolution::Forward(IfUnknown::NoRecords),
    }
    if is_certain {
        let service = service.clone();
        Resolution::Mesh { service, addresses }
    } else {
        Resolution::Forward(IfUnknown::Mesh(addresses))
    }
}

/// Finds the service of a name: by host name, by a short name expanded like in Kubernetes, or by a
/// wildcard. Returns also whether the name cannot be another one: every name in a query is
/// absolute, so `github.com` is not the service `github` of a namespace `com` if there is such a
/// domain.
fn find_service<'m>(name: &str, context: &QueryContext<'m>) -> Option<(&'m Arc<Service>, bool)> {
    let QueryContext {
        mesh,
        workload,
        cluster_domain: domain,
    } = context;
    let lookup = |hostname: &str| mesh.service_by_hostname(hostname, &workload.namespace);
    let expanded = match name.split('.').collect::<Vec<_>>()[..] {
        [_, _, "svc"] => Some((format!("{name}.{domain}"), true)),
        [_, _] => Some((format!("{name}.svc.{domain}"), false)),
        [_] => Some((format!("{name}.{}.svc.{domain}", workload.namespace), true)),
        _ => None,
    };
    let certain = |service| (service, true);
    let suffixes = || {
        name.match_indices('.')
            .map(|(at, _)| format!("*{}", &name[at..]))
    };
    let by_expansion = || {
        let (hostname, is_certain) = expanded?;
        Some((lookup(&hostname)?, is_certain))
    };
    lookup(name)
        .map(certain)
        .or_else(|| {
            suffixes()
                .find_map(|wildcard| lookup(&wildcard))
                .map(certain)
        })
        .or_else(by_expansion)
}

/// The addresses of a service in the pod's network; for a headless service of the cluster, those of
/// its workloads. `None` if the mesh has no addresses for it.
fn addresses(service: &Service, context: &QueryContext<'_>) -> Option<Vec<IpAddr>> {
    let network = &context.workload.network;
    let vips: Vec<IpAddr> = service
        .vips
        .iter()
        .filter(|v| v.network == *network)
        .filter_map(Vip::address)
        .collect();
    if !vips.is_empty() {
        return Some(vips);
    }
    let is_in_cluster = service
        .hostname
        .to_ascii_lowercase()
        .ends_with(&format!(".svc.{}", context.cluster_domain));
    if !service.vips.is_empty() || !is_in_cluster {
        return None;
    }
    let all = service.load_balancer.health_policy == HealthPolicy::AllowAll;
    let workloads = context.mesh.endpoints(service).map(|e| &e.workload);
    let ready =
        workloads.filter(|w| w.network == *network && (all || w.status == HealthStatus::Healthy));
    let families = service.ip_families.unwrap_or(IpFamilies::Dual);
    let mut addresses: Vec<IpAddr> = ready
        .flat_map(|w| w.workload_ips.iter().copied())
        .filter(|ip| families.contain(*ip))
        .collect();
    addresses.sort_unstable();
    Some(addresses)
}

/// Builds the answer with these addresses, rotated by `random`.
pub(super) fn message(query: &Query, mut addresses: Vec<IpAddr>, random: usize) -> Message {
    let mut answer = query.answer(ResponseCode::NoError);
    if answer.metadata.response_code != ResponseCode::NoError {
        return answer;
    }
    answer.metadata.authoritative = true;
    let first = random.checked_rem(addresses.len()).unwrap_or(0);
    addresses.rotate_left(first);
    let name = query
        .question
        .as_ref()
        .map(|q| q.name().clone())
        .unwrap_or_default();
    answer.add_answers(addresses.into_iter().map(|ip| {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(name.clone(), TTL, data)
    }));
    answer
}

#[cfg(test)]
mod tests;
