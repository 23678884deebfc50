//! A newtype for each kind of address, so that the compiler keeps them apart.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The IP address in canonical form: never IPv4-mapped.
            pub fn ip(&self) -> IpAddr {
                self.0.ip().to_canonical()
            }

            /// The port.
            pub fn port(&self) -> u16 {
                self.0.port()
            }
        }

        impl From<SocketAddr> for $name {
            /// Converts an IPv4-mapped IPv6 address to IPv4.
            fn from(a: SocketAddr) -> Self {
                Self(SocketAddr::new(a.ip().to_canonical(), a.port()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// The client's address: that of the application that opened the connection.
    ClientAddr
}
address! {
    /// The original destination, before redirection.
    OrigDst
}
address! {
    /// The address on which an application listens in a pod.
    PodAddr
}
address! {
    /// The address on which a proxy accepts HBONE.
    TunnelAddr
}
address! {
    /// The server's address of a connection: that of an application in a pod, of another proxy, or
    /// of a host outside the mesh.
    ServerAddr
}

impl From<OrigDst> for ServerAddr {
    fn from(a: OrigDst) -> Self {
        Self(a.0)
    }
}

impl From<PodAddr> for ServerAddr {
    fn from(a: PodAddr) -> Self {
        Self(a.0)
    }
}

impl From<TunnelAddr> for ServerAddr {
    fn from(a: TunnelAddr) -> Self {
        Self(a.0)
    }
}

/// A range of IPv4 addresses that is written as one of IPv4-mapped IPv6 addresses, such as
/// `::ffff:10.0.0.0/104`, in its own form; any other range as it is.
pub fn canonical_net(net: IpNet) -> IpNet {
    let IpAddr::V4(v4) = net.addr().to_canonical() else {
        return net;
    };
    let length = net
        .prefix_len()
        .checked_sub(if net.addr().is_ipv6() { 96 } else { 0 });
    length
        .and_then(|length| IpNet::new(v4.into(), length).ok())
        .unwrap_or(net)
}
