//! The messages of `istio.workload.zds`, as istiod's node agents and ztunnel exchange them.
//!
//! Written out by hand: there are seven, and they have not changed since version 1. The field numbers are the contract.

/// First message of a proxy on a new connection.
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

/// One request of the agent. The proxy answers each with a [`WorkloadResponse`], in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadRequest {
    /// What is asked for.
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<Payload>,
}

/// The kinds of requests.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Payload {
    /// Serve this pod; its network namespace travels with the packet.
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    /// Stop serving this pod.
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    /// Everything that this agent knew when the connection began has been sent.
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    /// Go on serving this pod, although the agent has no descriptor for it any more (only before `SnapshotSent`).
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// Serve a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddWorkload {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Who the pod is; mandatory.
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadInfo {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Pod namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Kubernetes service account, from which the identity follows.
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// Stop serving a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DelWorkload {
    /// The pod's uid.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// Go on serving a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeepWorkload {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// End of the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SnapshotSent {}

/// The proxy's answer to one request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadResponse {
    /// What is answered.
    #[prost(oneof = "Response", tags = "1")]
    pub payload: Option<Response>,
}

/// The kinds of answers.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Response {
    /// Done, or not done and why.
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// Done, or not done and why.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ack {
    /// Empty when done.
    #[prost(string, tag = "1")]
    pub error: String,
}
