//! What the agent counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How an ADD ended: `enrolled`, `skipped`, or the code of the error.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: String,
}

/// State of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct State {
    pub(crate) state: &'static str,
}

/// All metrics of the agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) pods: Family<State, Gauge>,
    pub(crate) proxies: Gauge,
    pub(crate) enrolments: Family<Outcome, Counter>,
    /// Seconds from the plugin's request to the answer Ready.
    pub(crate) enrolment_seconds: Histogram,
    /// Rules that somebody had changed and that were put right.
    pub(crate) repairs: Counter,
    pub(crate) probe_failures: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("underpass");
        let bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
        let metrics = (Family::default(), Gauge::default(), Family::default(), Histogram::new(bounds));
        registry.register("pods", "Pods of this node by state", metrics.0.clone());
        registry.register("proxies", "Proxies connected to the agent", metrics.1.clone());
        registry.register("enrolments", "CNI ADDs by how they ended", metrics.2.clone());
        registry.register_with_unit("enrolment", "Duration of successful ADDs", Unit::Seconds, metrics.3.clone());
        let (pods, proxies, enrolments, enrolment_seconds) = metrics;
        let (repairs, probe_failures) = (Counter::default(), Counter::default());
        registry.register("repairs", "Times that changed redirection of a pod was put right", repairs.clone());
        registry.register("probe_failures", "Probes of pods that the proxy did not answer", probe_failures.clone());
        Self { registry, pods, proxies, enrolments, enrolment_seconds, repairs, probe_failures }
    }

    /// The text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            text.clear(); // writing to a string does not fail
        }
        text
    }
}
