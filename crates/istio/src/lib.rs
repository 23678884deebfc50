//! Names and numbers that Underpass shares with Istio. They are part of Istio's interface: istiod,
//! istioctl, istio-cni and ztunnel use the same values. Each is defined here once, and this crate
//! depends on nothing.

#![forbid(unsafe_code)]

/// TCP ports of a node proxy; DNS is served over UDP as well.
pub mod port {
    /// The admin interface.
    pub const ADMIN: u16 = 15000;
    /// In a pod: connections opened by the pod.
    pub const OUTBOUND: u16 = 15001;
    /// In a pod: plaintext connections to the pod.
    pub const INBOUND: u16 = 15006;
    /// In a pod: HBONE tunnels to the pod.
    pub const HBONE: u16 = 15008;
    /// Metrics.
    pub const STATS: u16 = 15020;
    /// Readiness.
    pub const READINESS: u16 = 15021;
    /// In a pod: DNS queries of the pod.
    pub const DNS: u16 = 15053;
}

/// Firewall marks of packets in a pod.
pub mod mark {
    /// The proxy's own packets.
    pub const PROXY: u32 = 0x539;
    /// Packets of connections that the proxy opened to the application from the client's address.
    pub const RETURN: u32 = 0x111;
    /// The bits of a packet's mark that hold one of these.
    pub const MASK: u32 = 0xfff;
}

/// The default root namespace, whose policies apply to all namespaces.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// The routing table to which istio-cni's ip rules in a pod lead.
pub const ROUTING_TABLE: u32 = 100;

/// Health probes of the kubelet.
pub mod probe {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    /// Source address that probes of pods in the mesh are translated to, IPv4.
    pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
    /// Source address that probes of pods in the mesh are translated to, IPv6.
    pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(
        0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
    );
    /// These addresses.
    pub const SOURCES: [IpAddr; 2] = [IpAddr::V4(SOURCE_V4), IpAddr::V6(SOURCE_V6)];
}

/// Labels of namespaces and pods.
pub mod label {
    /// Selects namespaces and pods for the mesh: `ambient`, or `none` to opt out.
    pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
}

/// Annotations of pods.
pub mod annotation {
    /// Present on pods with a sidecar.
    pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
    /// `enabled` on enrolled pods; istiod relies on it alone.
    pub const REDIRECTION: &str = "ambient.istio.io/redirection";
    /// Whether the pod's DNS is captured. Overrides the node's default.
    pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
    /// Whether plaintext connections to the pod bypass the proxy.
    pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
    /// Interfaces whose incoming connections are treated as outbound.
    pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
}

/// Taints of nodes.
pub mod taint {
    /// On nodes whose CNI agent is not ready yet.
    pub const NOT_READY: &str = "cni.istio.io/not-ready";
}
