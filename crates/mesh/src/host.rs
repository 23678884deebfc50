//! Where something is: at an address, or at a name that is looked up first.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::text::Text;
use crate::workload::Workload;

/// An address, or a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name.
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
    /// Where a workload is: at its address of the same family as `like`, if it has one; at its first; or at its name.
    pub fn of(workload: &Workload, like: IpAddr) -> Self {
        let ips = &workload.workload_ips;
        match ips.iter().find(|ip| ip.is_ipv6() == like.is_ipv6()).or(ips.first()) {
            Some(ip) => Self::Address(*ip),
            None => Self::Name(workload.hostname.clone()),
        }
    }
}

impl HostPort {
    /// The address, if it is one.
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
