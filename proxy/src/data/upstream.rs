//! Connecting to the destination of a pod's connection, retrying other endpoints of a service.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::{ConnectRequest, HboneStream, InnerKey, TunnelKey, forwarded};
use http::HeaderMap;
use mesh::baggage::Baggage;
use mesh::route::{Route, route, route_unexplained};
use mesh::{
    ClientAddr, Decision, Host, HostPort, Mesh, OrigDst, ServerAddr, Text, TunnelAddr, Workload,
};
use telemetry::{ConnectionFacts, Side};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::budget::Account;
use super::endpoint_health;
use super::error::ConnectionError;
use super::join::{HandedOver, Offer};
use super::options::SameNode;
use super::tunnel;
use super::worker::Worker;
use crate::inpod::Pod;

/// Maximum number of endpoints of a service to try.
const MAX_ENDPOINTS: usize = 4;
/// How long an endpoint may take to be connected if there is another one to try.
const REPLACEABLE_DEADLINE: Duration = Duration::from_secs(2);
/// Maximum number of endpoints on nodes that are down to skip, which bounds the work.
const MAX_SKIPPED: usize = 16;
/// No further endpoint is tried once the application has waited this long.
const RETRY_DEADLINE: Duration = Duration::from_secs(12);

/// An accepted connection whose destination is to be connected. None of its data has been sent yet.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) pod: &'a Arc<Pod>,
    pub(super) source: &'a Workload,
    pub(super) orig_dst: OrigDst,
    pub(super) client: ClientAddr,
    pub(super) started: Instant,
}

/// A chosen route, and what its choice depended on besides the mesh.
struct Choice {
    route: Route,
    random: u64,
    /// Uids of the endpoints that were not considered.
    skipped: Vec<Text>,
}

/// The connected destination.
pub(super) enum Upstream {
    /// With the account of the bytes that wait in the stream.
    Tunnel(HboneStream, Rc<Account>),
    /// The destination's end is in this process and has handed over its socket. The stream stays
    /// open.
    Joined(HboneStream, Box<HandedOver>),
    Plain(TcpStream),
}

impl Attempt<'_> {
    /// Connects to the destination and records it in `facts`.
    pub(super) async fn connect(
        &self,
        facts: &mut ConnectionFacts,
    ) -> Result<Upstream, ConnectionError> {
        let mut tried: Vec<Text> = Vec::new();
        let mut failure = None;
        let health = || self.worker.endpoint_health.borrow_mut();
        loop {
            let mesh = self.mesh().await?;
            let choice = self.choose(&mesh, &tried);
            tracing::debug!(
                event = "route_chosen",
                from = self.source.namespaced_name(),
                to = %self.orig_dst,
                "route: {}",
                self.explain(&mesh, &choice).reason
            );
            if let (Route::Refuse { .. }, Some(failure)) = (&choice.route, failure.take()) {
                return Err(failure);
            }
            let replaceable = choice.route.replaceable().cloned();
            let may_retry = |tried: &[Text]| {
                tried.len() + 1 < MAX_ENDPOINTS && self.started.elapsed() < RETRY_DEADLINE
            };
            let is_replaceable = || {
                let mut uid = replaceable.iter();
                may_retry(&tried) && uid.any(|uid| self.has_other(&mesh, &tried, uid))
            };
            let key = endpoint_health::key(&choice.route).cloned();
            let reached = Cell::new(false);
            let is_plain = matches!(choice.route, Route::Direct { .. });
            let (random, skipped) = (choice.random, choice.skipped.clone());
            let connected = {
                let connecting = self.connect_route(&mesh, choice, facts, &reached);
                tokio::pin!(connecting);
                match timeout(REPLACEABLE_DEADLINE, &mut connecting).await {
                    Ok(connected) => Some(connected),
                    Err(_) if is_replaceable() => None,
                    Err(_) => Some(connecting.await),
                }
            };
            if is_plain && self.has_other_route(&mesh, random, &skipped) {
                continue; // nothing has been sent
            }
            let (is_silent, error) = match connected {
                Some(Ok(upstream)) => {
                    key.inspect(|key| health().answered(key));
                    return Ok(upstream);
                }
                Some(Err(error)) => (error.is_silence(), error),
                None => {
                    let late = format!("not within {} s", REPLACEABLE_DEADLINE.as_secs());
                    let late = io::Error::new(io::ErrorKind::TimedOut, late);
                    let to = facts.destination_addr;
                    (!reached.get(), ConnectionError::connecting(to)(late))
                }
            };
            if let Some(key) = key.filter(|_| is_silent) {
                health().failed(&key, Instant::now());
            }
            let may_retry = may_retry(&tried);
            match replaceable {
                Some(uid) if may_retry && error.is_retriable() && !tried.contains(&uid) => {
                    tracing::debug!(
                        to = %self.orig_dst,
                        endpoint = %uid,
                        "connecting failed, trying another endpoint: {error}"
                    );
                    tried.push(uid);
                    failure = Some(error);
                }
                _ => return Err(error),
            }
        }
    }

    /// Routes the connection past nodes that are down, as long as there are other endpoints.
    fn choose(&self, mesh: &Mesh, tried: &[Text]) -> Choice {
        let mut health = self.worker.endpoint_health.borrow_mut();
        let choose = |skipped: Vec<Text>| {
            let random = rand::random();
            let route = route_unexplained(mesh, self.source, self.orig_dst, random, &skipped);
            Choice {
                route,
                random,
                skipped,
            }
        };
        let mut skipped = tried.to_vec();
        loop {
            let choice = choose(skipped.clone());
            let route = &choice.route;
            if skipped.len() > tried.len() && matches!(route, Route::Refuse { .. }) {
                break; // all are down: any of them
            }
            match (route.replaceable(), endpoint_health::key(route)) {
                (Some(uid), Some(key))
                    if skipped.len() < tried.len() + MAX_SKIPPED
                        && !skipped.contains(uid)
                        && health.is_avoided(key, Instant::now()) =>
                {
                    skipped.push(uid.clone());
                }
                _ => return choice,
            }
        }
        choose(tried.to_vec())
    }

    /// The decision by which a route was chosen, with its reason.
    fn explain(&self, mesh: &Mesh, choice: &Choice) -> Decision<Route> {
        let Choice {
            random, skipped, ..
        } = choice;
        route(mesh, self.source, self.orig_dst, *random, skipped)
    }

    /// Whether there is another endpoint than those that were tried and this one.
    fn has_other(&self, mesh: &Mesh, tried: &[Text], uid: &Text) -> bool {
        let but = [tried, std::slice::from_ref(uid)].concat();
        let other = route_unexplained(mesh, self.source, self.orig_dst, rand::random(), &but);
        other.replaceable().is_some_and(|u| !but.contains(u))
    }

    /// Whether a connection that this mesh lets pass in plain text has another route by now: its
    /// destination may have joined the mesh while it was being connected.
    fn has_other_route(&self, mesh: &Arc<Mesh>, random: u64, skipped: &[Text]) -> bool {
        let current = self.worker.proxy.mesh.load();
        let route = || route_unexplained(&current, self.source, self.orig_dst, random, skipped);
        !Arc::ptr_eq(&current, mesh) && !matches!(route(), Route::Direct { .. })
    }

    /// Returns the mesh, after looking up the destination on demand if it is unknown.
    async fn mesh(&self) -> Result<Arc<Mesh>, ConnectionError> {
        let proxy = &self.worker.proxy;
        let mesh = proxy.mesh.load_full();
        let Some(demand) = &proxy.demand else {
            return Ok(mesh);
        };
        let (network, ip) = (&self.source.network, self.orig_dst.ip());
        let known = mesh.workload_by_ip(network, ip).is_some()
            || mesh
                .service_by_vip(network, ip, &self.source.namespace)
                .is_some();
        if known {
            return Ok(mesh);
        }
        let discovered = demand.wait_for_address(&self.pod.uid, network, ip);
        discovered.await?;
        Ok(proxy.mesh.load_full())
    }

    /// Connects along a route. `reached` is whether the other proxy answers.
    async fn connect_route(
        &self,
        mesh: &Mesh,
        choice: Choice,
        facts: &mut ConnectionFacts,
        reached: &Cell<bool>,
    ) -> Result<Upstream, ConnectionError> {
        match choice.route {
            Route::Tunnel {
                tunnel,
                authority,
                expected,
                inner,
                workload,
                service,
                ..
            } => {
                facts.source.identity = Some(self.pod.identity());
                facts.destination = Side::workload(&workload, Some(workload.identity()));
                facts.authority = Some(authority.clone());
                facts.service.clone_from(&service);
                let to = self.resolve(&tunnel, &facts.source).await?;
                facts.destination_addr = to;
                // The same name must not resolve to two different addresses.
                let authority = if authority.host == tunnel.host {
                    SocketAddr::new(to.ip(), authority.port).into()
                } else {
                    authority
                };
                facts.authority = Some(authority.clone());
                let inner = inner.map(|expected| InnerKey {
                    authority: authority.clone(),
                    expected,
                });
                let offer = self.offer(&workload, to.0.into(), inner.is_some());
                let request = ConnectRequest {
                    join: offer.as_ref().map(Offer::token),
                    authority,
                    baggage: Baggage::from(self.source).encode(),
                    forwarded: forwarded(self.client, service.as_deref().map(|s| &s.hostname)),
                    network: inner.is_some().then(|| self.source.network.clone()),
                };
                let key = TunnelKey {
                    pod: self.pod.uid.clone(),
                    to: to.0.into(),
                    expected,
                    inner,
                };
                let opened = tunnel::open(self.worker, self.pod, &key, &request, reached).await?;
                let sent_once = request.join.is_some_and(|token| token.was_sent_once());
                let accepted = offer.filter(|_| sent_once).and_then(Offer::accepted);
                if let Some(handed_over) = accepted {
                    return Ok(Upstream::Joined(opened.stream, Box::new(handed_over)));
                }
                // Only the other network knows which of its workloads answered.
                if key.inner.is_some() && self.worker.proxy.options.response_baggage {
                    facts.destination =
                        destination_from_baggage(&opened.headers, &facts.destination);
                }
                Ok(Upstream::Tunnel(opened.stream, self.pod.budget.account()))
            }
            Route::Direct {
                to,
                workload,
                service,
            } => {
                facts.source.identity = None;
                facts.authority = None;
                facts.destination = workload
                    .as_deref()
                    .map(|w| Side::workload(w, None))
                    .unwrap_or_default();
                facts.service = service;
                let to = self.resolve(&to, &facts.source).await?;
                facts.destination_addr = to;
                let connected = match self.chosen_source() {
                    Some(source) => pod_socket::connect_from(source, self.pod, to).await,
                    None => pod_socket::connect(self.pod, to).await,
                };
                connected
                    .map(Upstream::Plain)
                    .map_err(ConnectionError::connecting(to))
            }
            Route::Refuse { ref service } => {
                facts.service.clone_from(service);
                let decision = self.explain(mesh, &choice);
                Err(ConnectionError::NoRoute(Box::new(decision)))
            }
        }
    }

    /// An offer to join the connection, if the destination may be served by this process. Whether
    /// it is, the destination's end decides.
    fn offer(&self, workload: &Workload, to: TunnelAddr, is_nested: bool) -> Option<Offer> {
        let proxy = &self.worker.proxy;
        let is_here = !workload.node.is_empty()
            && workload.node == self.source.node
            && workload.cluster_id == self.source.cluster_id
            && workload.network == self.source.network;
        let offers = proxy.options.same_node == SameNode::Join && is_here && !is_nested;
        offers.then(|| Offer::new(&proxy.joins, self.pod.identity(), to))
    }

    /// The address that the application has bound its socket to, for all that can be known. An
    /// unbound socket has the address of the route by which it is captured, which is the pod's
    /// first; only the routes that the proxy's own socket meets know the right one.
    fn chosen_source(&self) -> Option<IpAddr> {
        let source = self.client.ip();
        let mut of_family = self.source.workload_ips.iter();
        let first = of_family.find(|a| a.is_ipv4() == source.is_ipv4());
        (first != Some(&source)).then_some(source)
    }

    /// Resolves a host name to a random one of its addresses, preferably of the original
    /// destination's family.
    async fn resolve(&self, to: &HostPort, source: &Side) -> Result<ServerAddr, ConnectionError> {
        let name = match &to.host {
            Host::Address(ip) => return Ok(SocketAddr::new(*ip, to.port).into()),
            Host::Name(name) => name,
        };
        self.worker.proxy.metrics.count_on_demand_dns(name, source);
        let resolved = self.pod.resolver.resolve(self.pod, name).await;
        let addresses = resolved.map_err(ConnectionError::Unresolved)?;
        let is_ipv6 = self.orig_dst.ip().is_ipv6();
        let mut candidates: Vec<_> = addresses
            .iter()
            .filter(|a| a.is_ipv6() == is_ipv6)
            .collect();
        if candidates.is_empty() {
            candidates.extend(addresses.iter());
        }
        let index = rand::random_range(0..candidates.len().max(1));
        let address = candidates
            .get(index)
            .ok_or_else(|| ConnectionError::Unresolved(format!("{name} has no address")))?;
        Ok(SocketAddr::new(**address, to.port).into())
    }
}

/// Describes the destination by the baggage of the response, which is unverified: telemetry only.
fn destination_from_baggage(headers: &HeaderMap, expected: &Side) -> Side {
    let mut values = headers
        .get_all("baggage")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .peekable();
    if values.peek().is_none() {
        return expected.clone();
    }
    let attributes = Baggage::decode(values);
    Side {
        workload: None,
        attributes,
        identity: expected.identity.clone(),
    }
}
