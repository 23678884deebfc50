//! Workloads: pods and other endpoints, inside and outside the mesh.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::gateway::{ApplicationTunnel, GatewayAddress};
use crate::identity::{DEFAULT_TRUST_DOMAIN, Identity};
use crate::membership::Memberships;
use crate::text::Text;

/// A pod, or another endpoint with an address or a host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique among all workloads.
    pub uid: Text,
    /// Pod name.
    pub name: Text,
    /// Pod namespace.
    pub namespace: Text,
    /// IP addresses.
    pub workload_ips: Vec<IpAddr>,
    /// The host name to resolve if there are no addresses.
    pub hostname: Text,
    /// How to connect to it.
    pub protocol: Protocol,
    /// The trust domain of its identity.
    pub trust_domain: Text,
    /// The service account of its identity.
    pub service_account: Text,
    /// The network that its addresses belong to.
    pub network: Text,
    /// The waypoint for traffic that is addressed to the workload and not to a service.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway through which other networks reach it.
    pub network_gateway: Option<GatewayAddress>,
    /// The node where it runs.
    pub node: Text,
    /// Name of the owner (such as a Deployment), for telemetry.
    pub workload_name: Text,
    /// Kind of the owner: deployment, cronjob, pod or job.
    pub workload_type: WorkloadType,
    /// Istio's canonical name, for telemetry.
    pub canonical_name: Text,
    /// Istio's canonical revision, for telemetry.
    pub canonical_revision: Text,
    /// The cluster where it runs.
    pub cluster_id: Text,
    /// Region, zone and subzone.
    pub locality: Locality,
    /// Whether it speaks HBONE itself.
    pub native_tunnel: bool,
    /// How tunnelled connections are delivered to its application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// `namespace/name` of the policies that select it by label.
    pub authorization_policies: Vec<Text>,
    /// Whether it can receive traffic.
    pub status: HealthStatus,
    /// Weight among the endpoints of a service.
    pub capacity: u32,
    /// The services that it belongs to, with its own target ports where they differ.
    pub services: Memberships,
    /// Pod labels; empty if the source of this workload does not provide them.
    pub labels: BTreeMap<String, String>,
    /// Pod annotations; empty if the source of this workload does not provide them.
    pub annotations: BTreeMap<String, String>,
    /// Whether the pod uses the node's network namespace.
    pub host_network: bool,
}

/// How to connect to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Through a tunnel to port 15008.
    Hbone,
    /// Directly, in plain text.
    Tcp,
    /// In a way that this version does not understand: not at all.
    #[serde(skip_deserializing)]
    Unsupported,
}

/// The kind of a workload's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment or a similar controller.
    Deployment,
    /// A CronJob.
    Cronjob,
    /// A bare pod.
    #[default]
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    pub(crate) const ALL: [Self; 4] = [Self::Deployment, Self::Cronjob, Self::Pod, Self::Job];

    /// The name used in baggage.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Cronjob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload can receive traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HealthStatus {
    /// The workload can receive traffic.
    #[default]
    Healthy,
    /// The workload currently cannot receive traffic.
    Unhealthy,
}

/// The locality of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Locality {
    /// The region, such as `europe-west1`.
    pub region: Text,
    /// The zone, such as `europe-west1-b`.
    pub zone: Text,
    /// The subzone within the zone.
    pub subzone: Text,
}

impl Default for Workload {
    /// A workload with the defaults of the workload API.
    fn default() -> Self {
        Self {
            uid: Text::default(),
            name: Text::default(),
            namespace: Text::default(),
            workload_ips: Vec::new(),
            hostname: Text::default(),
            protocol: Protocol::Tcp,
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            service_account: "default".into(),
            network: Text::default(),
            waypoint: None,
            network_gateway: None,
            node: Text::default(),
            workload_name: Text::default(),
            workload_type: WorkloadType::default(),
            canonical_name: Text::default(),
            canonical_revision: Text::default(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            status: HealthStatus::default(),
            capacity: 1,
            services: Memberships::default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            host_network: false,
        }
    }
}

impl Workload {
    /// The SPIFFE identity.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// A stand-in for a workload or a service of which only the resource name and addresses are
    /// known. Nothing connects to it, and it accepts nothing.
    pub fn placeholder(uid: &str, network: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            uid: uid.into(),
            network: network.into(),
            workload_ips: addresses,
            protocol: Protocol::Unsupported,
            ..Self::default()
        }
    }

    /// Whether this is a [`placeholder`](Self::placeholder).
    pub fn is_placeholder(&self) -> bool {
        self.protocol == Protocol::Unsupported && self.name.is_empty()
    }

    /// `namespace/name`; the uid of a placeholder.
    pub fn namespaced_name(&self) -> String {
        self.display_name().to_string()
    }

    /// [`Workload::namespaced_name`], formatted when it is read.
    pub(crate) fn display_name(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self.is_placeholder() {
            true => f.write_str(&self.uid),
            false => write!(f, "{}/{}", self.namespace, self.name),
        })
    }
}
