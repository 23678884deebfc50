//! Pods.

use std::net::IpAddr;

use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use crate::metadata::{ObjectMeta, core_object, light};

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod {
    /// Names, uid, labels and annotations.
    #[serde(deserialize_with = "light")]
    pub metadata: ObjectMeta,
    /// What it should be.
    #[serde(default)]
    pub spec: PodSpec,
    /// What has become of it.
    #[serde(default)]
    pub status: PodStatus,
}

/// What a pod should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs; empty until that is decided.
    pub node_name: String,
    /// Its identity.
    pub service_account_name: String,
    /// Whether it has the node's network.
    pub host_network: bool,
}

/// What has become of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Its addresses, one of each family; none before they are known, and after its end.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<Address>,
}

/// An address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
}

impl Pod {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its uid, which no other pod ever has.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether its containers have ended for good.
    pub fn has_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

core_object!(Pod, "Pod", "pods", NamespaceResourceScope);

/// Its ports can be reached by the API server.
impl kube::api::Portforward for Pod {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_what_is_looked_at_and_needs_none_of_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": { "x": "y" },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": { "nodeName": "node", "serviceAccountName": "s", "containers": [{ "name": "main" }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
        }))
        .unwrap();
        assert_eq!((pod.namespace(), pod.name(), pod.uid()), ("n", "a", "u"));
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        assert!(pod.metadata.managed_fields.is_none() && !pod.has_finished() && !pod.spec.host_network);
        assert_eq!(pod.status.pod_ips.len(), 2);
        let bare: Pod = serde_json::from_value(json!({ "metadata": { "name": "a" } })).unwrap();
        assert_eq!((bare.namespace(), bare.uid()), ("", ""));
        assert_eq!(bare.spec, PodSpec::default());
    }

    #[test]
    fn a_finished_pod_is_one_that_ended_well_or_badly() {
        let ended = |phase: &str| {
            let status = PodStatus { phase: phase.to_owned(), ..PodStatus::default() };
            Pod { status, ..Pod::default() }.has_finished()
        };
        assert_eq!(
            ["Pending", "Running", "Succeeded", "Failed", "Unknown"].map(ended),
            [false, false, true, true, false]
        );
    }
}
