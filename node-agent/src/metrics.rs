//! The agent's metrics.

use std::sync::atomic::AtomicU64;

use agent_status::VerificationState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an enrolment: `enrolled`, `skipped`, or an error code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    pub(crate) outcome: String,
}

/// Labels of a pod's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabels {
    pub(crate) state: &'static str,
}

/// Labels of a start outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CauseLabels {
    pub(crate) cause: &'static str,
}

/// Declares [`Metrics`]: for each metric its field, type, initial value, name without prefix and
/// unit, help text, and unit if it has one.
macro_rules! metrics {
    ($(
        $field:ident: $type:ty = $value:expr, $name:literal, $help:literal $(, $unit:ident)?;
    )*) => {
        /// All metrics of the agent.
        #[derive(Debug)]
        pub(crate) struct Metrics {
            registry: Registry,
            $( #[doc = $help] pub(crate) $field: $type, )*
        }

        impl Metrics {
            pub(crate) fn new() -> Self {
                let mut registry = Registry::with_prefix("underpass");
                $(
                    let $field: $type = $value;
                    metrics!(@register registry, $field, $name, $help $(, $unit)?);
                )*
                Self { registry, $( $field ),* }
            }
        }
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal, $unit:ident) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
}

metrics! {
    pods: Family<StateLabels, Gauge> = Family::default(),
        "pods", "Pods on this node by state";
    proxies: Gauge = Gauge::default(),
        "proxies", "Proxies connected to the agent";
    enrolments: Family<OutcomeLabels, Counter> = Family::default(),
        "enrolments", "Enrolment attempts by outcome";
    enrolment_seconds: Histogram = quick(),
        "enrolment", "Duration of successful ADDs", Seconds;
    repairs: Counter = Counter::default(),
        "repairs", "Repairs of pods' redirection rules";
    probe_failures: Counter = Counter::default(),
        "probe_failures", "Probes that the proxy did not answer";
    drift_seconds: Histogram = long(),
        "drift", "Time from the detection of changed redirection rules to their repair", Seconds;
    not_verified_seconds: Family<StateLabels, Histogram> = not_verified(),
        "not_verified", "Time that pods were drifted or unverified before being verified", Seconds;
    started_outside_seconds: Family<CauseLabels, Histogram> = Family::new_with_constructor(long),
        "started_outside", "Time that mesh pods ran outside the mesh before they joined", Seconds;
    verification_seconds: Histogram = quick(),
        "verification", "Duration of the verification of a pod", Seconds;
    verification_age: Gauge<f64, AtomicU64> = Gauge::default(), // computed at each scrape
        "verification_age", "Longest time since a pod was last verified", Seconds;
    exempted_connections: Gauge = Gauge::default(), // computed at each scrape
        "exempted_connections", "Open connections of enrolled pods that are older than the mesh";
    pods_with_exclusions: Gauge = Gauge::default(), // computed at each scrape
        "pods_with_exclusions", "Enrolled pods with connections that bypass the proxy";
    tasks: Gauge = Gauge::default(), // computed at each scrape
        "tasks", "Asynchronous tasks that have not ended";
    host_probe_repairs: Counter = Counter::default(),
        "host_probe_repairs", "Repairs of the node's rule for health probes";
}

/// Has a series for each state from the start, so that the first incident adds none.
fn not_verified() -> Family<StateLabels, Histogram> {
    let family = Family::new_with_constructor(long as fn() -> Histogram);
    for state in [VerificationState::Drifted, VerificationState::Unverified] {
        let state = state.as_str();
        let _ = family.get_or_create(&StateLabels { state });
    }
    family
}

/// Buckets in seconds for operations with deadlines of a few seconds.
fn quick() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    ])
}

/// Buckets in seconds for durations as long as an outage.
fn long() -> Histogram {
    Histogram::new([
        0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
    ])
}

impl Metrics {
    /// Encodes all metrics in the Prometheus text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.clear(); // unreachable: writing to a string does not fail
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_exposed_under_their_documented_names() {
        let metrics = Metrics::new();
        metrics.repairs.inc();
        metrics.enrolment_seconds.observe(0.002);
        metrics
            .pods
            .get_or_create(&StateLabels { state: "leaving" })
            .set(3);
        let text = metrics.encode();
        for line in [
            "# HELP underpass_repairs Repairs of pods' redirection rules.",
            "underpass_repairs_total 1",
            "# UNIT underpass_enrolment_seconds seconds",
            "underpass_enrolment_seconds_bucket{le=\"0.0025\"} 1",
            "underpass_pods{state=\"leaving\"} 3",
            "# TYPE underpass_verification_age_seconds gauge",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    /// Every series with its labels, without values and help texts. `UPDATE_GOLDEN=1` rewrites the
    /// golden file; only lines may be added to it.
    #[test]
    fn metrics_and_labels_remain() {
        let metrics = Metrics::new();
        let state = StateLabels { state: "" };
        let _ = metrics.pods.get_or_create(&state);
        let _ = metrics.not_verified_seconds.get_or_create(&state);
        let cause = CauseLabels { cause: "" };
        let _ = metrics.started_outside_seconds.get_or_create(&cause);
        let outcome = String::new();
        let _ = metrics.enrolments.get_or_create(&OutcomeLabels { outcome });

        let text = metrics.encode();
        let series = text.lines().filter(|line| !line.starts_with("# HELP"));
        let series = series.map(|line| match line.rsplit_once(' ') {
            Some((series, _value)) if !line.starts_with('#') => series,
            _ => line,
        });
        let mut series: Vec<_> = series.collect();
        series.sort_unstable(); // the order of labels is random
        let series = series.join("\n") + "\n";
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics.golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &series).unwrap();
        }
        assert_eq!(series, std::fs::read_to_string(golden).unwrap());
    }
}
