//! Conversion of workloads, including the defaults for fields that are empty or not understood.

use mesh::gateway::{
    ApplicationTunnel, Destination, GatewayAddress, NamespacedHostname, NetworkAddress,
    TunnelProtocol,
};
use mesh::identity::DEFAULT_TRUST_DOMAIN;
use mesh::workload::{HealthStatus, Locality, Protocol, WorkloadType};
use mesh::{Ports, Text, Workload};

use super::{MalformedResource, Notes, ip, or_default, port, understood, value};
use crate::workload as wire;

pub(super) fn workload(
    w: wire::Workload,
    notes: &mut Notes,
) -> Result<Workload, MalformedResource> {
    if w.uid.is_empty() {
        return Err(MalformedResource::Missing("uid"));
    }
    let addresses = w.addresses.iter().map(|a| ip("addresses", a));
    let locality = w.locality.unwrap_or_default();
    Ok(Workload {
        uid: w.uid.into(),
        workload_ips: addresses.filter_map(|a| understood(a, notes)).collect(),
        hostname: w.hostname.into(),
        protocol: protocol(w.tunnel_protocol, notes),
        trust_domain: or_default(&w.trust_domain, DEFAULT_TRUST_DOMAIN).into(),
        service_account: or_default(&w.service_account, "default").into(),
        network: w.network.into(),
        waypoint: w.waypoint.map(|g| gateway("waypoint", g, notes)),
        network_gateway: w
            .network_gateway
            .map(|g| gateway("network_gateway", g, notes)),
        node: w.node.into(),
        workload_name: w.workload_name.into(),
        workload_type: match understood(value("workload_type", w.workload_type), notes) {
            Some(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
            Some(wire::WorkloadType::Cronjob) => WorkloadType::Cronjob,
            Some(wire::WorkloadType::Job) => WorkloadType::Job,
            Some(wire::WorkloadType::Pod) | None => WorkloadType::Pod,
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
        application_tunnel: w.application_tunnel.map(|t| application_tunnel(t, notes)),
        authorization_policies: w
            .authorization_policies
            .into_iter()
            .map(Text::from)
            .collect(),
        status: match understood(value("status", w.status), notes) {
            Some(wire::WorkloadStatus::Healthy) => HealthStatus::Healthy,
            Some(wire::WorkloadStatus::Unhealthy) | None => HealthStatus::Unhealthy,
        },
        capacity: w.capacity.map_or(1, |c| c.value),
        services: w
            .services
            .into_iter()
            .map(|(key, list)| (Text::from(key), ports("services", &list.ports, notes)))
            .collect(),
        host_network: understood(value("network_mode", w.network_mode), notes)
            == Some(wire::NetworkMode::HostNetwork),
        name: w.name.into(),
        namespace: w.namespace.into(),
        ..Workload::default()
    })
}

/// Never plain text, unless the control plane says so in a way that is understood.
fn protocol(number: i32, notes: &mut Notes) -> Protocol {
    let field = "tunnel_protocol";
    match value(field, number) {
        Ok(wire::TunnelProtocol::None) => Protocol::Tcp,
        Ok(wire::TunnelProtocol::Hbone) => Protocol::Hbone,
        Ok(wire::TunnelProtocol::LegacyIstioMtls) | Err(_) => {
            let value = number;
            notes.push(MalformedResource::Value { field, value }.to_string());
            Protocol::Unsupported
        }
    }
}

/// Ports that are not understood are left out, so that nothing is sent to them.
pub(super) fn ports(field: &'static str, ports: &[wire::Port], notes: &mut Notes) -> Ports {
    let pair = |p: &wire::Port| Ok((port(field, p.service_port)?, port(field, p.target_port)?));
    ports
        .iter()
        .filter_map(|p| understood(pair(p), notes))
        .collect()
}

pub(super) fn gateway(
    field: &'static str,
    gateway: wire::GatewayAddress,
    notes: &mut Notes,
) -> GatewayAddress {
    let known = || {
        let destination = match gateway
            .destination
            .ok_or(MalformedResource::Missing(field))?
        {
            wire::Destination::Address(a) => Destination::Address(NetworkAddress {
                address: ip(field, &a.address)?,
                network: a.network.into(),
            }),
            wire::Destination::Hostname(h) => Destination::Hostname(NamespacedHostname {
                namespace: h.namespace.into(),
                hostname: h.hostname.to_ascii_lowercase().into(),
            }),
        };
        Ok((destination, port(field, gateway.hbone_mtls_port)?))
    };
    let known = understood(known(), notes);
    let (destination, hbone_mtls_port) = known.unwrap_or((Destination::NotUnderstood, 0));
    GatewayAddress {
        destination,
        hbone_mtls_port,
    }
}

fn application_tunnel(tunnel: wire::ApplicationTunnel, notes: &mut Notes) -> ApplicationTunnel {
    let field = "application_tunnel";
    let known = || Ok((value(field, tunnel.protocol)?, port(field, tunnel.port)?));
    let (protocol, port) = match understood(known(), notes) {
        Some((wire::ApplicationProtocol::None, port)) => (TunnelProtocol::None, port),
        Some((wire::ApplicationProtocol::Proxy, port)) => (TunnelProtocol::Proxy, port),
        None => (TunnelProtocol::Unsupported, 0),
    };
    ApplicationTunnel {
        protocol,
        port: Some(port).filter(|p| *p != 0),
    }
}
