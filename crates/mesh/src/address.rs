//! A type for every kind of address, so that two of them cannot be mixed up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The IP address, never an IPv4-mapped one.
            pub fn ip(&self) -> IpAddr {
                self.0.ip().to_canonical()
            }

            /// The port.
            pub fn port(&self) -> u16 {
                self.0.port()
            }
        }

        impl From<SocketAddr> for $name {
            /// An IPv4-mapped IPv6 address becomes the IPv4 address that it means.
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
    /// Who opened a connection: the application's own address.
    ClientAddr
}
address! {
    /// Where the application wanted to go, before redirection.
    OrigDst
}
address! {
    /// Where an application listens in a pod.
    PodAddr
}
address! {
    /// Where a proxy accepts HBONE.
    TunnelAddr
}
