//! The discovery thread, which keeps the mesh in sync with the control plane. It publishes
//! snapshots, so receiving, decoding and applying a large push delays nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::discovery::{DeltaRequest, DeltaResponse, Node};
use api::grpc::Code;
use api::to_mesh;
use mesh::{Mesh, MeshSettings, Resource, SettlingStore, TrustDomains};
use prost::Message;
use telemetry::Metrics;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::ads::{Ads, AppliedPush, RejectedResource, ResourceType, acknowledge};
use crate::backoff::{Backoff, CloseKind};
use crate::demand::{Demand, DemandRequest};
use crate::publisher::Publisher;
use crate::server::Server;
use crate::status::DiscoveryStatus;

/// Resources to convert before yielding, so that the connection can answer pings.
const CONVERSION_BATCH: usize = 512;
/// How long a server that was not sent the known versions has to send everything, from its first
/// response of each type. What it has not sent by then was removed. istiod sends everything in that
/// response; others may split it.
const CONFIRMATION_PERIOD: Duration = Duration::from_secs(5);

/// Configuration of the discovery client.
pub struct Discovery {
    /// The discovery server.
    pub server: Server,
    /// The description of this proxy.
    pub node: Node,
    /// Whether to request addresses one by one instead of all of them.
    pub on_demand: bool,
    /// Settings of the mesh.
    pub mesh: MeshSettings,
}

/// A snapshot of the mesh.
#[derive(Debug, Clone, Default)]
pub struct MeshUpdate {
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Whether a push of each resource type was received. Before that, a policy may be missing.
    pub complete: bool,
    /// Number of the push that produced this snapshot.
    pub push: u64,
}

/// Where the discovery thread publishes its results.
pub struct DiscoverySinks {
    /// Snapshots of the mesh.
    pub mesh: watch::Sender<MeshUpdate>,
    /// The status of the stream.
    pub status: Arc<DiscoveryStatus>,
    /// Pending lookups, if addresses are requested on demand.
    pub demand: Option<Arc<Demand>>,
    /// The metrics of discovery.
    pub metrics: Arc<Metrics>,
}

/// Starts the discovery thread. `demands` yields changes of the subscriptions to addresses
/// requested on demand.
pub fn follow(
    discovery: Discovery,
    demands: UnboundedReceiver<DemandRequest>,
    sinks: DiscoverySinks,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ads = Ads::new(discovery.node, discovery.on_demand);
    let settings = discovery.mesh;
    let trust_domains = settings.trust_domains.clone();
    let server = discovery.server;
    std::thread::Builder::new()
        .name("control-plane".into())
        .spawn(move || {
            let store = SettlingStore::new(settings);
            let publisher = Publisher::new(store, sinks.mesh.clone());
            let mut client = Client {
                server,
                ads,
                publisher: &publisher,
                trust_domains,
                demands,
                sinks,
                pushes: 0,
            };
            runtime.block_on(async {
                client.sinks.metrics.threads.add_current();
                tokio::join!(publisher.run(), client.run())
            });
        })?;
    Ok(())
}

struct Client<'a> {
    server: Server,
    ads: Ads,
    publisher: &'a Publisher,
    trust_domains: Arc<TrustDomains>,
    demands: UnboundedReceiver<DemandRequest>,
    sinks: DiscoverySinks,
    pushes: u64,
}

/// How a discovery stream ended.
struct StreamEnd {
    kind: CloseKind,
    /// Value of the metric's `reason` label.
    label: &'static str,
    reason: Option<String>,
}

impl Client<'_> {
    async fn run(&mut self) {
        let mut backoff = Backoff::new();
        loop {
            let began = Instant::now();
            let end = self.run_stream().await;
            let wait = backoff.next_delay(end.kind, began.elapsed(), rand::random());
            match &end.reason {
                Some(reason) => {
                    tracing::warn!(
                        "discovery stream failed, retrying in {} ms: {reason}",
                        wait.as_millis()
                    );
                }
                None => tracing::info!("control plane closed the discovery stream; reconnecting"),
            }
            self.sinks.metrics.count_discovery_end(end.label);
            self.sinks.status.set_disconnected(end.reason);
            tokio::time::sleep(wait).await;
        }
    }

    /// Runs one connection with its stream until it ends.
    async fn run_stream(&mut self) -> StreamEnd {
        let failed = |reason: String| StreamEnd {
            kind: CloseKind::Failed,
            label: "ConnectionError",
            reason: Some(reason),
        };
        let connection = match self.server.connect().await {
            Ok((connection, _)) => connection,
            Err(e) => return failed(e.to_string()),
        };
        let (requests, outgoing) = unbounded_channel();
        let mut request = api::grpc::Request::new(UnboundedReceiverStream::new(outgoing));
        if let Err(e) = self.server.authorize(request.metadata_mut()) {
            return failed(e.to_string());
        }
        tracing::info!(server = %self.server.address, "connected to the control plane");
        self.sinks.status.set_connected();
        for first in self.ads.handle_connect() {
            let _ = requests.send(first); // its receiver is in `request`
        }
        // Many servers send response headers only with the first message, so this may take long.
        let opened = {
            let opening = connection.delta(request);
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    opened = &mut opening => break opened,
                    Some(demand) = self.demands.recv() => {
                        resubscribe(&mut self.ads, &requests, demand);
                    }
                }
            }
        };
        let mut responses = match opened {
            Ok(responses) => responses,
            Err(status) => return self.stream_end(&status),
        };
        let mut confirmation_ends = None;
        loop {
            if !self.ads.awaits_confirmation() {
                confirmation_ends = None;
            } else if confirmation_ends.is_none() {
                confirmation_ends = Some(tokio::time::Instant::now() + CONFIRMATION_PERIOD);
            }
            let response = tokio::select! {
                response = responses.message() => response,
                () = sleep_until(confirmation_ends) => {
                    self.remove_unconfirmed();
                    continue;
                }
                Some(demand) = self.demands.recv() => {
                    resubscribe(&mut self.ads, &requests, demand);
                    continue;
                }
            };
            match response {
                Ok(Some(response)) => {
                    let answer = self.handle(response).await;
                    let _ = requests.send(answer); // a closed stream shows up in the responses
                }
                Ok(None) => {
                    return StreamEnd {
                        kind: CloseKind::Clean,
                        label: "Complete",
                        reason: None,
                    };
                }
                Err(status) => return self.stream_end(&status),
            }
        }
    }

    /// Classifies the status of a stream: lost connections and restarts are transient, other codes
    /// are errors.
    fn stream_end(&mut self, status: &api::grpc::Status) -> StreamEnd {
        let transient = matches!(
            status.code(),
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable
        );
        if status.code() == Code::ResourceExhausted {
            self.ads.handle_request_too_large();
        }
        let code = error_code::control::STREAM_ENDED;
        StreamEnd {
            kind: if transient {
                CloseKind::Transient
            } else {
                CloseKind::Failed
            },
            label: if transient { "Reconnect" } else { "Error" },
            reason: Some(format!("{code}: {:?}: {}", status.code(), status.message())),
        }
    }

    /// Removes the resources that the server has not sent on a stream without known versions.
    fn remove_unconfirmed(&mut self) {
        let unconfirmed = self.ads.take_unconfirmed();
        let removals = unconfirmed
            .iter()
            .flat_map(|(kind, names)| names.iter().map(|name| kind.removal(name)));
        self.publisher
            .apply(Vec::new(), removals, self.ads.is_synced(), self.pushes);
        let removed: usize = unconfirmed.iter().map(|(_, names)| names.len()).sum();
        tracing::info!(removed, "removed what the control plane no longer sends");
        self.sinks.status.record_counts(&self.ads);
    }

    /// Applies a response and returns its acknowledgement.
    async fn handle(&mut self, response: DeltaResponse) -> DeltaRequest {
        let kind = ResourceType::from_type_url(&response.type_url);
        let type_url = kind.map(ResourceType::type_url);
        let length = response.encoded_len();
        self.sinks.metrics.count_discovery_message(type_url, length);
        let Some(kind) = kind else {
            tracing::warn!(
                type_url = response.type_url,
                "unexpected resource type from the control plane"
            );
            return acknowledge(response.type_url, response.nonce, &[]);
        };
        let (resources, removed) = (response.resources, response.removed_resources);
        self.pushes += 1;
        if let Some(demand) = &self.sinks.demand {
            let present = resources
                .iter()
                .flat_map(|r| std::iter::once(&r.name).chain(&r.aliases));
            let (present, removed) = (present.map(String::as_str), removed.iter());
            demand.record_answers(self.pushes, present, removed.map(String::as_str));
        }
        let mut changes = Vec::with_capacity(resources.len());
        let (mut accepted, mut rejected, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        let mut notices = Vec::new();
        for (index, resource) in resources.into_iter().enumerate() {
            if index % CONVERSION_BATCH == CONVERSION_BATCH - 1 {
                tokio::task::yield_now().await;
            }
            let convert = match kind {
                ResourceType::Address => to_mesh::address,
                ResourceType::Authorization => to_mesh::authorization,
            };
            match convert(&resource.name, resource.resource.as_ref()) {
                Ok(converted) => {
                    if let Resource::Policy(policy) = &converted.resource
                        && let Some(why) = policy.impossible_principal(&self.trust_domains, None)
                    {
                        tracing::warn!("policy {}: {why}", resource.name);
                        notices.push((resource.name.clone(), why));
                    }
                    changes.push(converted.resource);
                    if !converted.not_understood.is_empty() {
                        rejected.push(RejectedResource {
                            name: resource.name.clone(),
                            reason: converted.not_understood.join(", "),
                            is_used: true,
                        });
                    }
                    let fields = converted.ignored.into_iter();
                    ignored.extend(fields.map(|field| (field, resource.name.clone())));
                    accepted.push((resource.name, resource.version));
                }
                Err(e) => {
                    changes.push(match kind {
                        ResourceType::Address => to_mesh::address_placeholder(&resource),
                        ResourceType::Authorization => to_mesh::policy_placeholder(&resource),
                    });
                    rejected.push(RejectedResource {
                        name: resource.name,
                        reason: e.to_string(),
                        is_used: false,
                    });
                }
            }
        }
        for rejected in rejected.iter().take(10) {
            let code = error_code::control::RESOURCE;
            let RejectedResource { name, reason, .. } = rejected;
            if rejected.is_used {
                tracing::error!(
                    r#type = ?kind,
                    "{code}: using resource {name} without what is not understood: {reason}"
                );
            } else {
                tracing::error!(r#type = ?kind, "{code}: rejected resource {name}: {reason}");
            }
        }
        for (field, name) in self.sinks.status.record_ignored(ignored) {
            tracing::warn!("ignoring {field}, which this version does not know, as in {name}");
        }
        tracing::debug!(
            r#type = ?kind,
            taken = accepted.len(),
            removed = removed.len(),
            rejected = rejected.len(),
            "applied push"
        );
        let push = AppliedPush {
            kind,
            nonce: response.nonce,
            accepted,
            removed,
            rejected,
            notices,
        };
        let answer = self.ads.handle_applied(&push);
        self.sinks.status.record_push(&push, &self.ads);
        let removals = push.removed.iter().map(|name| kind.removal(name));
        self.publisher
            .apply(changes, removals, self.ads.is_synced(), self.pushes);
        answer
    }
}

fn resubscribe(ads: &mut Ads, requests: &UnboundedSender<DeltaRequest>, demand: DemandRequest) {
    let request = match demand {
        DemandRequest::Subscribe(name) => Some(ads.subscribe(name)),
        DemandRequest::Unsubscribe(name) => ads.unsubscribe(name),
    };
    if let Some(request) = request {
        // A closed stream is retried, and the next one subscribes again.
        let _ = requests.send(request);
    }
}

/// Sleeps until a point in time; pending forever without one.
async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
