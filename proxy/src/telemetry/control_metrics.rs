//! Metrics of the connection to the control plane, under Istio's names where it has some.

use api::discovery::DeltaResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use prost::Message;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Url {
    url: String,
}

/// What is counted of discovery.
#[derive(Debug, Default)]
pub(crate) struct ControlMetrics {
    terminations: Family<Reason, Counter>,
    messages: Family<Url, Counter>,
    bytes: Family<Url, Counter>,
    /// In seconds: 0 while the control plane keeps the state up to date.
    pub(crate) state_age: Gauge,
}

impl ControlMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let ended = "Connections for discovery that ended, by why";
        registry.register("istio_xds_connection_terminations", ended, self.terminations.clone());
        registry.register("istio_xds_message", "Messages of discovery received", self.messages.clone());
        registry.register("istio_xds_message_bytes", "Bytes of messages of discovery received", self.bytes.clone());
        let age = "How long ago the state in force was that of the control plane";
        registry.register_with_unit("underpass_state_age", age, Unit::Seconds, self.state_age.clone());
    }

    /// A conversation has ended.
    pub(crate) fn terminated(&self, reason: &'static str) {
        self.terminations.get_or_create(&Reason { reason }).inc();
    }

    /// A message has come. Types that nobody asked for are counted as one, for a server can name any number.
    pub(crate) fn received(&self, response: &DeltaResponse) {
        let known = [api::ADDRESS, api::AUTHORIZATION].contains(&response.type_url.as_str());
        let url = Url { url: if known { response.type_url.clone() } else { "unknown".to_owned() } };
        self.messages.get_or_create(&url).inc();
        self.bytes.get_or_create(&url).inc_by(response.encoded_len() as u64);
    }
}
