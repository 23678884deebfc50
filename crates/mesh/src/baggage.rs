//! The `baggage` header, in which both ends of a tunnel describe their workloads for telemetry.

use crate::text::Text;
use crate::workload::{Workload, WorkloadType};

/// Attributes of a workload in the `baggage` header; empty if unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster_id: Text,
    /// `k8s.namespace.name`
    pub namespace: Text,
    /// `k8s.{deployment|cronjob|pod|job}.name`
    pub workload_name: Text,
    /// The kind of owner in that key.
    pub workload_type: WorkloadType,
    /// `service.name`
    pub canonical_name: Text,
    /// `service.version`
    pub canonical_revision: Text,
    /// `cloud.region`
    pub region: Text,
    /// `cloud.availability_zone`
    pub zone: Text,
}

impl From<&Workload> for Baggage {
    fn from(w: &Workload) -> Self {
        Self {
            cluster_id: w.cluster_id.clone(),
            namespace: w.namespace.clone(),
            workload_name: w.workload_name.clone(),
            workload_type: w.workload_type,
            canonical_name: w.canonical_name.clone(),
            canonical_revision: w.canonical_revision.clone(),
            region: w.locality.region.clone(),
            zone: w.locality.zone.clone(),
        }
    }
}

impl Baggage {
    /// Encodes the header value; empty attributes are omitted.
    pub fn encode(&self) -> String {
        let name = format!("k8s.{}.name", self.workload_type.as_str());
        let pairs = [
            ("k8s.cluster.name", &self.cluster_id),
            ("k8s.namespace.name", &self.namespace),
            (name.as_str(), &self.workload_name),
            ("service.name", &self.canonical_name),
            ("service.version", &self.canonical_revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let given: Vec<String> = pairs
            .into_iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        given.join(",")
    }

    /// Decodes the values of all `baggage` headers. Unknown and malformed entries are ignored.
    pub fn decode<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut baggage = Self::default();
        for (key, value) in values
            .into_iter()
            .flat_map(|v| v.split(','))
            .filter_map(|p| p.split_once('='))
        {
            // Ignore properties after a semicolon.
            let value = value.split(';').next().unwrap_or_default().trim();
            let field = match key.trim() {
                "k8s.cluster.name" => &mut baggage.cluster_id,
                "k8s.namespace.name" => &mut baggage.namespace,
                "service.name" => &mut baggage.canonical_name,
                "service.version" => &mut baggage.canonical_revision,
                "cloud.region" => &mut baggage.region,
                "cloud.availability_zone" => &mut baggage.zone,
                other => {
                    let is_key = |k: &WorkloadType| other == format!("k8s.{}.name", k.as_str());
                    let Some(kind) = WorkloadType::ALL.into_iter().find(is_key) else {
                        continue;
                    };
                    baggage.workload_type = kind;
                    &mut baggage.workload_name
                }
            };
            *field = value.into();
        }
        baggage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baggage_round_trips_and_omits_empty_attributes() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.\
                    name=web,service.version=v2";
        let baggage = Baggage::decode([text]);
        assert_eq!(baggage.workload_type, WorkloadType::Deployment);
        assert_eq!(baggage.encode(), text);
        assert_eq!(
            Baggage::decode(["k8s.job.name=x;a=b", "junk,=,a=b, cloud.region = r1 "]).region,
            "r1"
        );
        assert_eq!(Baggage::default().encode(), "");
    }
}
