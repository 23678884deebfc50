//! The messages of `istio.workload.zds`, which istio-cni and ztunnel also use.
//!
//! The definitions are hand-written: there are seven messages, unchanged since version 1. The field
//! numbers are the contract.

/// The first message of a proxy on a new connection.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ZdsHello {
    /// Protocol version, see [`Version`].
    #[prost(enumeration = "Version", tag = "1")]
    pub version: i32,
}

/// Protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    /// Never valid on the wire.
    NotUsed = 0,
    /// The only version so far.
    V1 = 1,
}

/// A request of the agent. The proxy answers requests in order, each with a [`WorkloadResponse`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadRequest {
    /// The request itself.
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<Payload>,
}

/// The kinds of requests.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Payload {
    /// Serve this pod; its network namespace is attached to the packet.
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    /// Stop serving this pod.
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    /// All pods that the agent knew at the start of the connection have been sent.
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    /// Keep serving this pod, although the agent no longer has a descriptor for it. Valid only
    /// before `SnapshotSent`.
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// A request to serve a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddWorkload {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Name and identity of the pod; required.
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Name and identity of a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadInfo {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Kubernetes service account, which determines the identity.
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// A request to stop serving a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DelWorkload {
    /// The pod's uid.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// A request to keep serving a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeepWorkload {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// The end of the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SnapshotSent {}

/// The proxy's answer to one request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadResponse {
    /// The answer itself.
    #[prost(oneof = "Response", tags = "1")]
    pub payload: Option<Response>,
}

/// The kinds of answers.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Response {
    /// Success or an error.
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// Success or an error.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ack {
    /// Error text; empty on success.
    #[prost(string, tag = "1")]
    pub error: String,
}
