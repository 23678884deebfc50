//! Clients of an Istio control plane. Delta discovery (delta xDS) keeps the mesh up to date on its
//! own thread: a state machine without I/O decides what to subscribe to and acknowledge, and only
//! snapshots of the mesh leave the thread. [`CaClient`] requests certificates as an
//! [`Issuer`](identity::Issuer). Both connect as [`Settings`] describe, which are derived from
//! options with Istio's names.

#![forbid(unsafe_code)]

mod ads;
mod ads_client;
mod backoff;
mod ca_client;
mod demand;
mod dial;
mod node;
mod proxy_config;
mod publisher;
mod roots;
mod server;
mod settings;
mod status;
mod token;

pub use ads_client::{Discovery, DiscoverySinks, MeshUpdate, follow};
pub use ca_client::CaClient;
pub use demand::{Demand, DemandRequest, UndiscoveredAddress};
pub use settings::{Options, SettingError, Settings, SettingsContext};
pub use status::{DiscoveryReport, DiscoveryStatus};
