//! `istio.workload`: workloads and services.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protobuf::UInt32Value;

/// A workload or a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    /// The workload or service.
    #[prost(oneof = "Type", tags = "1, 2")]
    pub r#type: Option<Type>,
}

/// The kinds of addresses.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(clippy::large_enum_variant)] // lives only until it is converted
pub enum Type {
    /// A pod, a virtual machine or an external endpoint. Its resource name is its uid.
    #[prost(message, tag = "1")]
    Workload(Workload),
    /// A service. Its resource name is `namespace/hostname`.
    #[prost(message, tag = "2")]
    Service(Service),
}

/// A workload.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Workload {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Addresses of 4 or 16 bytes each.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    /// The network that the addresses belong to.
    #[prost(string, tag = "4")]
    pub network: String,
    /// The protocol to connect by.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Trust domain; empty for `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Service account; empty for `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// The waypoint for all traffic to it.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// The node where it runs.
    #[prost(string, tag = "9")]
    pub node: String,
    /// Canonical name, for telemetry.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// Canonical revision, for telemetry.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// Kind of the owner, for telemetry.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Name of the owner, for telemetry.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// Whether it speaks the tunnel protocol itself.
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    /// Keys of the policies that select it by label.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    /// Whether it can receive traffic.
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    /// Cluster id; empty for `Kubernetes`.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    /// The gateway through which other networks reach it.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// Unique among all workloads.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// The host name to resolve if there are no addresses.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// The services that it is an endpoint of, by `namespace/hostname`, with its own target ports.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// How tunnelled connections are delivered to its application.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Region, zone and subzone.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// Whether it uses the node's network namespace.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// Weight among the endpoints of a service; absent for 1.
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<UInt32Value>,
}

/// A service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    /// Service name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Service namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Fully qualified host name.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Virtual addresses.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Ports; workloads may override the target ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// SPIFFE ids that its workloads may prove instead of their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint for all traffic to it.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How endpoints are chosen.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// Address families.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// Whether it wins over services with the same host name in other namespaces.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Whether ingress gateways also use the waypoint.
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    /// Waypoints that share its traffic by weight.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// The namespaces that can use it.
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// A waypoint and its weight.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightedWaypoint {
    /// The waypoint.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Weight relative to the other waypoints.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// An address, or the first `length` bits of one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkAddress {
    /// Network name.
    #[prost(string, tag = "1")]
    pub network: String,
    /// The address, 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Prefix length; absent for a single address.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// A host name in a namespace.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NamespacedHostname {
    /// Namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// A waypoint or a gateway between networks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GatewayAddress {
    /// Location of the gateway.
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    /// The port on which it accepts HBONE.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// The location of a gateway.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Destination {
    /// The host name of a service.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// An address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// A list of ports.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// A mapping from a service port to a target port.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Port {
    /// The service port.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// The target port.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
}

/// How tunnelled connections are delivered to an application.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ApplicationTunnel {
    /// The header that precedes each connection.
    #[prost(enumeration = "ApplicationProtocol", tag = "1")]
    pub protocol: i32,
    /// The port that receives all connections; 0 for the requested port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// The locality of a workload.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Locality {
    /// Region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// Zone.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// Subzone.
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// How endpoints of a service are chosen.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LoadBalancing {
    /// Scopes that client and endpoint should share, most important first.
    #[prost(enumeration = "Scope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// How the preferences are applied.
    #[prost(enumeration = "Mode", tag = "2")]
    pub mode: i32,
    /// The endpoints that can be chosen, by health.
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

macro_rules! enumerations {
    ($(
        $(#[$doc:meta])*
        pub enum $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $value:literal, )* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
        #[repr(i32)]
        pub enum $name { $( $(#[$variant_doc])* $variant = $value, )* }
    )*};
}

enumerations! {
    /// How to connect to a workload.
    pub enum TunnelProtocol {
        /// In plain text.
        None = 0,
        /// Through HTTP/2 CONNECT over mutual TLS.
        Hbone = 1,
        /// Istio mutual TLS of sidecars; not used by node proxies.
        LegacyIstioMtls = 2,
    }

    /// The kind of a workload's owner.
    pub enum WorkloadType {
        /// A Deployment.
        Deployment = 0,
        /// A CronJob.
        Cronjob = 1,
        /// A pod.
        Pod = 2,
        /// A Job.
        Job = 3,
    }

    /// Whether a workload can receive traffic.
    pub enum WorkloadStatus {
        /// It can receive traffic.
        Healthy = 0,
        /// It cannot receive traffic.
        Unhealthy = 1,
    }

    /// The network namespace that a workload uses.
    pub enum NetworkMode {
        /// Its own network namespace.
        Standard = 0,
        /// The node's network namespace.
        HostNetwork = 1,
    }

    /// The header that precedes a connection to an application.
    pub enum ApplicationProtocol {
        /// No header.
        None = 0,
        /// A PROXY protocol header, version 2.
        Proxy = 1,
    }

    /// Address families of a service.
    pub enum IpFamilies {
        /// The families of its addresses.
        Automatic = 0,
        /// IPv4 only.
        Ipv4Only = 1,
        /// IPv6 only.
        Ipv6Only = 2,
        /// IPv4 and IPv6.
        Dual = 3,
    }

    /// The namespaces that can use a service.
    pub enum Visibility {
        /// All namespaces.
        Public = 0,
        /// Only its own namespace.
        Namespace = 1,
    }

    /// A property that client and endpoint can share.
    pub enum Scope {
        /// Unspecified.
        Unspecified = 0,
        /// Region.
        Region = 1,
        /// Zone.
        Zone = 2,
        /// Subzone.
        Subzone = 3,
        /// Node.
        Node = 4,
        /// Cluster.
        Cluster = 5,
        /// Network.
        Network = 6,
    }

    /// How routing preferences are applied.
    pub enum Mode {
        /// Preferences are ignored.
        Unspecified = 0,
        /// Only endpoints that share all scopes.
        Strict = 1,
        /// The endpoints that share the most leading scopes.
        Failover = 2,
        /// The original destination; no endpoint is chosen.
        Passthrough = 3,
    }

    /// The endpoints that can be chosen, by health.
    pub enum HealthPolicy {
        /// Only healthy endpoints.
        OnlyHealthy = 0,
        /// All endpoints.
        AllowAll = 1,
    }
}
