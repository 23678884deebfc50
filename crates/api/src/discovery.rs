//! `envoy.service.discovery.v3`: incremental xDS, with one stream for all resource types.

use std::collections::BTreeMap;

use crate::protobuf::{Any, Status, Struct};

/// Path of the method.
pub const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The client, sent in the first request of each type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// `ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Additional properties.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}

/// A subscription request, or the acknowledgement of a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaRequest {
    /// The client.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Type URL of the resources.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names to subscribe to; `*` means all. In the first request of a type, an empty list also
    /// means all.
    #[prost(string, repeated, tag = "3")]
    pub subscribe: Vec<String>,
    /// Names to unsubscribe from.
    #[prost(string, repeated, tag = "4")]
    pub unsubscribe: Vec<String>,
    /// In the first request of a type on a new stream: the versions of all known resources.
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_resource_versions: BTreeMap<String, String>,
    /// Nonce of the response that this request acknowledges.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why resources of that response were rejected.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// A set of changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaResponse {
    /// For debugging.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Type URL of the resources.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Nonce to repeat in the acknowledgement.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of resources that were removed, or were requested and do not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// A resource.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resource {
    /// Version, which changes with the resource.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource itself.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Alternative names.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}
