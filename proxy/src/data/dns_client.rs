//! What the DNS servers see of a pod and of the data path.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use dns::{AnswerCache, Client, Limits, Settings};
use hbone::ByteStream;
use mesh::{Mesh, OrigDst, Workload};
use telemetry::{ConnectionFacts, Metrics};

use super::connection::until_terminated;
use super::upstream::{Attempt, Upstream};
use super::worker::{Lifecycle, Worker};
use crate::inpod::Pod;

/// A pod whose queries a worker serves.
#[derive(Clone)]
pub(super) struct DnsClient {
    pub(super) worker: Rc<Worker>,
    pub(super) pod: Arc<Pod>,
}

impl Client for DnsClient {
    type Network = Arc<Pod>;
    type Stream = Box<dyn ByteStream>;

    fn network(&self) -> &Arc<Pod> {
        &self.pod
    }

    async fn connect(&self, client: SocketAddr, to: SocketAddr) -> Result<Self::Stream, String> {
        let source = self.workload(&self.mesh());
        let (client, orig_dst) = (client.into(), OrigDst(to));
        let mut facts = ConnectionFacts::outbound(client, &source, orig_dst);
        let attempt = Attempt {
            worker: &self.worker,
            pod: &self.pod,
            source: &source,
            orig_dst,
            client,
            started: Instant::now(),
        };
        match attempt.connect(&mut facts).await {
            Ok(Upstream::Tunnel(stream, _)) => Ok(stream.into_io()),
            Ok(Upstream::Plain(stream)) => Ok(Box::new(stream)),
            // No offer is made.
            Ok(Upstream::Joined(stream, _)) => Ok(stream.into_io()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn uid(&self) -> &str {
        &self.pod.uid
    }

    fn limits(&self) -> &Limits {
        &self.pod.dns
    }

    fn cache(&self) -> &AnswerCache {
        &self.pod.dns_answers
    }

    fn settings(&self) -> Option<&Settings> {
        self.worker.proxy.dns.as_ref()
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.worker.proxy.metrics
    }

    fn mesh(&self) -> Arc<Mesh> {
        self.worker.proxy.mesh.load_full()
    }

    fn workload(&self, mesh: &Mesh) -> Arc<Workload> {
        self.pod.workload(mesh)
    }

    fn spawn(&self, query: impl Future<Output = ()> + 'static) {
        self.worker.clone().track(query);
    }

    async fn until_draining(&self) {
        let mut lifecycle = self.worker.proxy.lifecycle.clone();
        // An error means that the proxy exits.
        let _ = lifecycle.wait_for(|l| *l != Lifecycle::Serving).await;
    }

    async fn until_terminated(&self) -> String {
        until_terminated(&self.worker, &self.pod).await.to_string()
    }
}
