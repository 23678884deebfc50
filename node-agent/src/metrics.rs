//! What the agent counts.

use std::sync::atomic::AtomicU64;

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
    /// From the plugin's request to the answer Ready.
    pub(crate) enrolment_seconds: Histogram,
    /// Rules that somebody had changed and that were put right.
    pub(crate) repairs: Counter,
    pub(crate) probe_failures: Counter,
    /// From finding a difference to having put it right.
    pub(crate) drift_seconds: Histogram,
    /// How long pods were drifted or unverified, each time that one is verified again.
    pub(crate) not_verified_seconds: Family<State, Histogram>,
    /// One look at one pod.
    pub(crate) verification_seconds: Histogram,
    /// Of the pod whose last good look is the longest ago; set when somebody asks.
    pub(crate) verification_age: Gauge<f64, AtomicU64>,
    /// Times that the node's rule for health probes was put right.
    pub(crate) host_probe_repairs: Counter,
}

/// From the quickest thing that the agent does to its deadlines, in seconds.
fn quick() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0])
}

/// What may last as long as an outage does, in seconds.
fn long() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 1800.0, 7200.0])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("underpass"),
            pods: Family::default(),
            proxies: Gauge::default(),
            enrolments: Family::default(),
            enrolment_seconds: quick(),
            repairs: Counter::default(),
            probe_failures: Counter::default(),
            drift_seconds: long(),
            not_verified_seconds: Family::new_with_constructor(long),
            verification_seconds: quick(),
            verification_age: Gauge::default(),
            host_probe_repairs: Counter::default(),
        };
        let m = &mut metrics;
        let seconds = || Unit::Seconds;
        m.registry.register("pods", "Pods of this node by state", m.pods.clone());
        m.registry.register("proxies", "Proxies connected to the agent", m.proxies.clone());
        m.registry.register("enrolments", "CNI ADDs by how they ended", m.enrolments.clone());
        let (name, help) = ("enrolment", "Duration of successful ADDs");
        m.registry.register_with_unit(name, help, seconds(), m.enrolment_seconds.clone());
        let (name, help) = ("repairs", "Times that changed redirection of a pod was put right");
        m.registry.register(name, help, m.repairs.clone());
        let (name, help) = ("probe_failures", "Probes of pods that the proxy did not answer");
        m.registry.register(name, help, m.probe_failures.clone());
        let (name, help) = ("drift", "How long redirection differed from the plan, from its discovery to its repair");
        m.registry.register_with_unit(name, help, seconds(), m.drift_seconds.clone());
        let (name, help) = ("not_verified", "How long pods were drifted or unverified until they were verified again");
        m.registry.register_with_unit(name, help, seconds(), m.not_verified_seconds.clone());
        let (name, help) = ("verification", "Duration of one look at one pod");
        m.registry.register_with_unit(name, help, seconds(), m.verification_seconds.clone());
        let (name, help) = ("verification_age", "Time since the pod that has waited the longest was last verified");
        m.registry.register_with_unit(name, help, seconds(), m.verification_age.clone());
        let (name, help) = ("host_probe_repairs", "Times that the node's rule for health probes was put right");
        m.registry.register(name, help, m.host_probe_repairs.clone());
        metrics
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
