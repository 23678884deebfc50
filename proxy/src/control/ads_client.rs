//! The thread that keeps the mesh as the control plane has it. Only snapshots leave it, so a push of any size is received,
//! decoded and applied without holding up anything else.

use std::sync::Arc;
use std::time::Instant;

use api::discovery::{DeltaRequest, DeltaResponse, Node};
use api::to_mesh;
use mesh::{Mesh, Removed, Store};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::ads::{Ads, Kind, Push, Received, Rejected};
use super::backoff::{Backoff, Ended};
use super::demand::Demand;
use super::server::Server;
use super::status::{Applied, Status};
use crate::telemetry::Metrics;

/// After so many resources the connection has its turn, for its pings are to be answered.
const CONVERTED_AT_ONCE: usize = 512;

/// Where and as whom the mesh is asked for.
pub(crate) struct Discovery {
    pub(crate) server: Server,
    pub(crate) node: Node,
    pub(crate) on_demand: bool,
    /// As [`Store::preferring`] takes it.
    pub(crate) preferred_namespace: Option<String>,
}

/// The mesh as the control plane has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Newest {
    pub(crate) mesh: Arc<Mesh>,
    /// Whether something of each type has been received. Before that, a policy may be missing.
    pub(crate) complete: bool,
    /// The number of the push that made it so.
    pub(crate) push: u64,
}

/// What the thread tells the others.
pub(crate) struct Outlets {
    pub(crate) newest: watch::Sender<Newest>,
    pub(crate) status: Arc<Status>,
    /// What is waited for, where addresses are asked for one by one.
    pub(crate) demand: Option<Arc<Demand>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Starts the thread. `demands` are names that something waits for.
pub(crate) fn follow(
    discovery: Discovery,
    demands: UnboundedReceiver<String>,
    outlets: Outlets,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ads = Ads::new(discovery.node, discovery.on_demand);
    let store = Store::preferring(discovery.preferred_namespace.as_deref());
    let mut client = Client { server: discovery.server, ads, store, demands, outlets, pushes: 0 };
    std::thread::Builder::new().name("control-plane".into()).spawn(move || runtime.block_on(client.run()))?;
    Ok(())
}

struct Client {
    server: Server,
    ads: Ads,
    store: Store,
    demands: UnboundedReceiver<String>,
    outlets: Outlets,
    pushes: u64,
}

/// How a conversation ended, and what is to be told of it.
struct End {
    ended: Ended,
    /// The label of the metric.
    reason: &'static str,
    why: Option<String>,
}

impl Client {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let began = Instant::now();
            let end = self.converse().await;
            let wait = backoff.after(end.ended, began.elapsed());
            match &end.why {
                Some(why) => tracing::warn!("discovery ended, tried again in {} ms: {why}", wait.as_millis()),
                None => tracing::info!("the control plane ended the stream of discovery; another one is opened"),
            }
            self.outlets.metrics.control.terminated(end.reason);
            self.outlets.status.ended(end.why);
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection, from its beginning to its end.
    async fn converse(&mut self) -> End {
        let failed = |why: String| End { ended: Ended::Badly, reason: "ConnectionError", why: Some(why) };
        let connection = match self.server.connect().await {
            Ok((connection, _)) => connection,
            Err(e) => return failed(e.to_string()),
        };
        let (requests, outgoing) = unbounded_channel();
        let mut request = tonic::Request::new(UnboundedReceiverStream::new(outgoing));
        if let Err(e) = self.server.authorize(request.metadata_mut()) {
            return failed(e.to_string());
        }
        tracing::info!(server = %self.server.address, "connected to the control plane");
        self.outlets.status.connected();
        for first in self.ads.connected() {
            let _ = requests.send(first); // the stream is below
        }
        // Many servers send the head of their answer with its first message only, so even this may take long.
        let opened = {
            let opening = connection.delta(request);
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    opened = &mut opening => break opened,
                    Some(name) = self.demands.recv() => demand(&mut self.ads, &requests, name),
                }
            }
        };
        let mut responses = match opened {
            Ok(responses) => responses,
            Err(status) => return ended(&status),
        };
        loop {
            let response = tokio::select! {
                response = responses.message() => response,
                Some(name) = self.demands.recv() => {
                    demand(&mut self.ads, &requests, name);
                    continue;
                }
            };
            match response {
                Ok(Some(response)) => {
                    let answer = self.handle(response).await;
                    let _ = requests.send(answer); // an end is told by the responses
                }
                Ok(None) => return End { ended: Ended::Cleanly, reason: "Complete", why: None },
                Err(status) => return ended(&status),
            }
        }
    }

    /// Puts in force what a response says, and returns its answer.
    async fn handle(&mut self, response: DeltaResponse) -> DeltaRequest {
        self.outlets.metrics.control.received(&response);
        let push = match self.ads.received(response) {
            Received::Push(push) => push,
            Received::Unknown(answer) => {
                tracing::warn!(type_url = answer.type_url, "the control plane sent what was not asked for");
                return answer;
            }
        };
        let (kind, resources, removed, nonce) = Push::into_parts(push);
        self.pushes += 1;
        if let Some(demand) = &self.outlets.demand {
            let here = resources.iter().flat_map(|r| std::iter::once(&r.name).chain(&r.aliases));
            demand.answered(self.pushes, here.chain(&removed).map(String::as_str));
        }
        let (mut good, mut taken, mut rejected) = (Vec::with_capacity(resources.len()), Vec::new(), Vec::new());
        for (index, resource) in resources.into_iter().enumerate() {
            if index % CONVERTED_AT_ONCE == CONVERTED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let converted = match kind {
                Kind::Address => to_mesh::address(&resource.name, resource.resource.as_ref()),
                Kind::Authorization => to_mesh::authorization(&resource.name, resource.resource.as_ref()),
            };
            match converted {
                Ok(converted) => {
                    good.push(converted);
                    taken.push((resource.name, resource.version));
                }
                Err(why) => rejected.push(Rejected { name: resource.name, why: why.to_string() }),
            }
        }
        for Rejected { name, why } in rejected.iter().take(10) {
            let code = error_code::control::RESOURCE;
            tracing::error!(r#type = ?kind, "{code}: {name} was not taken: {why}");
        }
        tracing::debug!(r#type = ?kind, taken = taken.len(), removed = removed.len(), rejected = rejected.len(), "push");
        let gone = removed.iter().map(|name| match kind {
            Kind::Address => Removed::Address(name),
            Kind::Authorization => Removed::Policy(name),
        });
        self.store.apply(good, gone);
        let answer = self.tell(kind, nonce, taken, &removed, &rejected);
        self.outlets.newest.send_replace(Newest {
            mesh: self.store.snapshot(),
            complete: self.ads.synced(),
            push: self.pushes,
        });
        answer
    }

    fn tell(
        &mut self,
        kind: Kind,
        nonce: String,
        taken: Vec<(String, String)>,
        removed: &[String],
        rejected: &[Rejected],
    ) -> DeltaRequest {
        let names: Vec<String> = taken.iter().map(|(name, _)| name.clone()).collect();
        let answer = self.ads.applied(kind, nonce, taken, removed, rejected);
        self.outlets.status.pushed(Applied {
            kind,
            settled: names.iter().chain(removed).map(String::as_str).collect(),
            rejected,
            awaited: self.ads.awaited(),
            synced: self.ads.synced(),
            addresses: self.ads.count(Kind::Address),
            policies: self.ads.count(Kind::Authorization),
        });
        answer
    }
}

fn demand(ads: &mut Ads, requests: &UnboundedSender<DeltaRequest>, name: String) {
    if let Some(request) = ads.demand(name) {
        let _ = requests.send(request); // asked for again on the next stream
    }
}

/// Servers and connections come and go; what else a server says is a refusal.
fn ended(status: &tonic::Status) -> End {
    let benign = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable);
    let code = error_code::control::STREAM_ENDED;
    End {
        ended: if benign { Ended::Benignly } else { Ended::Badly },
        reason: if benign { "Reconnect" } else { "Error" },
        why: Some(format!("{code}: {:?}: {}", status.code(), status.message())),
    }
}
