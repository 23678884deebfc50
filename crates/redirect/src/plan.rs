//! The redirection plan of a pod: what to capture and what to exclude. Pure data.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use nft::IpFamily;
use serde::{Deserialize, Serialize};

use crate::rule_priorities::RulePriorities;

/// What to capture in one pod and what to exclude.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// How packets reach the proxy.
    pub capture: CaptureKind,
    /// The pod's addresses, as the runtime or the mesh reports them; those that its namespace has
    /// besides count as well. Traffic between them is not captured.
    pub addresses: Vec<IpAddr>,
    /// The ports on which the proxy listens in the pod.
    pub ports: Ports,
    /// The mark on the proxy's own packets.
    pub mark: Mark,
    /// The routing table with the local route.
    pub table: u32,
    /// Source addresses of the node's health probes, which bypass the proxy.
    pub probe_sources: Vec<IpAddr>,
    /// How to treat connections that are open when the plan is applied.
    pub existing_connections: ExistingConnections,
    /// Whether the pod's DNS queries are captured, over UDP and TCP.
    #[serde(default)]
    pub dns: bool,
    /// Whether plaintext connections to the pod bypass the proxy. Tunnels are unaffected.
    #[serde(default)]
    pub bypass_inbound: bool,
    /// Interfaces whose incoming TCP connections are treated as outbound: those of virtual machines
    /// or containers inside the pod.
    #[serde(default)]
    pub reroute_interfaces: BTreeSet<InterfaceName>,
    /// The networks that the pod is connected to; known only within its namespace.
    #[serde(skip)]
    pub networks: BTreeSet<Network>,
    /// The priorities of the ip rules; known only within the pod's namespace.
    #[serde(skip)]
    pub priorities: RulePriorities,
    /// Connections that bypass the proxy.
    #[serde(default)]
    pub exclude: Exclusions,
    /// Whether to replace istio-cni redirection found in the pod; otherwise it is only reported.
    #[serde(default)]
    pub adopt: bool,
    /// The user of the proxy's process: packets of other processes do not leave by the proxy's
    /// mark. `None` if any process may set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_user: Option<ProxyUser>,
}

/// A network that a pod is connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// The pod's address in it, with the network's prefix length.
    pub address: IpNet,
    /// The bridge of the network, if that is within the pod.
    pub bridge: Option<InterfaceName>,
}

/// The user and group of a process, in the user namespace that owns the pod's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyUser {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// An invalid user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid user {0:?}: expected UID:GID, such as 0:1337")]
pub struct ProxyUserError(String);

impl FromStr for ProxyUser {
    type Err = ProxyUserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (uid, gid) = text.split_once(':')?;
            Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ProxyUserError(text.chars().take(64).collect()))
    }
}

/// TCP connections that bypass the proxy, regardless of the state of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exclusions {
    /// Pod ports that accept plaintext connections directly.
    pub inbound_ports: BTreeSet<u16>,
    /// Clients whose plaintext connections bypass the proxy.
    pub inbound_cidrs: BTreeSet<IpNet>,
    /// Remote ports to which the pod connects directly.
    pub outbound_ports: BTreeSet<u16>,
    /// Destinations to which the pod connects directly.
    pub outbound_cidrs: BTreeSet<IpNet>,
}

impl Exclusions {
    /// Whether there are no exclusions.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there are exclusions for connections that the pod opens.
    pub(crate) fn has_outbound(&self) -> bool {
        !self.outbound_ports.is_empty() || !self.outbound_cidrs.is_empty()
    }

    /// The first of these networks to which the pod would only connect directly.
    pub fn excluded_of(&self, networks: &[IpNet]) -> Option<IpNet> {
        let excluded = union(&self.outbound_cidrs);
        let is_excluded = |n: &&IpNet| excluded.iter().any(|e| e.contains(*n));
        networks.iter().find(is_excluded).copied()
    }
}

/// The fewest networks with the same addresses as all of these.
pub(crate) fn union(networks: &BTreeSet<IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&networks.iter().copied().collect())
}

/// The name of a network interface: 1 to 15 of the characters `A-Z a-z 0-9 . _ -`, not starting
/// with a dot or a dash. With an asterisk at the end, a pattern for all names that begin like it.
///
/// The kernel accepts more characters (IFNAMSIZ is 16 with the terminating zero); this subset never
/// needs quoting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a pattern.
    pub(crate) fn is_pattern(&self) -> bool {
        self.0.ends_with('*')
    }

    /// Whether it is this name, or a pattern for it. None is for the loopback interface.
    pub(crate) fn matches(&self, name: &Self) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.0.starts_with(beginning) && name.0 != "lo",
            None => self == name,
        }
    }
}

/// An invalid interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid interface name {0:?}: expected 1 to 15 of A-Z a-z 0-9 . _ -, \
     starting with a letter, a digit or an underscore, \
     and perhaps * at the end for all that begin like it"
)]
pub struct InterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let letters = name.strip_suffix('*').unwrap_or(name);
        let is_valid = (1..=15).contains(&letters.len())
            && letters.bytes().all(|b| plain(b) || b == b'.' || b == b'-')
            && letters.bytes().next().is_some_and(plain);
        if !is_valid {
            return Err(InterfaceNameError(name.chars().take(64).collect()));
        }
        Ok(Self(name.to_owned()))
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

/// A capture backend: how packets reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureKind {
    /// Policy routing and nf_tables tproxy, without NAT or conntrack.
    Routed,
    /// NAT like that of istio-cni, written as nf_tables rules over netlink.
    Nat,
    /// NAT, written with `iptables-nft-restore`.
    NatIptablesNft,
    /// NAT, written with `iptables-legacy-restore`, for kernels without nf_tables.
    NatIptablesLegacy,
}

impl CaptureKind {
    /// All capture kinds, in order of preference.
    pub const ALL: [Self; 4] = [
        Self::Routed,
        Self::Nat,
        Self::NatIptablesNft,
        Self::NatIptablesLegacy,
    ];

    /// The name used on the command line.
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

/// The ports on which the proxy listens in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Port for connections that the pod opens.
    pub outbound: u16,
    /// Port for plaintext connections to the pod.
    pub inbound: u16,
    /// Port for HBONE tunnels to the pod.
    pub hbone: u16,
    /// Port for DNS queries of the pod.
    #[serde(default = "dns_port")]
    pub dns: u16,
}

fn dns_port() -> u16 {
    ISTIO_PORTS.dns
}

/// A firewall mark and its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The value under the mask.
    pub value: u32,
    /// The mask.
    pub mask: u32,
}

/// How to treat connections that are open when a pod joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExistingConnections {
    /// Leave them uncaptured until they close.
    Keep,
    /// Reset them.
    Reset,
}

/// Istio's ports in a pod.
pub const ISTIO_PORTS: Ports = Ports {
    outbound: istio::port::OUTBOUND,
    inbound: istio::port::INBOUND,
    hbone: istio::port::HBONE,
    dns: istio::port::DNS,
};
/// Istio's mark on the proxy's own packets.
pub const PROXY_MARK: Mark = Mark {
    value: istio::mark::PROXY,
    mask: istio::mark::MASK,
};
/// Istio's mark on packets of connections that the proxy opened to the application from the
/// client's address.
pub const RETURN_MARK: Mark = Mark {
    value: istio::mark::RETURN,
    mask: istio::mark::MASK,
};
/// The routing table for captured packets. Not Istio's 100: plugins for source-based routing, which
/// count from there, would find it in use or share it.
pub const TABLE: u32 = 15_001;
/// Source address that kubelet probes are translated to, IPv4.
pub const PROBE_SOURCE_V4: Ipv4Addr = istio::probe::SOURCE_V4;
/// Source address that kubelet probes are translated to, IPv6.
pub const PROBE_SOURCE_V6: Ipv6Addr = istio::probe::SOURCE_V6;

/// Destinations of the agent's probes from within a pod, which no exclusion covers.
pub const PROBE_DESTINATIONS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 128)),
    IpAddr::V6(Ipv6Addr::new(
        0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe,
    )),
];
/// The port of these destinations.
pub const PROBE_PORT: u16 = 15099;

impl Plan {
    /// The bridges within the pod, with their networks.
    pub(crate) fn bridges(&self) -> impl Iterator<Item = (&InterfaceName, IpNet)> {
        let networks = self.networks.iter();
        networks.filter_map(|n| Some((n.bridge.as_ref()?, n.address.trunc())))
    }

    /// Creates the default plan for a pod with these addresses.
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
            networks: BTreeSet::new(),
            priorities: RulePriorities::default(),
            exclude: Exclusions::default(),
            adopt: false,
            proxy_user: None,
        }
    }

    /// The captured families: those of the pod's addresses.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> + '_ {
        IpFamily::ALL.into_iter().filter(|f| {
            let mut addresses = self.addresses.iter();
            addresses.any(|a| IpFamily::of(*a) == *f)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_validated() {
        for good in ["eth0", "tap-1.2", "_x", "a23456789012345", "br-*", "a*"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a234567890123456",
            "-i",
            ".",
            "..",
            "a b",
            "*",
            "br-*x",
            "br**",
            "-*",
            "a/b",
            "a\n",
            "eth0;",
            "é",
            "a\0",
        ] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(
                serde_json::from_str::<InterfaceName>(&json).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn users_are_a_uid_and_a_gid() {
        let user = ProxyUser { uid: 0, gid: 1337 };
        assert_eq!("0:1337".parse(), Ok(user));
        for bad in ["", "0", "0:", ":0", "root:root", "0:1:2", "-1:0"] {
            assert!(bad.parse::<ProxyUser>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn plans_of_earlier_versions_are_accepted() {
        let mut old = serde_json::to_value(Plan::for_pod([])).unwrap();
        for added in [
            "dns",
            "bypassInbound",
            "rerouteInterfaces",
            "exclude",
            "adopt",
        ] {
            old.as_object_mut().unwrap().remove(added);
        }
        old["ports"].as_object_mut().unwrap().remove("dns");
        assert_eq!(
            serde_json::from_value::<Plan>(old).unwrap(),
            Plan::for_pod([])
        );
    }
}
