//! Services.

use mesh::gateway::{Vip, WeightedWaypoint};
use mesh::service::{HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, Scope, Visibility};
use mesh::{Service, Text};

use super::workload::{gateway, ports};
use super::{Malformed, ip, net, value};
use crate::workload as wire;

pub(super) fn service(s: wire::Service) -> Result<Service, Malformed> {
    if s.hostname.is_empty() {
        return Err(Malformed::Missing("hostname"));
    }
    let weighted = s.weighted_waypoints.into_iter().map(|w| {
        let destination = w.destination.ok_or(Malformed::Missing("weighted_waypoints"))?;
        Ok(WeightedWaypoint { waypoint: gateway("weighted_waypoints", destination)?, weight: w.weight })
    });
    Ok(Service {
        name: s.name.into(),
        namespace: s.namespace.into(),
        hostname: s.hostname.into(),
        vips: s.addresses.into_iter().map(vip).collect::<Result<_, _>>()?,
        ports: ports("ports", &s.ports)?,
        subject_alt_names: s.subject_alt_names.into_iter().map(Text::from).collect(),
        waypoint: s.waypoint.map(|w| gateway("waypoint", w)).transpose()?,
        weighted_waypoints: weighted.collect::<Result<_, Malformed>>()?,
        ingress_use_waypoint: s.ingress_use_waypoint,
        load_balancer: load_balancer(s.load_balancing.unwrap_or_default())?,
        ip_families: match value("ip_families", s.ip_families)? {
            wire::IpFamilies::Automatic => None,
            wire::IpFamilies::Ipv4Only => Some(IpFamilies::IPv4),
            wire::IpFamilies::Ipv6Only => Some(IpFamilies::IPv6),
            wire::IpFamilies::Dual => Some(IpFamilies::Dual),
        },
        canonical: s.canonical,
        visibility: match value("visibility", s.visibility)? {
            wire::Visibility::Public => Visibility::Public,
            wire::Visibility::Namespace => Visibility::Namespace,
        },
    })
}

fn vip(address: wire::NetworkAddress) -> Result<Vip, Malformed> {
    let field = "addresses";
    match address.length {
        None => Ok(Vip::single(address.network, ip(field, &address.address)?)),
        Some(length) => Ok(Vip { network: address.network.into(), net: net(field, &address.address, length)? }),
    }
}

fn load_balancer(lb: wire::LoadBalancing) -> Result<LoadBalancer, Malformed> {
    let scope = |number: i32| {
        let scope = value("load_balancing.routing_preference", number)?;
        Ok(match scope {
            wire::Scope::Unspecified => return Ok(None),
            wire::Scope::Region => Some(Scope::Region),
            wire::Scope::Zone => Some(Scope::Zone),
            wire::Scope::Subzone => Some(Scope::Subzone),
            wire::Scope::Node => Some(Scope::Node),
            wire::Scope::Cluster => Some(Scope::Cluster),
            wire::Scope::Network => Some(Scope::Network),
        })
    };
    let preferences = lb.routing_preference.into_iter().filter_map(|n| scope(n).transpose());
    Ok(LoadBalancer {
        routing_preferences: preferences.collect::<Result<_, Malformed>>()?,
        mode: match value("load_balancing.mode", lb.mode)? {
            wire::Mode::Unspecified => LoadBalancerMode::Standard,
            wire::Mode::Strict => LoadBalancerMode::Strict,
            wire::Mode::Failover => LoadBalancerMode::Failover,
            wire::Mode::Passthrough => LoadBalancerMode::Passthrough,
        },
        health_policy: match value("load_balancing.health_policy", lb.health_policy)? {
            wire::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            wire::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}
