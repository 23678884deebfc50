//! Workloads: the pods of a mesh, and of what it talks to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// A pod, or something else with addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique among all workloads.
    pub uid: String,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Its addresses.
    pub workload_ips: Vec<IpAddr>,
    /// How it is reached.
    pub protocol: Protocol,
    /// Trust domain of its identity.
    pub trust_domain: String,
    /// Service account of its identity.
    pub service_account: String,
    /// The network that its addresses belong to.
    pub network: String,
    /// The node that it runs on.
    pub node: String,
    /// Name of the owner (such as a Deployment), for telemetry.
    pub workload_name: String,
    /// Kind of the owner: deployment, cronjob, pod or job.
    pub workload_type: WorkloadType,
    /// Istio's canonical name, for telemetry.
    pub canonical_name: String,
    /// Istio's canonical revision, for telemetry.
    pub canonical_revision: String,
    /// The cluster that it runs in.
    pub cluster_id: String,
    /// Where it runs.
    pub locality: Locality,
    /// `namespace/name` of the policies that select it by label.
    pub authorization_policies: Vec<String>,
    /// Whether it can take traffic.
    pub status: HealthStatus,
    /// Share of traffic among the endpoints of a service.
    pub capacity: u32,
    /// The services that it belongs to, as `namespace/hostname`, with its own port for each service port.
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
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
    pub region: String,
    /// Such as `europe-west1-b`.
    pub zone: String,
    /// Within a zone.
    pub subzone: String,
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
