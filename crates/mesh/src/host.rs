//! Hosts: IP addresses, or names to resolve.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::text::Text;
use crate::workload::Workload;

/// An IP address or a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IP address.
    Address(IpAddr),
    /// A host name.
    Name(Text),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl Host {
    /// The host of a workload: its address of the same family as `like`, else its first address,
    /// else its host name.
    pub fn of(workload: &Workload, like: IpAddr) -> Self {
        let ips = &workload.workload_ips;
        match ips
            .iter()
            .find(|ip| ip.is_ipv6() == like.is_ipv6())
            .or(ips.first())
        {
            Some(ip) => Self::Address(*ip),
            None => Self::Name(workload.hostname.clone()),
        }
    }
}

impl HostPort {
    /// The socket address, if the host is an IP address.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}
