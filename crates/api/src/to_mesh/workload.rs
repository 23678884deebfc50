//! Workloads, with the defaults that empty fields stand for.

use mesh::gateway::{
    ApplicationTunnel, Destination, GatewayAddress, NamespacedHostname, NetworkAddress, TunnelProtocol,
};
use mesh::identity::DEFAULT_TRUST_DOMAIN;
use mesh::workload::{HealthStatus, Locality, Protocol, WorkloadType};
use mesh::{Ports, Text, Workload};

use super::{Malformed, ip, or_default, port, value};
use crate::workload as wire;

pub(super) fn workload(w: wire::Workload) -> Result<Workload, Malformed> {
    if w.uid.is_empty() {
        return Err(Malformed::Missing("uid"));
    }
    let services = w.services.into_iter().map(|(key, list)| Ok((Text::from(key), ports("services", &list.ports)?)));
    let workload_ips = w.addresses.iter().map(|a| ip("addresses", a));
    let locality = w.locality.unwrap_or_default();
    Ok(Workload {
        uid: w.uid.into(),
        workload_ips: workload_ips.collect::<Result<_, _>>()?,
        hostname: w.hostname.into(),
        protocol: match value("tunnel_protocol", w.tunnel_protocol)? {
            wire::TunnelProtocol::None => Protocol::Tcp,
            wire::TunnelProtocol::Hbone => Protocol::Hbone,
            wire::TunnelProtocol::LegacyIstioMtls => {
                return Err(Malformed::Value { field: "tunnel_protocol", value: w.tunnel_protocol });
            }
        },
        trust_domain: or_default(&w.trust_domain, DEFAULT_TRUST_DOMAIN).into(),
        service_account: or_default(&w.service_account, "default").into(),
        network: w.network.into(),
        waypoint: w.waypoint.map(|g| gateway("waypoint", g)).transpose()?,
        network_gateway: w.network_gateway.map(|g| gateway("network_gateway", g)).transpose()?,
        node: w.node.into(),
        workload_name: w.workload_name.into(),
        workload_type: match wire::WorkloadType::try_from(w.workload_type) {
            Ok(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
            Ok(wire::WorkloadType::Cronjob) => WorkloadType::Cronjob,
            Ok(wire::WorkloadType::Job) => WorkloadType::Job,
            // Of telemetry alone: a kind that is new is no reason to be without the workload.
            Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
        },
        canonical_name: w.canonical_name.into(),
        canonical_revision: w.canonical_revision.into(),
        cluster_id: or_default(&w.cluster_id, "Kubernetes").into(),
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        native_tunnel: w.native_tunnel,
        application_tunnel: w.application_tunnel.map(application_tunnel).transpose()?,
        authorization_policies: w.authorization_policies.into_iter().map(Text::from).collect(),
        status: match value("status", w.status)? {
            wire::WorkloadStatus::Healthy => HealthStatus::Healthy,
            wire::WorkloadStatus::Unhealthy => HealthStatus::Unhealthy,
        },
        capacity: w.capacity.map_or(1, |c| c.value),
        services: services.collect::<Result<_, Malformed>>()?,
        host_network: value::<wire::NetworkMode>("network_mode", w.network_mode)? == wire::NetworkMode::HostNetwork,
        name: w.name.into(),
        namespace: w.namespace.into(),
        ..Workload::default()
    })
}

pub(super) fn ports(field: &'static str, ports: &[wire::Port]) -> Result<Ports, Malformed> {
    ports.iter().map(|p| Ok((port(field, p.service_port)?, port(field, p.target_port)?))).collect()
}

pub(super) fn gateway(field: &'static str, gateway: wire::GatewayAddress) -> Result<GatewayAddress, Malformed> {
    let destination = match gateway.destination.ok_or(Malformed::Missing(field))? {
        wire::Destination::Address(a) => {
            let address = ip(field, &a.address)?;
            Destination::Address(NetworkAddress { network: a.network.into(), address })
        }
        wire::Destination::Hostname(h) => Destination::Hostname(NamespacedHostname {
            namespace: h.namespace.into(),
            hostname: h.hostname.to_ascii_lowercase().into(),
        }),
    };
    Ok(GatewayAddress { destination, hbone_mtls_port: port(field, gateway.hbone_mtls_port)? })
}

fn application_tunnel(tunnel: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Malformed> {
    let field = "application_tunnel";
    Ok(ApplicationTunnel {
        protocol: match value(field, tunnel.protocol)? {
            wire::ApplicationProtocol::None => TunnelProtocol::None,
            wire::ApplicationProtocol::Proxy => TunnelProtocol::Proxy,
        },
        port: Some(port(field, tunnel.port)?).filter(|p| *p != 0),
    })
}
