//! Connecting to where a connection of a pod goes; elsewhere, if that fails and there is another place for it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use mesh::baggage::Baggage;
use mesh::route::{Route, route};
use mesh::{Host, HostPort, Mesh, OrigDst, Service, Text, Workload};
use tokio::net::TcpStream;

use super::error::ConnectionError;
use super::sockets;
use super::tunnel;
use super::worker::Worker;
use crate::hbone::{HboneStream, InnerKey, Opened, Opening, StreamCount, TunnelKey};
use crate::inpod::Pod;
use crate::telemetry::{Facts, OnDemandDnsLabels, Side};

/// How many endpoints of a service are tried at most.
const ENDPOINTS_TRIED: usize = 4;
/// No other endpoint is tried after so long: the application has waited enough.
const PATIENCE: Duration = Duration::from_secs(12);

/// A connection that is to be connected onwards. Nothing of it has been sent yet.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) pod: &'a Arc<Pod>,
    pub(super) source: &'a Workload,
    pub(super) orig_dst: OrigDst,
    pub(super) client: SocketAddr,
    pub(super) started: Instant,
}

/// The other side, connected.
pub(super) enum Upstream {
    Tunnel(HboneStream, StreamCount),
    Plain(TcpStream),
}

impl Attempt<'_> {
    /// Connects, and says in `facts` to what.
    pub(super) async fn connect(&self, facts: &mut Facts) -> Result<Upstream, ConnectionError> {
        let mut tried: Vec<Text> = Vec::new();
        let mut failure = None;
        loop {
            let mesh = self.mesh().await;
            let decision = route(&mesh, self.source, self.orig_dst, rand::random(), &tried);
            tracing::debug!(from = self.source.namespaced_name(), to = %self.orig_dst, "route: {}", decision.reason);
            if let (Route::Refuse { .. }, Some(failure)) = (&decision.outcome, failure.take()) {
                return Err(failure);
            }
            let replaceable = decision.outcome.replaceable().cloned();
            let error = match self.follow(decision.outcome, decision.reason, facts).await {
                Ok(upstream) => return Ok(upstream),
                Err(error) => error,
            };
            let more = tried.len() + 1 < ENDPOINTS_TRIED && self.started.elapsed() < PATIENCE;
            match replaceable {
                Some(uid) if more && error.another_may_do() && !tried.contains(&uid) => {
                    tracing::debug!(to = %self.orig_dst, endpoint = %uid, "another endpoint is tried: {error}");
                    tried.push(uid);
                    failure = Some(error);
                }
                _ => return Err(error),
            }
        }
    }

    /// The mesh, with what is needed for this connection where that has to be asked for.
    async fn mesh(&self) -> Arc<Mesh> {
        let node = &self.worker.node;
        let mesh = node.mesh.load_full();
        let Some(demand) = &node.demand else { return mesh };
        let (network, ip) = (&self.source.network, self.orig_dst.ip());
        let known = mesh.workload_by_ip(network, ip).is_some()
            || mesh.service_by_vip(network, ip, &self.source.namespace).is_some();
        if known {
            return mesh;
        }
        demand.address(network, ip).await;
        node.mesh.load_full()
    }

    async fn follow(&self, route: Route, reason: String, facts: &mut Facts) -> Result<Upstream, ConnectionError> {
        match route {
            Route::Tunnel { tunnel, authority, expected, inner, workload, service, .. } => {
                facts.source.identity = Some(self.pod.identity());
                facts.destination = Side::workload(&workload, Some(workload.identity()));
                facts.authority = Some(authority.clone());
                facts.service.clone_from(&service);
                let to = self.resolve(&tunnel, &facts.source).await?;
                facts.destination_addr = to;
                // Both are the same name, and must not become two addresses.
                let authority = match authority.host == tunnel.host {
                    true => SocketAddr::new(to.ip(), authority.port).into(),
                    false => authority,
                };
                facts.authority = Some(authority.clone());
                let inner = inner.map(|expected| InnerKey { authority: authority.clone(), expected });
                let opening = Opening {
                    authority,
                    baggage: Baggage::from(self.source).encode(),
                    forwarded: forwarded(self.client, service.as_deref()),
                    network: inner.is_some().then(|| self.source.network.clone()),
                };
                let key = TunnelKey { pod: self.pod.uid.clone(), to: to.into(), expected, inner };
                let Opened { stream, count, headers } = tunnel::open(self.worker, self.pod, &key, &opening).await?;
                // Only the other network knows which of its workloads has answered.
                if key.inner.is_some() && self.worker.node.options.response_baggage {
                    facts.destination = behind_gateway(&headers, &facts.destination);
                }
                Ok(Upstream::Tunnel(stream, count))
            }
            Route::Direct { to, workload, service } => {
                facts.source.identity = None;
                facts.authority = None;
                facts.destination = workload.as_deref().map(|w| Side::workload(w, None)).unwrap_or_default();
                facts.service = service;
                let to = self.resolve(&to, &facts.source).await?;
                facts.destination_addr = to;
                let connected = sockets::connect(self.pod, to, None).await;
                connected.map(Upstream::Plain).map_err(|e| ConnectionError::Connect { to, why: e.to_string() })
            }
            Route::Refuse { service } => {
                facts.service = service;
                Err(ConnectionError::NoUpstream(reason))
            }
        }
    }

    /// An address of the application's own family, where there is one; of several, any.
    async fn resolve(&self, to: &HostPort, source: &Side) -> Result<SocketAddr, ConnectionError> {
        let name = match &to.host {
            Host::Address(ip) => return Ok(SocketAddr::new(*ip, to.port)),
            Host::Name(name) => name,
        };
        let node = &self.worker.node;
        node.metrics.on_demand_dns.get_or_create(&OnDemandDnsLabels::new(name, source)).inc();
        let addresses = node.resolver.resolve(self.pod, name).await.map_err(ConnectionError::NoUpstream)?;
        let mut fitting: Vec<_> = addresses.iter().filter(|a| a.is_ipv6() == self.orig_dst.ip().is_ipv6()).collect();
        if fitting.is_empty() {
            fitting.extend(addresses.iter());
        }
        let chosen = rand::random_range(0..fitting.len().max(1));
        let chosen =
            fitting.get(chosen).ok_or_else(|| ConnectionError::NoUpstream(format!("{name} has no address")))?;
        Ok(SocketAddr::new(**chosen, to.port))
    }
}

/// Who has answered, by its own words: for telemetry, and no more is known of it.
fn behind_gateway(headers: &HeaderMap, expected: &Side) -> Side {
    let mut values = headers.get_all("baggage").iter().filter_map(|v| v.to_str().ok()).peekable();
    if values.peek().is_none() {
        return expected.clone();
    }
    let attributes = Baggage::decode(values);
    Side { workload: None, attributes, identity: expected.identity.clone() }
}

fn forwarded(client: SocketAddr, service: Option<&Service>) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    match service {
        Some(service) => format!("for=\"{client}\";host={}", service.hostname),
        None => format!("for=\"{client}\""),
    }
}
