//! Pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use crate::metadata::{ObjectMeta, api_object, slim_metadata};

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod {
    /// Name, namespace, uid, labels and annotations.
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    /// Desired state.
    #[serde(default)]
    pub spec: PodSpec,
    /// Current state.
    #[serde(default)]
    pub status: PodStatus,
}

/// Desired state of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Name of its node; empty until it is scheduled.
    pub node_name: String,
    /// Name of its service account.
    pub service_account_name: String,
    /// Whether it uses the node's network namespace.
    pub host_network: bool,
    /// Its runtime class; `None` for the node's default runtime.
    pub runtime_class_name: Option<String>,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its init containers, sidecars included.
    pub init_containers: Vec<Container>,
    /// Containers that were added to debug it.
    pub ephemeral_containers: Vec<Container>,
}

impl PodSpec {
    /// The containers of every kind.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        let others = self
            .init_containers
            .iter()
            .chain(&self.ephemeral_containers);
        self.containers.iter().chain(others)
    }

    /// The ports that the kubelet's probes connect to, each once, with their names if they are
    /// declared.
    pub fn probed_ports(&self) -> BTreeMap<u16, Option<&str>> {
        self.all_containers()
            .flat_map(Container::probed_ports)
            .collect()
    }
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// The name.
    pub name: String,
    /// The ports that it declares; it may listen on others.
    pub ports: Vec<ContainerPort>,
    /// Whether it has started.
    pub startup_probe: Option<Probe>,
    /// Whether it is ready.
    pub readiness_probe: Option<Probe>,
    /// Whether it is alive.
    pub liveness_probe: Option<Probe>,
    /// What its processes may do.
    pub security_context: SecurityContext,
}

/// A probe of the kubelet; one that runs a command has none of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// Sends an HTTP request.
    pub http_get: Option<ProbeTarget>,
    /// Opens a connection.
    pub tcp_socket: Option<ProbeTarget>,
    /// Queries a gRPC service.
    pub grpc: Option<ProbeTarget>,
}

/// Where a probe connects to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ProbeTarget {
    /// A number, or the name of a container's port.
    pub port: ProbePort,
    /// A host other than the pod.
    #[serde(default)]
    pub host: String,
}

/// The port of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ProbePort {
    /// The number.
    Number(u16),
    /// The name of a port that the container declares.
    Name(String),
}

impl Container {
    /// The ports that probes connect to, with their names if they are declared.
    fn probed_ports(&self) -> impl Iterator<Item = (u16, Option<&str>)> {
        let probes = [
            &self.startup_probe,
            &self.readiness_probe,
            &self.liveness_probe,
        ];
        let targets = probes.into_iter().flatten();
        let targets = targets.flat_map(|p| [&p.http_get, &p.tcp_socket, &p.grpc]);
        let of_pod = targets.flatten().filter(|target| target.host.is_empty());
        of_pod.filter_map(|target| {
            let is_it = |port: &&ContainerPort| match &target.port {
                ProbePort::Number(number) => port.container_port == *number,
                ProbePort::Name(name) => port.name == *name,
            };
            let declared = self.ports.iter().find(is_it);
            match (&target.port, declared) {
                (_, Some(port)) => Some((port.container_port, Some(port.name.as_str()))),
                (ProbePort::Number(number), None) => Some((*number, None)),
                (ProbePort::Name(_), None) => None,
            }
        })
    }
}

/// A port that a container declares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// The name; empty if it has none.
    pub name: String,
    /// The port.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// What a container's processes may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    /// Whether they have every capability.
    pub privileged: bool,
    /// Changes to the runtime's default capabilities.
    pub capabilities: Capabilities,
}

/// Changes to the default capabilities, by names with or without `CAP_`, or `ALL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
}

/// Current state of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Addresses, one of each family; empty before they are assigned and after the pod has
    /// finished.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// When the kubelet accepted it, before its sandbox was created; in whole seconds.
    pub start_time: Option<Time>,
}

/// An address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

impl Pod {
    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's uid, which is never reused.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// When the kubelet accepted it, before its sandbox was created; in whole seconds.
    pub fn started(&self) -> Option<SystemTime> {
        self.status.start_time.as_ref().map(|time| time.0.into())
    }

    /// The uid by which the kubelet and the runtime know the pod, in CNI_ARGS and cgroup names.
    /// That of a static pod is a digest of its manifest; the API server has another uid for its
    /// mirror pod, which changes whenever that is recreated.
    pub fn runtime_uid(&self) -> &str {
        /// Set on mirror pods by the kubelet (pkg/kubelet/types/pod_update.go).
        const MIRROR: &str = "kubernetes.io/config.mirror";
        const HASH: &str = "kubernetes.io/config.hash";
        let annotations = self.metadata.annotations.as_ref();
        let annotations = annotations.filter(|a| a.contains_key(MIRROR));
        annotations
            .and_then(|a| a.get(HASH))
            .map_or(self.uid(), String::as_str)
    }

    /// Whether all its containers have terminated and will not restart.
    pub fn has_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

api_object!(Pod, "", "Pod", "pods", NamespaceResourceScope);

/// Allows port forwarding to pods through the API server.
impl kube::api::Portforward for Pod {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_decode_the_fields_in_use_and_require_none_of_them() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "a",
                "namespace": "n",
                "uid": "u",
                "resourceVersion": "7",
                "labels": { "x": "y" },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": {
                "nodeName": "node",
                "serviceAccountName": "s",
                "containers": [{ "name": "main", "securityContext": { "privileged": true } }],
            },
            "status": {
                "phase": "Running",
                "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
                "startTime": "1970-01-01T00:01:40Z",
            },
        }))
        .unwrap();
        assert_eq!((pod.namespace(), pod.name(), pod.uid()), ("n", "a", "u"));
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        assert!(
            pod.metadata.managed_fields.is_none() && !pod.has_finished() && !pod.spec.host_network
        );
        assert_eq!(pod.status.pod_ips.len(), 2);
        let started = pod
            .started()
            .map(|at| at.duration_since(SystemTime::UNIX_EPOCH));
        assert_eq!(started.unwrap().unwrap().as_secs(), 100);
        let bare: Pod = serde_json::from_value(json!({ "metadata": { "name": "a" } })).unwrap();
        assert_eq!((bare.namespace(), bare.uid()), ("", ""));
        assert_eq!(bare.spec, PodSpec::default());
    }

    #[test]
    fn the_runtime_knows_a_static_pod_by_the_hash_of_its_manifest() {
        let runtime_uid = |annotations: serde_json::Value| {
            let metadata = json!({ "name": "a", "uid": "api", "annotations": annotations });
            let pod: Pod = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            pod.runtime_uid().to_owned()
        };
        let hash = "9d0cf4ea8a5d4b6f8f1f3b0f2f1a2b3c";
        let of = |mirror: Option<&str>| {
            let mut annotations = json!({ "kubernetes.io/config.hash": hash });
            if let Some(mirror) = mirror {
                annotations["kubernetes.io/config.mirror"] = json!(mirror);
            }
            runtime_uid(annotations)
        };
        assert_eq!(of(Some(hash)), hash);
        assert_eq!(of(None), "api", "not a mirror pod");
        assert_eq!(runtime_uid(json!(null)), "api");
    }

    #[test]
    fn succeeded_and_failed_pods_have_finished() {
        let has_finished = |phase: &str| {
            let status = PodStatus {
                phase: phase.to_owned(),
                ..PodStatus::default()
            };
            Pod {
                status,
                ..Pod::default()
            }
            .has_finished()
        };
        assert_eq!(
            ["Pending", "Running", "Succeeded", "Failed", "Unknown"].map(has_finished),
            [false, false, true, true, false]
        );
    }
}
