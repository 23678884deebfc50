//! Conversion of services, including the defaults for values that are not understood.

use mesh::gateway::{Vip, WeightedWaypoint};
use mesh::service::{HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, Scope, Visibility};
use mesh::{Service, Text};

use super::workload::{gateway, ports};
use super::{MalformedResource, Notes, ip, net, understood, value};
use crate::workload as wire;

pub(super) fn service(s: wire::Service, notes: &mut Notes) -> Result<Service, MalformedResource> {
    if s.hostname.is_empty() {
        return Err(MalformedResource::Missing("hostname"));
    }
    let vips = s.addresses.into_iter();
    let weighted = s.weighted_waypoints.into_iter();
    Ok(Service {
        name: s.name.into(),
        namespace: s.namespace.into(),
        hostname: s.hostname.into(),
        vips: vips.filter_map(|a| understood(vip(a), notes)).collect(),
        ports: ports("ports", &s.ports, notes),
        subject_alt_names: s.subject_alt_names.into_iter().map(Text::from).collect(),
        waypoint: s.waypoint.map(|w| gateway("waypoint", w, notes)),
        weighted_waypoints: weighted
            .map(|w| WeightedWaypoint {
                waypoint: gateway(
                    "weighted_waypoints",
                    w.destination.unwrap_or_default(),
                    notes,
                ),
                weight: w.weight,
            })
            .collect(),
        ingress_use_waypoint: s.ingress_use_waypoint,
        load_balancer: load_balancer(s.load_balancing.unwrap_or_default(), notes),
        ip_families: match understood(value("ip_families", s.ip_families), notes) {
            Some(wire::IpFamilies::Automatic) | None => None,
            Some(wire::IpFamilies::Ipv4Only) => Some(IpFamilies::IPv4),
            Some(wire::IpFamilies::Ipv6Only) => Some(IpFamilies::IPv6),
            Some(wire::IpFamilies::Dual) => Some(IpFamilies::Dual),
        },
        canonical: s.canonical,
        // An invisible service's address would be reached in plain text.
        visibility: match understood(value("visibility", s.visibility), notes) {
            Some(wire::Visibility::Namespace) => Visibility::Namespace,
            Some(wire::Visibility::Public) | None => Visibility::Public,
        },
    })
}

fn vip(address: wire::NetworkAddress) -> Result<Vip, MalformedResource> {
    let field = "addresses";
    match address.length {
        None => Ok(Vip::single(address.network, ip(field, &address.address)?)),
        Some(length) => Ok(Vip {
            network: address.network.into(),
            net: net(field, &address.address, length)?,
        }),
    }
}

/// With a mode or a preference that is not understood, the choice is among fewer endpoints or by
/// other preferences, but always among the service's own.
fn load_balancer(lb: wire::LoadBalancing, notes: &mut Notes) -> LoadBalancer {
    let scope = |scope| match scope {
        wire::Scope::Unspecified => None,
        wire::Scope::Region => Some(Scope::Region),
        wire::Scope::Zone => Some(Scope::Zone),
        wire::Scope::Subzone => Some(Scope::Subzone),
        wire::Scope::Node => Some(Scope::Node),
        wire::Scope::Cluster => Some(Scope::Cluster),
        wire::Scope::Network => Some(Scope::Network),
    };
    let preferences = lb.routing_preference.into_iter();
    LoadBalancer {
        routing_preferences: preferences
            .filter_map(|n| understood(value("load_balancing.routing_preference", n), notes))
            .filter_map(scope)
            .collect(),
        mode: match understood(value("load_balancing.mode", lb.mode), notes) {
            Some(wire::Mode::Unspecified) | None => LoadBalancerMode::Standard,
            Some(wire::Mode::Strict) => LoadBalancerMode::Strict,
            Some(wire::Mode::Failover) => LoadBalancerMode::Failover,
            Some(wire::Mode::Passthrough) => LoadBalancerMode::Passthrough,
        },
        health_policy: match understood(
            value("load_balancing.health_policy", lb.health_policy),
            notes,
        ) {
            Some(wire::HealthPolicy::OnlyHealthy) | None => HealthPolicy::OnlyHealthy,
            Some(wire::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        },
    }
}
