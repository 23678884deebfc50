//! Waypoints, network gateways and application tunnels.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::Text;

/// An address in a network, written `network/address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Network name; empty if there is only one network.
    pub network: Text,
    /// The address.
    pub address: IpAddr,
}

/// A virtual address or address range of a service, written `network/address` or
/// `network/address/length`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Network name; empty if there is only one network.
    pub network: Text,
    /// The address or the range.
    pub net: IpNet,
}

/// A service by namespace and host name, written `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The service's namespace.
    pub namespace: Text,
    /// Its fully qualified host name.
    pub hostname: Text,
}

/// The location of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// The address of a workload or of a service.
    Address(NetworkAddress),
    /// The host name of a service.
    Hostname(NamespacedHostname),
    /// A location that this version does not understand. Nothing passes such a gateway.
    NotUnderstood,
}

/// A gateway: a waypoint, or the gateway of a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayAddress {
    /// The gateway's location.
    pub destination: Destination,
    /// The port on which it accepts HBONE; 0 for the default, 15008.
    #[serde(default = "default_hbone_port")]
    pub hbone_mtls_port: u16,
}

fn default_hbone_port() -> u16 {
    istio::port::HBONE
}

/// One of several waypoints that share a service's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub waypoint: GatewayAddress,
    /// Its relative weight; 0 for no traffic.
    pub weight: u32,
}

/// How tunnelled connections are delivered to an application that needs their original destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ApplicationTunnel {
    /// The header that precedes each connection.
    pub protocol: TunnelProtocol,
    /// The port that receives all connections; if absent, each goes to its own port.
    pub port: Option<u16>,
}

/// The header that precedes a connection to an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum TunnelProtocol {
    /// No header.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// A PROXY protocol header, version 2.
    #[serde(rename = "PROXY")]
    Proxy,
    /// One that this version does not understand: nothing is delivered.
    #[serde(rename = "UNSUPPORTED", skip_deserializing)]
    Unsupported,
}

/// A text that does not have the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {text:?}: expected {form}")]
pub struct FormatError {
    text: String,
    form: &'static str,
}

impl Vip {
    /// A single address.
    pub fn single(network: impl Into<Text>, address: IpAddr) -> Self {
        Self {
            network: network.into(),
            net: address.into(),
        }
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
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (network, address) = text.rsplit_once('/').unwrap_or(("", text));
        let address = address
            .parse()
            .map_err(|_| format_error(text, "NETWORK/ADDRESS"))?;
        Ok(Self {
            network: network.into(),
            address,
        })
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
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (network, net) = text.split_once('/').unwrap_or(("", text));
        let net = net
            .parse::<IpNet>()
            .or_else(|_| net.parse::<IpAddr>().map(IpNet::from));
        let net =
            net.map_err(|_| format_error(text, "NETWORK/ADDRESS or NETWORK/ADDRESS/LENGTH"))?;
        Ok(Self {
            network: network.into(),
            net: net.trunc(),
        })
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() && !hostname.contains('/') => {
                Ok(Self {
                    namespace: namespace.into(),
                    hostname: hostname.into(),
                })
            }
            _ => Err(format_error(text, "NAMESPACE/HOSTNAME")),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(hostname) => hostname.fmt(f),
            Self::NotUnderstood => f.write_str("that this version does not understand"),
        }
    }
}

impl FromStr for Destination {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let address = text.parse().map(Self::Address);
        address
            .or_else(|_| text.parse().map(Self::Hostname))
            .map_err(|_: FormatError| format_error(text, "NETWORK/ADDRESS or NAMESPACE/HOSTNAME"))
    }
}

fn format_error(text: &str, form: &'static str) -> FormatError {
    FormatError {
        text: text.to_owned(),
        form,
    }
}

/// Serializes these types as text.
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
    fn text_forms_round_trip() {
        for text in ["net/10.0.0.1", "/fd00::1", "/10.0.0.0/8", "net/fd00::/64"] {
            assert_eq!(text.parse::<Vip>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.1".parse::<Vip>().unwrap().to_string(), "/10.0.0.1");
        assert_eq!(
            "/10.1.2.3/8".parse::<Vip>().unwrap().to_string(),
            "/10.0.0.0/8"
        );
        assert_eq!(
            "/10.1.2.3/32".parse::<Vip>().unwrap().address(),
            Some([10, 1, 2, 3].into())
        );
        let hostname = "istio-system/waypoint.istio-system.svc.cluster.local";
        assert!(matches!(
            hostname.parse::<Destination>().unwrap(),
            Destination::Hostname(h) if h.to_string() == hostname
        ));
        assert!(matches!(
            "net/10.0.0.1".parse::<Destination>().unwrap(),
            Destination::Address(a) if a.network == "net"
        ));
        for bad in ["", "/", "waypoint", "a/b/c", "/10.0.0.0/33"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        for bad in ["", "/", "a/10.0.0.0/33", "a/b"] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
