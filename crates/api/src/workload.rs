//! `istio.workload`: workloads and services.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protobuf::UInt32Value;

/// A workload or a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    /// Which of the two.
    #[prost(oneof = "Type", tags = "1, 2")]
    pub r#type: Option<Type>,
}

/// What an address leads to.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(clippy::large_enum_variant)] // lives only until it is converted
pub enum Type {
    /// A pod, a virtual machine, or something else outside. Its resource name is its uid.
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
    /// Addresses, of 4 or 16 bytes.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    /// The network that the addresses belong to.
    #[prost(string, tag = "4")]
    pub network: String,
    /// How it is reached.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Empty for `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Empty for `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// All traffic to it goes through this.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// The node that it runs on.
    #[prost(string, tag = "9")]
    pub node: String,
    /// For telemetry.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// For telemetry.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// For telemetry.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Name of the owner, for telemetry.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// Whether it speaks the tunnel protocol itself.
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    /// Keys of the policies that select it.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    /// Whether it can take traffic.
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    /// Empty for `Kubernetes`.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    /// How it is reached from other networks.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// Unique among all workloads.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// For a workload without addresses: the name to resolve.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// The services that it is an endpoint of, by `namespace/hostname`, with its own ports.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// How its application takes tunnels.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// Whether its address is its own.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// Its share of traffic; absent for 1.
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
    /// Fully qualified.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Virtual addresses.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Ports; a workload may have its own target ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// SPIFFE ids that its workloads may have besides their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// All traffic to it goes through this.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How an endpoint is chosen.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// Families that it has.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// Whether it goes before others of its name in other namespaces.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Whether ingress goes through the waypoint, too.
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    /// Several waypoints, each with its share of traffic.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Who may see it.
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// A waypoint and its share.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightedWaypoint {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Relative to the other weights.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// An address, or the first `length` bits of one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkAddress {
    /// Which network.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Absent when it is one address.
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
    /// Where it is.
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    /// Where it takes HBONE.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// Where a gateway is.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Destination {
    /// By name.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// By address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// Ports.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortList {
    /// The list.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// One port.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Port {
    /// The service's.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// The workload's.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
}

/// How an application takes tunnels.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ApplicationTunnel {
    /// What it wants to be told.
    #[prost(enumeration = "ApplicationProtocol", tag = "1")]
    pub protocol: i32,
    /// Where; 0 for the port that is asked for.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// Where something runs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Locality {
    /// Region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// Zone.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// Part of a zone.
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// How an endpoint is chosen.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LoadBalancing {
    /// What caller and endpoint should have in common, most important first.
    #[prost(enumeration = "Scope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// What these preferences mean.
    #[prost(enumeration = "Mode", tag = "2")]
    pub mode: i32,
    /// Which endpoints count.
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

macro_rules! enumeration {
    ($(#[$doc:meta])* $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $value:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
        #[repr(i32)]
        pub enum $name { $( $(#[$variant_doc])* $variant = $value, )* }
    };
}

enumeration! {
    /// How a workload is reached.
    TunnelProtocol {
        /// In plain text.
        None = 0,
        /// Through HTTP/2 CONNECT over mutual TLS.
        Hbone = 1,
        /// As sidecars do; not for node proxies.
        LegacyIstioMtls = 2,
    }
}
enumeration! {
    /// What kind of owner.
    WorkloadType {
        /// A Deployment.
        Deployment = 0,
        /// A CronJob.
        Cronjob = 1,
        /// A pod.
        Pod = 2,
        /// A Job.
        Job = 3,
    }
}
enumeration! {
    /// Whether a workload can take traffic.
    WorkloadStatus {
        /// It can.
        Healthy = 0,
        /// It cannot.
        Unhealthy = 1,
    }
}
enumeration! {
    /// Whether an address is a workload's own.
    NetworkMode {
        /// It is.
        Standard = 0,
        /// It is the node's.
        HostNetwork = 1,
    }
}
enumeration! {
    /// What an application wants to be told.
    ApplicationProtocol {
        /// Nothing.
        None = 0,
        /// A PROXY header, version 2.
        Proxy = 1,
    }
}
enumeration! {
    /// Families of a service.
    IpFamilies {
        /// Those of its addresses.
        Automatic = 0,
        /// IPv4.
        Ipv4Only = 1,
        /// IPv6.
        Ipv6Only = 2,
        /// Both.
        Dual = 3,
    }
}
enumeration! {
    /// Who may see a service.
    Visibility {
        /// Everybody.
        Public = 0,
        /// Its own namespace.
        Namespace = 1,
    }
}
enumeration! {
    /// What caller and endpoint can have in common.
    Scope {
        /// Not said.
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
}
enumeration! {
    /// What routing preferences mean.
    Mode {
        /// Nothing.
        Unspecified = 0,
        /// All of them, or no endpoint.
        Strict = 1,
        /// As many of them as possible.
        Failover = 2,
        /// No choice: the original destination.
        Passthrough = 3,
    }
}
enumeration! {
    /// Which endpoints count.
    HealthPolicy {
        /// Healthy ones.
        OnlyHealthy = 0,
        /// All.
        AllowAll = 1,
    }
}
