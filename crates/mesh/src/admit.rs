//! Decides whether the CONNECT destination of a tunnel is in this pod, and where to connect.

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

/// The outcome of a CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The destination is in this pod.
    Here {
        /// The destination for policies: the pod's address and the application's port.
        destination: PodAddr,
        /// The address that the proxy connects to.
        connect: SocketAddr,
        /// The PROXY protocol header to send first.
        header: Option<ProxyHeader>,
    },
    /// The destination is not in this pod: status 400.
    Mismatch,
    /// The destination is unknown: status 503.
    Unavailable,
}

/// Contents of the PROXY protocol header for an application tunnel, besides the client's address
/// and identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's original destination.
    pub destination: SocketAddr,
    /// The addressed service, if known.
    pub service: Option<Text>,
}

/// Splits a CONNECT authority into host and port. Anything else than `HOST:PORT` is invalid, such
/// as user information before the host.
pub fn host_and_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_number = port.bytes().all(|b| b.is_ascii_digit());
    if host.is_empty() || host.contains('@') || host.contains(':') && !is_bracketed || !is_number {
        return None;
    }
    Some((host, port.parse().ok()?))
}

/// Decides about a CONNECT request for `host:port` that arrived at `own`, an address of
/// `workload`.
pub fn admit(
    mesh: &Mesh,
    workload: &Workload,
    own: IpAddr,
    host: &str,
    port: u16,
) -> Decision<Admission> {
    let tunnel = workload.application_tunnel.as_ref();
    if tunnel.is_some_and(|t| t.protocol == TunnelProtocol::Unsupported) {
        let reason = format!(
            "this version does not understand the application tunnel of {}",
            workload.uid
        );
        return Decision::new(Admission::Unavailable, reason);
    }
    let requested_ip = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .map(|ip| ip.to_canonical());
    let (port_here, reason, wanted) = match requested_ip {
        Ok(ip) => match reason_for_address(mesh, workload, own, ip) {
            Some(reason) => {
                let service = mesh.service_by_vip(&workload.network, ip, &workload.namespace);
                (port, reason, (SocketAddr::new(ip, port), service))
            }
            None => {
                let reason = format!("ip mismatch: requested {ip}, but this pod has {own}");
                return Decision::new(Admission::Mismatch, reason);
            }
        },
        Err(_) => {
            // A name with a dot at the end is the same, but absolute.
            let hostname = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            let groups = mesh.groups_by_hostname(&hostname, &workload.namespace);
            let services = || groups.iter().filter_map(|group| group.service.as_ref());
            let with_port = services().find(|s| s.ports.get(port).is_some());
            let service = with_port.or_else(|| services().next());
            let any_port = workload
                .application_tunnel
                .as_ref()
                .is_some_and(|t| t.port.is_some());
            let waypoint = services().any(|s| is_waypoint_of(mesh, workload, s));
            let port_here = match mesh.target_port(workload, &hostname, port) {
                None if waypoint || any_port && service.is_some() => Some(port),
                target => target,
            };
            let Some(port_here) = port_here else {
                return Decision::new(
                    Admission::Unavailable,
                    format!("this pod does not serve {host}:{port}"),
                );
            };
            let wanted = service.and_then(|s| address_of(s, workload)).unwrap_or(own);
            (
                port_here,
                format!("this pod serves {host}"),
                (SocketAddr::new(wanted, port), service),
            )
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
        let waypoint = other
            .waypoint
            .as_ref()
            .is_some_and(|w| is_gateway(mesh, workload, w));
        return waypoint.then(|| {
            format!(
                "the pod is the waypoint of workload {}",
                other.namespaced_name()
            )
        });
    }
    let range = mesh.group_by_vip(&workload.network, ip, &workload.namespace);
    let all = mesh.groups_by_vip(&workload.network, ip, &workload.namespace);
    let mut services = all
        .into_iter()
        .chain(range)
        .filter_map(|g| g.service.as_ref());
    let service = services.find(|s| is_waypoint_of(mesh, workload, s))?;
    Some(format!(
        "the pod is a waypoint of service {}",
        service.key()
    ))
}

fn here(
    workload: &Workload,
    own: IpAddr,
    port: u16,
    wanted: (SocketAddr, Option<&Arc<Service>>),
) -> Admission {
    let tunnel = workload.application_tunnel.as_ref();
    let port = tunnel.and_then(|t| t.port).unwrap_or(port);
    let destination = PodAddr(SocketAddr::new(own, port));
    match tunnel.map(|t| t.protocol) {
        Some(TunnelProtocol::Proxy) => {
            // The header carries the client's address, so the connection need not come from it.
            // Loopback is not captured.
            let loopback = if own.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            let header = ProxyHeader {
                destination: wanted.0,
                service: wanted.1.map(|s| s.hostname.clone()),
            };
            Admission::Here {
                destination,
                connect: SocketAddr::new(loopback, port),
                header: Some(header),
            }
        }
        Some(TunnelProtocol::None | TunnelProtocol::Unsupported) | None => Admission::Here {
            destination,
            connect: destination.0,
            header: None,
        },
    }
}

/// An address of a service, preferably in the workload's network, then preferably IPv4.
fn address_of(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let addresses = service
        .vips
        .iter()
        .filter_map(|v| Some((v.network != workload.network, v.address()?)));
    addresses
        .min_by_key(|(elsewhere, ip)| (*elsewhere, ip.is_ipv6()))
        .map(|(_, ip)| ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_a_port_and_nothing_else() {
        for (text, expected) in [
            ("10.0.0.1:80", Some(("10.0.0.1", 80))),
            ("[fd00::1]:65535", Some(("[fd00::1]", 65535))),
            (
                "web.default.svc.cluster.local.:80",
                Some(("web.default.svc.cluster.local.", 80)),
            ),
            ("user@10.0.0.1:80", None),
            ("user:password@10.0.0.1:80", None),
            ("10.0.0.1:+80", None),
            ("10.0.0.1:", None),
            ("10.0.0.1", None),
            (":80", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:80/", None),
            ("fd00::1:80", None),
        ] {
            assert_eq!(host_and_port(text), expected, "{text}");
        }
    }
}
