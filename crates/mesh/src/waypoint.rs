//! Finding waypoints and gateways.

use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoints::Group;
use crate::gateway::{Destination, GatewayAddress, NamespacedHostname};
use crate::host::{Host, HostPort};
use crate::route::HBONE_PORT;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::Workload;

/// A gateway that was found.
pub(crate) struct Gateway<'m> {
    pub(crate) workload: &'m Arc<Workload>,
    /// Where it accepts HBONE.
    pub(crate) to: HostPort,
    /// The service that it was found as.
    pub(crate) service: Option<&'m Arc<Service>>,
}

/// The waypoint of a service; of several that share its traffic, the one that `random` chooses.
pub(crate) fn waypoint_of(service: &Service, random: u64) -> Option<&GatewayAddress> {
    let total: u64 = service.weighted_waypoints.iter().map(|w| u64::from(w.weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    // Not the bits that choose its endpoint.
    let mut point = random.rotate_left(32) % total;
    let chosen = service.weighted_waypoints.iter().find(|w| {
        let here = point < u64::from(w.weight);
        point = point.saturating_sub(u64::from(w.weight));
        here
    });
    chosen.map(|w| &w.waypoint)
}

/// Finds a workload that is this gateway, at an address of the same family as `like` if it has one; or says why there is
/// none.
pub(crate) fn find_gateway<'m>(
    mesh: &'m Mesh,
    source: &Workload,
    gateway: &GatewayAddress,
    like: IpAddr,
    random: u64,
    tried: &[Text],
) -> Result<Gateway<'m>, String> {
    let port = if gateway.hbone_mtls_port == 0 { HBONE_PORT } else { gateway.hbone_mtls_port };
    let group = match &gateway.destination {
        Destination::Address(at) => {
            if let Some(workload) = mesh.workload_by_ip(&at.network, at.address) {
                if tried.contains(&workload.uid) {
                    return Err(format!("{} was tried", gateway.destination));
                }
                let to = HostPort { host: Host::Address(at.address), port };
                return Ok(Gateway { workload, to, service: None });
            }
            mesh.group_by_vip(&at.network, at.address, &source.namespace)
        }
        Destination::Hostname(name) => mesh.group_by_name(name),
    };
    let Some(group) = group else { return Err(format!("{} is unknown", gateway.destination)) };
    let Some((workload, port)) = group.choose(port, source, random, tried) else {
        return Err(format!("no healthy upstream: {} has no endpoint for port {port}", gateway.destination));
    };
    let to = HostPort { host: Host::of(workload, like), port };
    Ok(Gateway { workload, to, service: group.service.as_ref() })
}

/// Whether a workload is this gateway itself.
pub(crate) fn is_gateway(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    let of_group = |group: Option<&Arc<Group>>| group.is_some_and(|g| g.contains(&workload.uid));
    match &gateway.destination {
        Destination::Address(at) => {
            let own = workload.network == at.network && workload.workload_ips.contains(&at.address);
            own || of_group(mesh.group_by_vip(&at.network, at.address, &workload.namespace))
        }
        Destination::Hostname(name) => of_group(mesh.group_by_name(name)),
    }
}

/// Whether a workload is one of a service's waypoints.
pub(crate) fn is_waypoint_of(mesh: &Mesh, workload: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|w| &w.waypoint);
    weighted.chain(&service.waypoint).any(|waypoint| is_gateway(mesh, workload, waypoint))
}

impl Mesh {
    pub(crate) fn group_by_name(&self, name: &NamespacedHostname) -> Option<&Arc<Group>> {
        let lower;
        let hostname = match name.hostname.bytes().any(|b| b.is_ascii_uppercase()) {
            true => {
                lower = name.hostname.to_ascii_lowercase();
                lower.as_str()
            }
            false => name.hostname.as_str(),
        };
        let groups = self.by_hostname.get(hostname)?.as_slice().iter().filter_map(|key| self.groups.get(key.as_str()));
        groups.into_iter().find(|g| g.service.as_ref().is_some_and(|s| s.namespace == name.namespace))
    }
}
