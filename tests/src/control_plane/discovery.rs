//! Delta discovery, with injectable faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use api::discovery::{DeltaRequest, DeltaResponse, Resource};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use prost::Message;
use tokio::sync::broadcast;

use super::RequestHead;
use super::grpc::{Incoming, Outgoing};

/// Upper bound of a request, in bytes, as in istiod (ISTIO_GPRC_MAXRECVMSGSIZE).
const MAX_REQUEST: usize = 4 << 20;
/// The gRPC status code `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: u32 = 8;

/// A request of a client, and its stream, counted from 0.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// The stream.
    pub stream: usize,
    /// The message.
    pub request: DeltaRequest,
}

/// The resources of a mesh and the streams that serve them.
#[derive(Debug)]
pub struct Discovery {
    inner: Mutex<Inner>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Inner {
    resources: BTreeMap<(&'static str, String), Resource>,
    version: u64,
    nonce: u64,
    heads: Vec<RequestHead>,
    requests: Vec<ReceivedRequest>,
    /// Types for which no response is sent.
    silent: BTreeSet<&'static str>,
    delay: Duration,
}

#[derive(Debug, Clone)]
enum Event {
    /// Resources of a type have changed.
    Changed(&'static str, Vec<String>),
    /// Send this response.
    Response(Box<DeltaResponse>),
    /// Send these bytes as the beginning of a message of this length.
    Raw(usize, Bytes),
    /// End the stream with this status.
    End(u32, &'static str),
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            events: broadcast::Sender::new(64),
        }
    }
}

impl Discovery {
    /// Adds or replaces resources and notifies all clients.
    pub fn set(&self, type_url: &'static str, resources: impl IntoIterator<Item = Resource>) {
        let mut inner = self.inner.lock().unwrap();
        let mut names = Vec::new();
        for mut resource in resources {
            inner.version += 1;
            resource.version = inner.version.to_string();
            names.push(resource.name.clone());
            inner
                .resources
                .insert((type_url, resource.name.clone()), resource);
        }
        let _ = self.events.send(Event::Changed(type_url, names)); // fails without clients
    }

    /// Removes resources and notifies all clients.
    pub fn remove(&self, type_url: &'static str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut inner = self.inner.lock().unwrap();
        for name in &names {
            inner.resources.remove(&(type_url, name.clone()));
        }
        let _ = self.events.send(Event::Changed(type_url, names)); // fails without clients
    }

    /// Sends no responses for a type; or sends them again, from the next stream.
    pub fn silence(&self, type_url: &'static str, silent: bool) {
        let mut inner = self.inner.lock().unwrap();
        if silent {
            inner.silent.insert(type_url);
        } else {
            inner.silent.remove(type_url);
        }
    }

    /// Delays every response.
    pub fn delay(&self, delay: Duration) {
        self.inner.lock().unwrap().delay = delay;
    }

    /// Sends a response that does not come from the resources.
    pub fn send(&self, response: DeltaResponse) {
        let _ = self.events.send(Event::Response(Box::new(response))); // fails without clients
    }

    /// Sends bytes as a message, or the beginning of one.
    pub fn send_raw(&self, length: usize, bytes: impl Into<Bytes>) {
        let _ = self.events.send(Event::Raw(length, bytes.into())); // fails without clients
    }

    /// Ends all streams with a gRPC status.
    pub fn end(&self, status: u32, message: &'static str) {
        let _ = self.events.send(Event::End(status, message)); // fails without clients
    }

    /// The heads of all streams so far.
    pub fn heads(&self) -> Vec<RequestHead> {
        self.inner.lock().unwrap().heads.clone()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.inner.lock().unwrap().requests.clone()
    }

    /// The messages of all NACKs so far.
    pub fn nacks(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .filter_map(|s| Some(s.request.error_detail?.message))
            .collect()
    }

    pub(super) async fn serve(
        &self,
        head: RequestHead,
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) {
        let stream = {
            let mut inner = self.inner.lock().unwrap();
            inner.heads.push(head);
            inner.heads.len() - 1
        };
        let mut events = self.events.subscribe();
        let (mut incoming, mut outgoing) = (Incoming::new(body), Outgoing::new(respond));
        let mut watched = BTreeMap::new();
        loop {
            tokio::select! {
                request = incoming.next::<DeltaRequest>() => {
                    let Some(request) = request else { return };
                    if request.encoded_len() > MAX_REQUEST {
                        return outgoing.end(RESOURCE_EXHAUSTED, "message larger than max");
                    }
                    let received = ReceivedRequest { stream, request: request.clone() };
                    self.inner.lock().unwrap().requests.push(received);
                    if let Some(response) = self.answer(&mut watched, request) {
                        self.respond(&mut outgoing, &response).await;
                    }
                }
                event = events.recv() => match event.unwrap() {
                    Event::Changed(type_url, names) => {
                        let response = watched
                            .get(type_url)
                            .and_then(|w| self.change(type_url, &names, w));
                        if let Some(response) = response {
                            self.respond(&mut outgoing, &response).await;
                        }
                    }
                    Event::Response(response) => self.respond(&mut outgoing, &response).await,
                    Event::Raw(length, bytes) => outgoing.send_framed(length, bytes),
                    Event::End(status, message) => return outgoing.end(status, message),
                },
            }
        }
    }

    async fn respond(&self, outgoing: &mut Outgoing, response: &DeltaResponse) {
        let (delay, nonce) = {
            let mut inner = self.inner.lock().unwrap();
            inner.nonce += 1;
            (inner.delay, inner.nonce.to_string())
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        outgoing.send(&DeltaResponse {
            nonce,
            ..response.clone()
        });
    }

    /// The response to a request, if it needs one.
    fn answer(
        &self,
        watched: &mut BTreeMap<&'static str, Subscription>,
        request: DeltaRequest,
    ) -> Option<DeltaResponse> {
        let inner = self.inner.lock().unwrap();
        let type_url = [api::ADDRESS, api::AUTHORIZATION]
            .into_iter()
            .find(|u| *u == request.type_url)?;
        if inner.silent.contains(type_url) {
            return None;
        }
        let first = !watched.contains_key(type_url);
        let all = request.subscribe.is_empty() && request.response_nonce.is_empty();
        let watch = watched.entry(type_url).or_insert_with(|| Subscription {
            all,
            names: BTreeSet::new(),
        });
        let wanted: Vec<String> = request.subscribe.into_iter().filter(|n| n != "*").collect();
        watch.names.extend(wanted.iter().cloned());
        let mut response = DeltaResponse {
            type_url: type_url.to_owned(),
            ..DeltaResponse::default()
        };
        if first {
            let known = &request.initial_resource_versions;
            let of_type = inner
                .resources
                .iter()
                .filter(|((t, _), r)| *t == type_url && watch.wants(r));
            response.resources = of_type
                .map(|(_, r)| r.clone())
                .filter(|r| known.get(&r.name) != Some(&r.version))
                .collect();
            let removed = known
                .keys()
                .filter(|n| !inner.resources.contains_key(&(type_url, (*n).clone())));
            response.removed_resources = removed.cloned().collect();
        } else if wanted.is_empty() {
            return None;
        }
        for name in wanted {
            let found = inner
                .resources
                .iter()
                .find(|((t, _), r)| *t == type_url && is_named(r, &name));
            match found {
                Some((_, resource)) => response.resources.push(resource.clone()),
                None => response.removed_resources.push(name),
            }
        }
        Some(response)
    }

    fn change(
        &self,
        type_url: &'static str,
        names: &[String],
        watch: &Subscription,
    ) -> Option<DeltaResponse> {
        let inner = self.inner.lock().unwrap();
        let mut response = DeltaResponse {
            type_url: type_url.to_owned(),
            ..DeltaResponse::default()
        };
        for name in names {
            match inner.resources.get(&(type_url, name.clone())) {
                Some(resource) if watch.wants(resource) => {
                    response.resources.push(resource.clone())
                }
                Some(_) => {}
                None => response.removed_resources.push(name.clone()),
            }
        }
        (response.encoded_len() > type_url.len() + 2).then_some(response)
    }
}

/// What a client is subscribed to.
struct Subscription {
    all: bool,
    names: BTreeSet<String>,
}

impl Subscription {
    fn wants(&self, resource: &Resource) -> bool {
        self.all || self.names.iter().any(|n| is_named(resource, n))
    }
}

fn is_named(resource: &Resource, name: &str) -> bool {
    resource.name == name || resource.aliases.iter().any(|a| a == name)
}
