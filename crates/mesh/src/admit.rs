//! Whether what a peer asks for through a tunnel is here, and where exactly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::address::PodAddr;
use crate::decision::Decision;
use crate::gateway::TunnelProtocol;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::waypoint::{is_gateway, is_waypoint_of};
use crate::workload::Workload;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is for this pod.
    Here {
        /// What policies look at: the pod's address, and the port of its application.
        destination: PodAddr,
        /// Where the application is connected to.
        connect: SocketAddr,
        /// What the application is told first, in a PROXY protocol header.
        header: Option<Header>,
    },
    /// It is for somebody else: status 400.
    Mismatch,
    /// Nobody knows where it would go: status 503.
    Unavailable,
}

/// What an application behind an application tunnel is told of a connection, besides who the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The service that was addressed, if it is known.
    pub service: Option<Text>,
}

/// Decides what becomes of a request for `host` and `port` that has come to `own`, an address of `workload`.
pub fn admit(mesh: &Mesh, workload: &Workload, own: IpAddr, host: &str, port: u16) -> Decision<Admission> {
    let asked = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| ip.to_canonical());
    let (port_here, reason, wanted) = match asked {
        Ok(ip) => match reason_for_address(mesh, workload, own, ip) {
            Some(reason) => {
                let service = mesh.service_by_vip(&workload.network, ip, &workload.namespace);
                (port, reason, (SocketAddr::new(ip, port), service))
            }
            None => {
                let reason = format!("ip mismatch: {ip} is asked for and {own} is here");
                return Decision::new(Admission::Mismatch, reason);
            }
        },
        Err(_) => {
            let hostname = host.to_ascii_lowercase();
            let service = mesh.service_by_hostname(&hostname, &workload.namespace);
            let any_port = workload.application_tunnel.as_ref().is_some_and(|t| t.port.is_some());
            let waypoint = service.is_some_and(|s| is_waypoint_of(mesh, workload, s));
            let port_here = match mesh.target_port(workload, &hostname, port) {
                None if waypoint || any_port && service.is_some() => Some(port),
                target => target,
            };
            let Some(port_here) = port_here else {
                return Decision::new(Admission::Unavailable, format!("{host}:{port} is not served here"));
            };
            let wanted = service.and_then(|s| address_of(s, workload)).unwrap_or(own);
            (port_here, format!("{host} is served here"), (SocketAddr::new(wanted, port), service))
        }
    };
    let here = here(workload, own, port_here, wanted);
    Decision::new(here, reason)
}

fn reason_for_address(mesh: &Mesh, workload: &Workload, own: IpAddr, ip: IpAddr) -> Option<String> {
    if ip == own {
        return Some("it is the pod's own address".to_owned());
    }
    if workload.application_tunnel.is_some() {
        return Some("the pod has an application tunnel".to_owned());
    }
    if let Some(other) = mesh.workload_by_ip(&workload.network, ip) {
        let waypoint = other.waypoint.as_ref().is_some_and(|w| is_gateway(mesh, workload, w));
        return waypoint.then(|| format!("the pod is the waypoint of workload {}", other.namespaced_name()));
    }
    let service = mesh.service_by_vip(&workload.network, ip, &workload.namespace)?;
    is_waypoint_of(mesh, workload, service).then(|| format!("the pod is a waypoint of service {}", service.key()))
}

fn here(workload: &Workload, own: IpAddr, port: u16, wanted: (SocketAddr, Option<&Arc<Service>>)) -> Admission {
    let tunnel = workload.application_tunnel.as_ref();
    let port = tunnel.and_then(|t| t.port).unwrap_or(port);
    let destination = PodAddr(SocketAddr::new(own, port));
    match tunnel.map(|t| t.protocol) {
        Some(TunnelProtocol::Proxy) => {
            // The header says who the client is, so that its address is not needed; and loopback is not captured.
            let loopback = if own.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let header = Header { destination: wanted.0, service: wanted.1.map(|s| s.hostname.clone()) };
            Admission::Here { destination, connect: SocketAddr::new(loopback, port), header: Some(header) }
        }
        Some(TunnelProtocol::None) | None => Admission::Here { destination, connect: destination.0, header: None },
    }
}

/// One address that stands for a service: in the workload's network if there is one, IPv4 if there is one.
fn address_of(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let addresses = service.vips.iter().filter_map(|v| Some((v.network != workload.network, v.address()?)));
    addresses.min_by_key(|(elsewhere, ip)| (*elsewhere, ip.is_ipv6())).map(|(_, ip)| ip)
}
