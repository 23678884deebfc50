//! What to capture in a pod and what to leave alone. Pure data.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

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
    /// Whether the pod's DNS queries are captured, over UDP and TCP.
    #[serde(default)]
    pub dns: bool,
    /// Plaintext connections to the pod are left alone; tunnels still arrive.
    #[serde(default)]
    pub bypass_inbound: bool,
    /// TCP that comes in by these interfaces is taken for connections that the pod opens: of a virtual machine, or of
    /// containers within the pod.
    #[serde(default)]
    pub reroute_interfaces: BTreeSet<InterfaceName>,
    /// Connections that are left alone.
    #[serde(default)]
    pub exclude: Exclusions,
    /// Redirection of istio-cni that is found is replaced; otherwise it is only told of.
    #[serde(default)]
    pub adopt: bool,
}

/// TCP connections that are left alone, in whichever state the mesh is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exclusions {
    /// Ports of the pod to which plaintext connections go directly.
    pub inbound_ports: BTreeSet<u16>,
    /// Clients whose plaintext connections go directly.
    pub inbound_cidrs: BTreeSet<IpNet>,
    /// Ports elsewhere to which the pod connects directly.
    pub outbound_ports: BTreeSet<u16>,
    /// Destinations to which the pod connects directly.
    pub outbound_cidrs: BTreeSet<IpNet>,
}

impl Exclusions {
    /// Whether nothing is left alone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The name of a network interface: 1 to 15 of the characters `A-Z a-z 0-9 . _ -`, not beginning with a dot or a dash.
///
/// The kernel takes more (IFNAMSIZ is 16 with the final zero), but nothing that would have to be quoted anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Not the name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interface name (1 to 15 of A-Z a-z 0-9 . _ -, beginning with a letter, a digit or an underscore)")]
pub struct InterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let fits = (1..=15).contains(&name.len())
            && name.bytes().all(|b| plain(b) || b == b'.' || b == b'-')
            && name.bytes().next().is_some_and(plain);
        fits.then(|| Self(name.to_owned())).ok_or_else(|| InterfaceNameError(name.chars().take(64).collect()))
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How packets reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureKind {
    /// By policy routing and nf_tables tproxy, without NAT and without conntrack.
    Routed,
    /// By address translation, as istio-cni does it, programmed as nf_tables over netlink.
    Nat,
    /// By address translation, with `iptables-nft-restore`.
    NatIptablesNft,
    /// By address translation, with `iptables-legacy-restore`: for kernels without nf_tables.
    NatIptablesLegacy,
}

impl CaptureKind {
    /// Every capture, the preferred one first.
    pub const ALL: [Self; 4] = [Self::Routed, Self::Nat, Self::NatIptablesNft, Self::NatIptablesLegacy];

    /// Its name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Nat => "nat",
            Self::NatIptablesNft => "nat-iptables-nft",
            Self::NatIptablesLegacy => "nat-iptables-legacy",
        }
    }
}

impl fmt::Display for CaptureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    /// DNS queries of the pod.
    #[serde(default = "dns_port")]
    pub dns: u16,
}

fn dns_port() -> u16 {
    ISTIO_PORTS.dns
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

/// Istio's ports: 15001, 15006, 15008, 15053.
pub const ISTIO_PORTS: Ports = Ports { outbound: 15001, inbound: 15006, hbone: 15008, dns: 15053 };
/// Istio's mark on the proxy's own packets.
pub const PROXY_MARK: Mark = Mark { value: 0x539, mask: 0xfff };
/// Istio's mark on packets that belong to a connection which the proxy opened to the application as the client.
pub const RETURN_MARK: Mark = Mark { value: 0x111, mask: 0xfff };
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
            dns: false,
            bypass_inbound: false,
            reroute_interfaces: BTreeSet::new(),
            exclude: Exclusions::default(),
            adopt: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_strict() {
        for good in ["eth0", "tap-1.2", "_x", "a23456789012345"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in ["", "a234567890123456", "-i", ".", "..", "a b", "a/b", "a\n", "eth0;", "é", "a\0"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<InterfaceName>(&json).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_plan_of_an_earlier_version_is_understood() {
        let mut old = serde_json::to_value(Plan::for_pod([])).unwrap();
        for added in ["dns", "bypassInbound", "rerouteInterfaces", "exclude", "adopt"] {
            old.as_object_mut().unwrap().remove(added);
        }
        old["ports"].as_object_mut().unwrap().remove("dns");
        assert_eq!(serde_json::from_value::<Plan>(old).unwrap(), Plan::for_pod([]));
    }
}
