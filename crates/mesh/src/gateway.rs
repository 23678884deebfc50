//! What stands before workloads and services: waypoints, network gateways, tunnels of applications.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::Text;

/// An address within a network, written `network/address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Network name; empty for the only one.
    pub network: Text,
    /// The address.
    pub address: IpAddr,
}

/// A virtual address of a service, or a whole range of them, written `network/address` or `network/address/length`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Network name; empty for the only one.
    pub network: Text,
    /// The address or the range.
    pub net: IpNet,
}

/// A service by namespace and host name, written `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The service's namespace.
    pub namespace: Text,
    /// Its fully qualified name.
    pub hostname: Text,
}

/// Where a gateway is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// At an address: that of a workload, or of a service.
    Address(NetworkAddress),
    /// As a service.
    Hostname(NamespacedHostname),
}

/// A gateway: a waypoint, or the gateway of a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayAddress {
    /// Where it is found.
    pub destination: Destination,
    /// Where it accepts HBONE; 0 for the usual port.
    #[serde(default = "default_hbone_port")]
    pub hbone_mtls_port: u16,
}

fn default_hbone_port() -> u16 {
    crate::route::HBONE_PORT
}

/// One of several waypoints that share a service's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub waypoint: GatewayAddress,
    /// Its share; 0 for none.
    pub weight: u32,
}

/// How tunnels to a workload are passed on to its application, which wants to know what they were for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ApplicationTunnel {
    /// What the application is told first.
    pub protocol: TunnelProtocol,
    /// The port that takes all of them; without one each goes to its own.
    pub port: Option<u16>,
}

/// What an application is told about a connection before its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum TunnelProtocol {
    /// Nothing.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// A PROXY protocol header, version 2.
    #[serde(rename = "PROXY")]
    Proxy,
}

/// A text that is not of the form that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not of the form {form}")]
pub struct WrongForm {
    text: String,
    form: &'static str,
}

impl Vip {
    /// A single address.
    pub fn single(network: impl Into<Text>, address: IpAddr) -> Self {
        Self { network: network.into(), net: address.into() }
    }

    /// The address, unless it is a range.
    pub fn address(&self) -> Option<IpAddr> {
        (self.net.prefix_len() == self.net.max_prefix_len()).then(|| self.net.addr())
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl FromStr for NetworkAddress {
    type Err = WrongForm;

    fn from_str(text: &str) -> Result<Self, WrongForm> {
        let (network, address) = text.rsplit_once('/').unwrap_or(("", text));
        let address = address.parse().map_err(|_| wrong(text, "NETWORK/ADDRESS"))?;
        Ok(Self { network: network.into(), address })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(address) => write!(f, "{}/{address}", self.network),
            None => write!(f, "{}/{}", self.network, self.net),
        }
    }
}

impl FromStr for Vip {
    type Err = WrongForm;

    fn from_str(text: &str) -> Result<Self, WrongForm> {
        let (network, net) = text.split_once('/').unwrap_or(("", text));
        let net = net.parse::<IpNet>().or_else(|_| net.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(|_| wrong(text, "NETWORK/ADDRESS or NETWORK/ADDRESS/LENGTH"))?;
        Ok(Self { network: network.into(), net: net.trunc() })
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = WrongForm;

    fn from_str(text: &str) -> Result<Self, WrongForm> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() && !hostname.contains('/') => {
                Ok(Self { namespace: namespace.into(), hostname: hostname.into() })
            }
            _ => Err(wrong(text, "NAMESPACE/HOSTNAME")),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(hostname) => hostname.fmt(f),
        }
    }
}

impl FromStr for Destination {
    type Err = WrongForm;

    fn from_str(text: &str) -> Result<Self, WrongForm> {
        let address = text.parse().map(Self::Address);
        address
            .or_else(|_| text.parse().map(Self::Hostname))
            .map_err(|_: WrongForm| wrong(text, "NETWORK/ADDRESS or NAMESPACE/HOSTNAME"))
    }
}

fn wrong(text: &str, form: &'static str) -> WrongForm {
    WrongForm { text: text.to_owned(), form }
}

/// These are texts in files and dumps.
macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(NetworkAddress Vip NamespacedHostname Destination);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_both_ways() {
        for text in ["net/10.0.0.1", "/fd00::1", "/10.0.0.0/8", "net/fd00::/64"] {
            assert_eq!(text.parse::<Vip>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.1".parse::<Vip>().unwrap().to_string(), "/10.0.0.1");
        assert_eq!("/10.1.2.3/8".parse::<Vip>().unwrap().to_string(), "/10.0.0.0/8");
        assert_eq!("/10.1.2.3/32".parse::<Vip>().unwrap().address(), Some([10, 1, 2, 3].into()));
        let hostname = "istio-system/waypoint.istio-system.svc.cluster.local";
        assert!(
            matches!(hostname.parse::<Destination>().unwrap(), Destination::Hostname(h) if h.to_string() == hostname)
        );
        assert!(
            matches!("net/10.0.0.1".parse::<Destination>().unwrap(), Destination::Address(a) if a.network == "net")
        );
        for bad in ["", "/", "waypoint", "a/b/c", "/10.0.0.0/33"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        for bad in ["", "/", "a/10.0.0.0/33", "a/b"] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
