//! The labels of metrics, under Istio's names.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

/// The proxy that reports a connection: the client's or the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // these are the label values
pub enum Reporter {
    /// The client's proxy.
    source,
    /// The server's proxy.
    destination,
}

/// Istio's labels of the source of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabels {
    pub(crate) source_workload: String,
    pub(crate) source_canonical_service: String,
    pub(crate) source_canonical_revision: String,
    pub(crate) source_workload_namespace: String,
    pub(crate) source_principal: String,
    pub(crate) source_app: String,
    pub(crate) source_version: String,
    pub(crate) source_cluster: String,
}

/// Istio's labels of connection metrics. Unknown values are `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TrafficLabels {
    pub(crate) reporter: Reporter,
    #[prometheus(flatten)]
    pub(crate) source: SourceLabels,
    pub(crate) destination_service: String,
    pub(crate) destination_service_namespace: String,
    pub(crate) destination_service_name: String,
    pub(crate) destination_workload: String,
    pub(crate) destination_canonical_service: String,
    pub(crate) destination_canonical_revision: String,
    pub(crate) destination_workload_namespace: String,
    pub(crate) destination_principal: String,
    pub(crate) destination_app: String,
    pub(crate) destination_version: String,
    pub(crate) destination_cluster: String,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_flags: &'static str,
    pub(crate) connection_security_policy: &'static str,
    pub(crate) source_region: String,
    pub(crate) source_zone: String,
    pub(crate) destination_region: String,
    pub(crate) destination_zone: String,
}

/// The value of a label whose value is not known.
pub(crate) const UNKNOWN: &str = "unknown";

impl SourceLabels {
    /// An unknown source.
    fn unknown() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            source_workload: unknown(),
            source_canonical_service: unknown(),
            source_canonical_revision: unknown(),
            source_workload_namespace: unknown(),
            source_principal: unknown(),
            source_app: unknown(),
            source_version: unknown(),
            source_cluster: unknown(),
        }
    }
}

impl TrafficLabels {
    /// These labels with nothing but the reporter, the protocol and the security policy.
    pub(crate) fn without_workloads(self) -> Self {
        Self {
            reporter: self.reporter,
            request_protocol: self.request_protocol,
            connection_security_policy: self.connection_security_policy,
            ..Self::unknown()
        }
    }

    /// A connection of which nothing is known.
    pub(crate) fn unknown() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            reporter: Reporter::source,
            source: SourceLabels::unknown(),
            destination_service: unknown(),
            destination_service_namespace: unknown(),
            destination_service_name: unknown(),
            destination_workload: unknown(),
            destination_canonical_service: unknown(),
            destination_canonical_revision: unknown(),
            destination_workload_namespace: unknown(),
            destination_principal: unknown(),
            destination_app: unknown(),
            destination_version: unknown(),
            destination_cluster: unknown(),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: UNKNOWN,
            source_region: unknown(),
            source_zone: unknown(),
            destination_region: unknown(),
            destination_zone: unknown(),
        }
    }
}

/// The label of metrics that differ by reporter only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReporterLabel {
    pub(crate) reporter: Reporter,
}

/// Istio's labels of DNS metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DnsLabels {
    /// The type of the queried records, such as `A`.
    pub request_query_type: &'static str,
    /// `udp` or `tcp`.
    pub request_protocol: &'static str,
    /// The application of the querying pod.
    pub source_canonical_service: String,
    /// Its version.
    pub source_canonical_revision: String,
}

/// Istio's labels of name lookups on behalf of connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OnDemandDnsLabels {
    pub(crate) hostname: String,
    #[prometheus(flatten)]
    pub(crate) source: SourceLabels,
}

/// Why a discovery stream ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

/// The type of a discovery message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct UrlLabel {
    pub(crate) url: &'static str,
}
