//! The interface to the data path.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh::{Mesh, Workload};
use pod_socket::PodNetwork;
use telemetry::Metrics;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{AnswerCache, Limits, Settings};

/// A pod whose queries are served, with what the servers need of the data path. Clones refer to the
/// same pod.
pub trait Client: Clone + 'static {
    /// The network that queries are forwarded from.
    type Network: PodNetwork;

    /// A connection to a name server.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The pod's network.
    fn network(&self) -> &Self::Network;

    /// Connects to a name server on behalf of a client in the pod, through the mesh like any
    /// connection of the pod. The error describes why it failed.
    fn connect(
        &self,
        client: SocketAddr,
        to: SocketAddr,
    ) -> impl Future<Output = Result<Self::Stream, String>>;

    /// The pod's uid, for logs.
    fn uid(&self) -> &str;

    /// The limits on the pod's concurrent queries.
    fn limits(&self) -> &Limits;

    /// The answers to the pod's forwarded queries.
    fn cache(&self) -> &AnswerCache;

    /// The settings; `None` if DNS is not served.
    fn settings(&self) -> Option<&Settings>;

    /// The metrics to count queries in.
    fn metrics(&self) -> &Arc<Metrics>;

    /// The current mesh.
    fn mesh(&self) -> Arc<Mesh>;

    /// The pod's workload.
    fn workload(&self, mesh: &Mesh) -> Arc<Workload>;

    /// Runs a query in a task of its own, which the proxy waits for while it drains.
    fn spawn(&self, query: impl Future<Output = ()> + 'static);

    /// Completes when the proxy begins to drain.
    fn until_draining(&self) -> impl Future<Output = ()>;

    /// Completes, with the reason, when the pod leaves or the proxy terminates.
    fn until_terminated(&self) -> impl Future<Output = String>;
}
