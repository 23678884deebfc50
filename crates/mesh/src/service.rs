//! Services: names and virtual addresses of groups of workloads.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::gateway::{GatewayAddress, Vip, WeightedWaypoint};
use crate::ports::Ports;
use crate::text::Text;

/// A Kubernetes Service or an Istio ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Service name.
    pub name: Text,
    /// Service namespace.
    pub namespace: Text,
    /// Fully qualified host name.
    pub hostname: Text,
    /// Virtual addresses, and ranges of them.
    pub vips: Vec<Vip>,
    /// Target port for each service port; 0 if only the workloads define it.
    pub ports: Ports,
    /// SPIFFE ids that its workloads may prove instead of their own.
    pub subject_alt_names: Vec<Text>,
    /// The waypoint for traffic to it.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints that share its traffic; they take precedence over `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whether ingress gateways also use the waypoint. Only they evaluate it.
    pub ingress_use_waypoint: bool,
    /// How endpoints are chosen.
    pub load_balancer: LoadBalancer,
    /// Its address families, if specified.
    pub ip_families: Option<IpFamilies>,
    /// Whether it wins over services with the same host name in other namespaces.
    pub canonical: bool,
    /// The namespaces that can use it.
    pub visibility: Visibility,
}

/// Address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 only.
    IPv4,
    /// IPv6 only.
    IPv6,
}

/// The namespaces that can use a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Visibility {
    /// All namespaces.
    #[default]
    Public,
    /// Only its own namespace.
    Namespace,
}

/// How endpoints of a service are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LoadBalancer {
    /// Scopes that client and endpoint should share, most important first.
    pub routing_preferences: Vec<Scope>,
    /// How the preferences are applied.
    pub mode: LoadBalancerMode,
    /// The endpoints that can be chosen, by health.
    pub health_policy: HealthPolicy,
}

/// A property that client and endpoint can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// `locality.region`
    Region,
    /// `locality.zone`
    Zone,
    /// `locality.subzone`
    Subzone,
    /// `node`
    Node,
    /// `clusterId`
    Cluster,
    /// `network`
    Network,
}

/// How routing preferences are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum LoadBalancerMode {
    /// Preferences are ignored.
    #[default]
    Standard,
    /// Only endpoints that share all scopes with the client.
    Strict,
    /// The endpoints that share the most leading scopes with the client.
    Failover,
    /// The original destination; no endpoint is chosen.
    Passthrough,
}

/// The endpoints that can be chosen, by health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// Only healthy endpoints.
    #[default]
    OnlyHealthy,
    /// All endpoints.
    AllowAll,
}

impl Service {
    /// `namespace/hostname`, as used in references.
    pub fn key(&self) -> String {
        self.display_key().to_string()
    }

    /// [`Service::key`], formatted when it is read.
    pub(crate) fn display_key(&self) -> impl fmt::Display {
        fmt::from_fn(|f| write!(f, "{}/{}", self.namespace, self.hostname))
    }

    /// Whether workloads of a namespace can use it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || self.namespace == *namespace
    }
}

impl IpFamilies {
    /// Whether an address belongs to one of these families.
    pub fn contain(self, ip: IpAddr) -> bool {
        match self {
            Self::Dual => true,
            Self::IPv4 => ip.is_ipv4(),
            Self::IPv6 => ip.is_ipv6(),
        }
    }
}
