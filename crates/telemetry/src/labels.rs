//! The labels of metrics, under Istio's names.

use std::fmt;
use std::str::FromStr;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder};

/// The proxy that reports a connection: the client's or the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // these are the label values
pub enum Reporter {
    /// The client's proxy.
    source,
    /// The server's proxy.
    destination,
}

/// Declares labels that differ by workload. An excluded label is empty, and is not encoded.
macro_rules! workload_labels {
    ($(#[$documentation:meta])* $labels:ident: $($label:ident),+) => {
        $(#[$documentation])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub(crate) struct $labels {
            $( pub(crate) $label: String, )+
        }

        impl $labels {
            const NAMES: &[&str] = &[$( stringify!($label) ),+];

            fn unknown() -> Self {
                Self { $( $label: UNKNOWN.to_owned() ),+ }
            }

            pub(crate) fn exclude(&mut self, excluded: &ExcludedLabels) {
                $( if excluded.0.contains(&stringify!($label)) { self.$label.clear(); } )+
            }
        }

        impl EncodeLabelSet for $labels {
            fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
                $( if !self.$label.is_empty() {
                    let label = (stringify!($label), self.$label.as_str());
                    EncodeLabel::encode(&label, encoder.encode_label())?;
                } )+
                Ok(())
            }
        }
    };
}

workload_labels! {
    /// Istio's labels of the source of a connection.
    SourceLabels: source_workload, source_canonical_service, source_canonical_revision,
        source_workload_namespace, source_principal, source_app, source_version, source_cluster
}

workload_labels! {
    /// Istio's labels of the destination of a connection.
    DestinationLabels: destination_service, destination_service_namespace,
        destination_service_name, destination_workload, destination_canonical_service,
        destination_canonical_revision, destination_workload_namespace, destination_principal,
        destination_app, destination_version, destination_cluster
}

workload_labels! {
    /// Istio's labels of where both ends of a connection are.
    LocalityLabels: source_region, source_zone, destination_region, destination_zone
}

/// Istio's labels of connection metrics. Unknown values are `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TrafficLabels {
    pub(crate) reporter: Reporter,
    #[prometheus(flatten)]
    pub(crate) source: SourceLabels,
    #[prometheus(flatten)]
    pub(crate) destination: DestinationLabels,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_flags: &'static str,
    pub(crate) connection_security_policy: &'static str,
    #[prometheus(flatten)]
    pub(crate) locality: LocalityLabels,
}

/// Labels that connection metrics do not have, to limit the number of series.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExcludedLabels(Vec<&'static str>);

/// The name of a label that cannot be excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidLabel(String);

impl ExcludedLabels {
    /// The labels that can be excluded. The others have few values.
    fn all() -> impl Iterator<Item = &'static str> {
        let sets = [
            SourceLabels::NAMES,
            DestinationLabels::NAMES,
            LocalityLabels::NAMES,
        ];
        sets.into_iter().flatten().copied()
    }
}

impl FromStr for ExcludedLabels {
    type Err = InvalidLabel;

    /// Parses names that are separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
        let find = |name: &str| {
            let mut all = Self::all();
            all.find(|label| *label == name)
                .ok_or_else(|| InvalidLabel(name.to_owned()))
        };
        names.map(find).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for InvalidLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = ExcludedLabels::all().collect();
        write!(
            f,
            "label {:?} cannot be excluded: expected names, separated by commas, among {}",
            self.0,
            all.join(", ")
        )
    }
}

impl std::error::Error for InvalidLabel {}

/// The value of a label whose value is not known.
pub(crate) const UNKNOWN: &str = "unknown";

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

    /// Removes the excluded labels.
    pub(crate) fn exclude(&mut self, excluded: &ExcludedLabels) {
        self.source.exclude(excluded);
        self.destination.exclude(excluded);
        self.locality.exclude(excluded);
    }

    /// A connection of which nothing is known.
    pub(crate) fn unknown() -> Self {
        Self {
            reporter: Reporter::source,
            source: SourceLabels::unknown(),
            destination: DestinationLabels::unknown(),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: UNKNOWN,
            locality: LocalityLabels::unknown(),
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

/// How a forwarded DNS query was answered with the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // the label's values
pub enum CacheResult {
    /// From the cache.
    hit,
    /// By the name server, together with an earlier equal query.
    shared,
    /// By the name server, or not at all.
    miss,
    /// With an expired answer, because no name server answered.
    stale,
}

impl CacheResult {
    pub(crate) const ALL: [Self; 4] = [Self::hit, Self::shared, Self::miss, Self::stale];
}

/// The label of DNS cache metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CacheLabel {
    pub(crate) result: CacheResult,
}

/// Istio's labels of name lookups on behalf of connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OnDemandDnsLabels {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_workloads_can_be_excluded_and_no_others() {
        let excluded = |text: &str| text.parse::<ExcludedLabels>();
        assert_eq!(excluded(""), Ok(ExcludedLabels::default()));
        assert_eq!(
            excluded("source_principal, destination_zone,"),
            Ok(ExcludedLabels(vec!["source_principal", "destination_zone"]))
        );
        assert_eq!(ExcludedLabels::all().count(), 23);
        for name in [
            "reporter",
            "response_flags",
            "Source_app",
            "source_app;source_zone",
        ] {
            let error = excluded(&format!("source_app,{name}")).unwrap_err();
            assert_eq!(error, InvalidLabel(name.to_owned()));
            let text = error.to_string();
            assert!(
                text.contains(name) && text.contains("destination_service,"),
                "{text}"
            );
        }
    }
}
