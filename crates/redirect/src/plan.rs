//! What to capture in a pod and what to leave alone. Pure data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// What to capture in one pod and what to leave alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// How packets reach the proxy.
    pub capture: CaptureKind,
    /// The pod's own addresses; traffic between them is not captured. Their families say which families are captured.
    pub addresses: Vec<IpAddr>,
    /// Where the proxy listens in the pod.
    pub ports: Ports,
    /// The mark on the proxy's own packets.
    pub mark: Mark,
    /// The routing table that holds the local route.
    pub table: u32,
    /// Source addresses of the node's health probes; they reach the application directly.
    pub probe_sources: Vec<IpAddr>,
    /// What happens to connections that are open when the plan is applied.
    pub existing_connections: ExistingConnections,
}

/// How packets reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptureKind {
    /// By policy routing and nf_tables tproxy, without NAT and without conntrack.
    Routed,
}

/// Where the proxy listens in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Connections that the pod opens.
    pub outbound: u16,
    /// Plaintext connections to the pod.
    pub inbound: u16,
    /// HBONE tunnels to the pod.
    pub hbone: u16,
}

/// A firewall mark under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bits that are set.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// What happens to connections that are open when a pod joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExistingConnections {
    /// They go on, uncaptured, until they close.
    Keep,
    /// They break.
    Reset,
}

/// Istio's ports: 15001, 15006, 15008.
pub const ISTIO_PORTS: Ports = Ports { outbound: 15001, inbound: 15006, hbone: 15008 };
/// Istio's mark on the proxy's own packets.
pub const PROXY_MARK: Mark = Mark { value: 0x539, mask: 0xfff };
/// Istio's routing table for captured packets.
pub const TABLE: u32 = 100;
/// Where kubelet probes seem to come from, IPv4.
pub const PROBE_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Where kubelet probes seem to come from, IPv6.
pub const PROBE_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

impl Plan {
    /// The default plan for a pod with these addresses.
    pub fn for_pod(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            capture: CaptureKind::Routed,
            addresses: addresses.into_iter().collect(),
            ports: ISTIO_PORTS,
            mark: PROXY_MARK,
            table: TABLE,
            probe_sources: vec![PROBE_SOURCE_V4.into(), PROBE_SOURCE_V6.into()],
            existing_connections: ExistingConnections::Keep,
        }
    }
}
