//! Services: names and virtual addresses that stand for workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A Kubernetes Service, or a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Service name.
    pub name: String,
    /// Service namespace.
    pub namespace: String,
    /// Fully qualified name.
    pub hostname: String,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Target port for each service port; 0 where each workload has its own.
    pub ports: BTreeMap<u16, u16>,
    /// Identities that its workloads may have besides their own.
    pub subject_alt_names: Vec<String>,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
}

/// An address within a network, written `network/address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Network name; empty for the only one.
    pub network: String,
    /// The address.
    pub address: IpAddr,
}

impl Serialize for NetworkAddress {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{}/{}", self.network, self.address))
    }
}

impl<'de> Deserialize<'de> for NetworkAddress {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let (network, address) = text.rsplit_once('/').unwrap_or(("", &text));
        let address = address
            .parse()
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is not of the form NETWORK/ADDRESS")))?;
        Ok(Self { network: network.to_owned(), address })
    }
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
}
