//! Resolution of waypoints and gateways.

use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoints::Group;
use crate::gateway::{Destination, GatewayAddress, NamespacedHostname};
use crate::host::{Host, HostPort};
use crate::route::RouteQuery;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// A resolved gateway.
pub(crate) struct Gateway<'m> {
    pub(crate) workload: &'m Arc<Workload>,
    /// The host and port on which it accepts HBONE.
    pub(crate) to: HostPort,
    /// The service through which it was found, if any.
    pub(crate) service: Option<&'m Arc<Service>>,
}

/// Why no workload serves a gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GatewayError<'g> {
    /// The only workload at its address was tried before.
    #[error("{0} was already tried")]
    Tried(&'g Destination),
    /// No workload or service has its address or host name.
    #[error("{0} is unknown")]
    Unknown(&'g Destination),
    /// Its service has no healthy workload, or none that was not tried.
    #[error("no healthy upstream: {destination} has no endpoint for port {port}")]
    NoEndpoint {
        destination: &'g Destination,
        port: u16,
    },
}

/// The waypoint of a service; `random` chooses among several weighted ones.
pub(crate) fn waypoint_of(service: &Service, random: u64) -> Option<&GatewayAddress> {
    let total: u64 = service
        .weighted_waypoints
        .iter()
        .map(|w| u64::from(w.weight))
        .sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    // Use other bits than those that choose the endpoint.
    let mut point = random.rotate_left(32) % total;
    let chosen = service.weighted_waypoints.iter().find(|w| {
        let here = point < u64::from(w.weight);
        point = point.saturating_sub(u64::from(w.weight));
        here
    });
    chosen.map(|w| &w.waypoint)
}

/// Finds a workload for this gateway that was not tried before, preferably with an address of the
/// family of the original destination.
pub(crate) fn find_gateway<'m, 'g>(
    query: &RouteQuery<'m>,
    gateway: &'g GatewayAddress,
) -> Result<Gateway<'m>, GatewayError<'g>> {
    let (mesh, source, tried) = (query.mesh, query.source, query.tried);
    let destination = &gateway.destination;
    let port = if gateway.hbone_mtls_port == 0 {
        istio::port::HBONE
    } else {
        gateway.hbone_mtls_port
    };
    let group = match destination {
        Destination::Address(at) => {
            if let Some(workload) = mesh.workload_by_ip(&at.network, at.address) {
                if tried.contains(&workload.uid) {
                    return Err(GatewayError::Tried(destination));
                }
                let to = HostPort {
                    host: Host::Address(at.address),
                    port,
                };
                return Ok(Gateway {
                    workload,
                    to,
                    service: None,
                });
            }
            mesh.group_by_vip(&at.network, at.address, &source.namespace)
        }
        Destination::Hostname(name) => mesh.group_by_name(name),
        Destination::NotUnderstood => None,
    };
    let group = group.ok_or(GatewayError::Unknown(destination))?;
    let (workload, port) = group
        .choose(port, source, query.random, |w| query.is_untried(w))
        .ok_or(GatewayError::NoEndpoint { destination, port })?;
    let to = HostPort {
        host: Host::of(workload, query.orig_dst.ip()),
        port,
    };
    Ok(Gateway {
        workload,
        to,
        service: group.service.as_ref(),
    })
}

/// Whether the mesh names the workload at this address as the gateway of the network of `workload`.
/// Connections from other networks come through it.
pub fn is_gateway_of_network(mesh: &Mesh, address: IpAddr, workload: &Workload) -> bool {
    let Some(gateway) = &workload.network_gateway else {
        return false;
    };
    let is_member = |network: &str| {
        let at_address = mesh.workload_by_ip(network, address);
        at_address.is_some_and(|w| is_gateway(mesh, w, gateway))
    };
    match &gateway.destination {
        Destination::Address(at) => at.address == address || is_member(&at.network),
        Destination::Hostname(_) => is_member(&workload.network),
        Destination::NotUnderstood => false,
    }
}

/// Whether a workload is this gateway.
pub(crate) fn is_gateway(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    let of_group = |group: Option<&Arc<Group>>| group.is_some_and(|g| g.contains(&workload.uid));
    match &gateway.destination {
        Destination::Address(at) => {
            let own = workload.network == at.network && workload.workload_ips.contains(&at.address);
            own || of_group(mesh.group_by_vip(&at.network, at.address, &workload.namespace))
        }
        Destination::Hostname(name) => of_group(mesh.group_by_name(name)),
        Destination::NotUnderstood => false,
    }
}

/// Whether a workload is one of a service's waypoints.
pub(crate) fn is_waypoint_of(mesh: &Mesh, workload: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|w| &w.waypoint);
    weighted
        .chain(&service.waypoint)
        .any(|waypoint| is_gateway(mesh, workload, waypoint))
}

impl Mesh {
    pub(crate) fn group_by_name(&self, name: &NamespacedHostname) -> Option<&Arc<Group>> {
        let lower;
        let hostname = if name.hostname.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = name.hostname.to_ascii_lowercase();
            lower.as_str()
        } else {
            name.hostname.as_str()
        };
        let groups = self
            .by_hostname
            .get(hostname)?
            .as_slice()
            .iter()
            .filter_map(|key| self.groups.get(key.as_str()));
        groups.into_iter().find(|g| {
            g.service
                .as_ref()
                .is_some_and(|s| s.namespace == name.namespace)
        })
    }
}
