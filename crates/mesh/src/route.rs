//! Where a connection that a pod opens goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::{OrigDst, PodAddr, TunnelAddr};
use crate::balance::choose;
use crate::decision::Decision;
use crate::service::{LoadBalancerMode, Service};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::{Protocol, Workload};

/// The port on which every proxy accepts HBONE.
pub const HBONE_PORT: u16 = 15008;

/// The way to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Through a tunnel.
    Tunnel {
        /// The proxy at the other end.
        tunnel: TunnelAddr,
        /// What the tunnel leads to.
        authority: PodAddr,
        /// SPIFFE ids, one of which the other end must prove.
        expected: Vec<Text>,
        /// The workload there.
        workload: Arc<Workload>,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
    /// In plain text.
    Direct {
        /// Where to.
        to: PodAddr,
        /// The workload there, if it is known.
        workload: Option<Arc<Workload>>,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
    /// Nowhere.
    Refuse {
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
}

/// Decides where a connection of `source` to `orig_dst` goes. `random` chooses among endpoints.
pub fn route(mesh: &Mesh, source: &Workload, orig_dst: OrigDst, random: u64) -> Decision<Route> {
    let network = source.network.as_str();
    if let Some(service) = mesh.service_by_vip(network, orig_dst.ip()) {
        return to_service(mesh, source, orig_dst, service, random);
    }
    match mesh.workload_by_ip(network, orig_dst.ip()) {
        Some(workload) => {
            let reason = format!("{} is workload {}", orig_dst.ip(), workload.namespaced_name());
            to_workload(workload, orig_dst.0, None, reason)
        }
        None => {
            let direct = Route::Direct { to: PodAddr(orig_dst.0), workload: None, service: None };
            Decision::new(direct, format!("{} is not in the mesh", orig_dst.ip()))
        }
    }
}

fn to_service(
    mesh: &Mesh,
    source: &Workload,
    orig_dst: OrigDst,
    service: &Arc<Service>,
    random: u64,
) -> Decision<Route> {
    let key = service.key();
    if service.load_balancer.mode == LoadBalancerMode::Passthrough {
        let direct = Route::Direct { to: PodAddr(orig_dst.0), workload: None, service: Some(service.clone()) };
        return Decision::new(direct, format!("service {key} is passed through"));
    }
    let chosen = choose(mesh, service, orig_dst.port(), source, random).and_then(|(endpoint, port)| {
        let ip = address_of_family(&endpoint.workload, orig_dst.ip())?;
        Some((endpoint, SocketAddr::new(ip, port)))
    });
    match chosen {
        Some((endpoint, to)) => {
            let reason = format!("service {key} is served by workload {}", endpoint.workload.namespaced_name());
            to_workload(&endpoint.workload, to, Some(service), reason)
        }
        None => {
            let considered = vec![format!("service {key} has {} endpoints", mesh.endpoints(service).len())];
            let reason = format!("no healthy upstream: service {key} has no endpoint for port {}", orig_dst.port());
            Decision::new(Route::Refuse { service: Some(service.clone()) }, reason).after(considered)
        }
    }
}

fn to_workload(
    workload: &Arc<Workload>,
    to: SocketAddr,
    service: Option<&Arc<Service>>,
    reason: String,
) -> Decision<Route> {
    match workload.protocol {
        Protocol::Hbone => {
            let mut expected = service.map(|s| s.subject_alt_names.clone()).unwrap_or_default();
            expected.push(workload.identity().to_string().into());
            let route = Route::Tunnel {
                tunnel: TunnelAddr(SocketAddr::new(to.ip(), HBONE_PORT)),
                authority: PodAddr(to),
                expected,
                workload: workload.clone(),
                service: service.cloned(),
            };
            Decision::new(route, format!("{reason}, reached by HBONE"))
        }
        Protocol::Tcp => {
            let route = Route::Direct { to: PodAddr(to), workload: Some(workload.clone()), service: service.cloned() };
            Decision::new(route, format!("{reason}, not in the mesh"))
        }
    }
}

/// An address of the caller's family where there is one.
fn address_of_family(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let ips = &workload.workload_ips;
    ips.iter().find(|ip| ip.is_ipv6() == like.is_ipv6()).or(ips.first()).copied()
}
