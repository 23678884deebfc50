//! `envoy.service.discovery.v3`: the incremental form of xDS, of which one stream carries every type.

use std::collections::BTreeMap;

use crate::protobuf::{Any, Status, Struct};

/// Path of the method.
pub const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Who asks. Said in the first request of each type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// `ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What else is known.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}

/// Subscribes, or answers a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaRequest {
    /// Who asks.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// The type that it is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names from now on wanted; `*` is all. In the first request of a type, none is all, too.
    #[prost(string, repeated, tag = "3")]
    pub subscribe: Vec<String>,
    /// Names no longer wanted.
    #[prost(string, repeated, tag = "4")]
    pub unsubscribe: Vec<String>,
    /// In the first request of a type on a new stream: the version of every resource that is there already.
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_resource_versions: BTreeMap<String, String>,
    /// The response that this answers.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// What of that response was not taken, and why.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// What has changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaResponse {
    /// For debugging.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// The type that it is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of resources that are gone, or were asked for and do not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// One resource.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resource {
    /// Changes whenever the resource does.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource itself.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names that it answers to.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}
