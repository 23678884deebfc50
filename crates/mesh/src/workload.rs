//! Workloads: the pods of a mesh, and of what it talks to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::gateway::{ApplicationTunnel, GatewayAddress};
use crate::identity::{DEFAULT_TRUST_DOMAIN, Identity};
use crate::membership::Memberships;
use crate::text::Text;

/// A pod, or something else that is reached at an address or by a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique among all workloads.
    pub uid: Text,
    /// Pod name.
    pub name: Text,
    /// Pod namespace.
    pub namespace: Text,
    /// Its addresses.
    pub workload_ips: Vec<IpAddr>,
    /// A name to resolve, for one without addresses.
    pub hostname: Text,
    /// How it is reached.
    pub protocol: Protocol,
    /// Trust domain of its identity.
    pub trust_domain: Text,
    /// Service account of its identity.
    pub service_account: Text,
    /// The network that its addresses belong to.
    pub network: Text,
    /// What traffic to it passes through, unless it is addressed as a service.
    pub waypoint: Option<GatewayAddress>,
    /// Through what it is reached from other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// The node that it runs on.
    pub node: Text,
    /// Name of the owner (such as a Deployment), for telemetry.
    pub workload_name: Text,
    /// Kind of the owner: deployment, cronjob, pod or job.
    pub workload_type: WorkloadType,
    /// Istio's canonical name, for telemetry.
    pub canonical_name: Text,
    /// Istio's canonical revision, for telemetry.
    pub canonical_revision: Text,
    /// The cluster that it runs in.
    pub cluster_id: Text,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it speaks HBONE itself.
    pub native_tunnel: bool,
    /// How tunnels to it are passed on to its application.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// `namespace/name` of the policies that select it by label.
    pub authorization_policies: Vec<Text>,
    /// Whether it can take traffic.
    pub status: HealthStatus,
    /// Share of traffic among the endpoints of a service.
    pub capacity: u32,
    /// The services that it belongs to, with its own port for each service port that it maps differently.
    pub services: Memberships,
    /// Pod labels, as far as the source of this workload has them.
    pub labels: BTreeMap<String, String>,
    /// Pod annotations, as far as the source of this workload has them.
    pub annotations: BTreeMap<String, String>,
    /// Whether the pod has the node's network namespace.
    pub host_network: bool,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Through a tunnel to port 15008.
    Hbone,
    /// Directly, in plain text.
    Tcp,
}

/// The kind of a workload's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment, or anything like it.
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
    /// The word that baggage uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Cronjob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload can take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HealthStatus {
    /// It can.
    #[default]
    Healthy,
    /// It cannot, now.
    Unhealthy,
}

/// Where a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Locality {
    /// Such as `europe-west1`.
    pub region: Text,
    /// Such as `europe-west1-b`.
    pub zone: Text,
    /// Within a zone.
    pub subzone: Text,
}

impl Default for Workload {
    /// One about which nothing is known but what is true unless said otherwise.
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
    /// Who it is.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// `namespace/name`, as people write it.
    pub fn namespaced_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
