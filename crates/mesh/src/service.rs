//! Services: names and virtual addresses that stand for workloads.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::gateway::{GatewayAddress, Vip, WeightedWaypoint};
use crate::ports::Ports;
use crate::text::Text;

/// A Kubernetes Service, or a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Service name.
    pub name: Text,
    /// Service namespace.
    pub namespace: Text,
    /// Fully qualified name.
    pub hostname: Text,
    /// Virtual addresses, and ranges of them.
    pub vips: Vec<Vip>,
    /// Target port for each service port; 0 where each workload has its own.
    pub ports: Ports,
    /// Identities that its workloads may have besides their own.
    pub subject_alt_names: Vec<Text>,
    /// What traffic to it passes through.
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints that share its traffic, and go before the one above.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whether ingress gateways use the waypoint, too. Nothing to us: it is said for them.
    pub ingress_use_waypoint: bool,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
    /// Which families it has, if that is said.
    pub ip_families: Option<IpFamilies>,
    /// Whether it is the one that a host name means where no namespace decides.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

/// Families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    /// Both.
    Dual,
    /// IPv4 alone.
    IPv4,
    /// IPv6 alone.
    IPv6,
}

/// Who may see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

/// How an endpoint is chosen among those of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LoadBalancer {
    /// What should be the same for caller and endpoint, most important first.
    pub routing_preferences: Vec<Scope>,
    /// What these preferences mean.
    pub mode: LoadBalancerMode,
    /// Which endpoints may be chosen.
    pub health_policy: HealthPolicy,
}

/// Something that caller and endpoint can have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// locality.region
    Region,
    /// locality.zone
    Zone,
    /// locality.subzone
    Subzone,
    /// node
    Node,
    /// clusterId
    Cluster,
    /// network
    Network,
}

/// What routing preferences mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum LoadBalancerMode {
    /// They mean nothing: any endpoint.
    #[default]
    Standard,
    /// Only endpoints that have all of them in common with the caller.
    Strict,
    /// The endpoints with the most leading ones in common.
    Failover,
    /// No choice: the original destination.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

impl Service {
    /// `namespace/hostname`: what workloads and others refer to.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    /// Whether workloads of a namespace may see it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || self.namespace == *namespace
    }
}

impl IpFamilies {
    /// Whether an address is of one of these families.
    pub fn contain(self, ip: IpAddr) -> bool {
        match self {
            Self::Dual => true,
            Self::IPv4 => ip.is_ipv4(),
            Self::IPv6 => ip.is_ipv6(),
        }
    }
}
