//! Delta discovery (delta xDS) as a state machine: subscriptions, acknowledgements, and the known
//! version of each resource. No I/O.
//!
//! The caller's contract: on a new stream, send every request that [`Ads::handle_connect`] returns.
//! Apply each response, call [`Ads::handle_applied`] with the resources that were accepted and
//! rejected, and send the request it returns. [`Ads::subscribe`] may be called at any time. While
//! [`Ads::awaits_confirmation`], remove what [`Ads::take_unconfirmed`] returns once the server had
//! time to send everything.

use std::collections::{BTreeMap, BTreeSet};

use api::discovery::{DeltaRequest, Node};
use api::protobuf::Status;
use mesh::Removal;
use prost::Message;
use serde::Serialize;

/// The gRPC status code `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// Upper bound of the error detail in a NACK, in bytes: enough for a person to diagnose the
/// problem.
const MAX_REASONS: usize = 4096;
/// Upper bound of a request, in bytes. istiod accepts gRPC messages of up to 4 MiB
/// (ISTIO_GPRC_MAXRECVMSGSIZE, the default of grpc-go) and ends the stream on a longer one.
const MAX_REQUEST: usize = 3_500_000;

/// Resource types that the proxy subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ResourceType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl ResourceType {
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Address => api::ADDRESS,
            Self::Authorization => api::AUTHORIZATION,
        }
    }

    /// Names a resource of this type that was removed.
    pub(crate) fn removal(self, name: &str) -> Removal<'_> {
        match self {
            Self::Address => Removal::Address(name),
            Self::Authorization => Removal::Policy(name),
        }
    }

    /// The type with this URL, if the proxy subscribes to it.
    pub(super) fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.type_url() == type_url)
    }
}

/// A resource that is rejected, or of which parts are not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RejectedResource {
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Whether the rest of it is used; it is then among the accepted ones as well.
    pub(crate) is_used: bool,
}

/// A push whose resources were applied or rejected.
#[derive(Debug)]
pub(crate) struct AppliedPush {
    pub(crate) kind: ResourceType,
    pub(crate) nonce: String,
    /// Names and versions of accepted resources.
    pub(crate) accepted: Vec<(String, String)>,
    /// Names of removed resources; some may be unknown to the client.
    pub(crate) removed: Vec<String>,
    pub(crate) rejected: Vec<RejectedResource>,
    /// Accepted resources that are unlikely to do what is intended, with the reasons.
    pub(crate) notices: Vec<(String, String)>,
}

/// State of one client of a discovery server.
#[derive(Debug)]
pub(crate) struct Ads {
    node: Node,
    on_demand: bool,
    /// Whether the server accepts only requests that are shorter than [`MAX_REQUEST`].
    omit_versions: bool,
    /// Names of on-demand subscriptions.
    subscribed: BTreeSet<String>,
    types: BTreeMap<ResourceType, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// Versions of accepted resources, by name.
    versions: BTreeMap<String, String>,
    /// Names that the server does not know of on this stream, because they did not fit in the first
    /// request, and that it has not sent yet. It cannot report their removal.
    unconfirmed: BTreeSet<String>,
    /// Whether a push was received on this stream.
    current: bool,
    /// Whether a push was ever received.
    synced: bool,
}

impl Ads {
    /// Creates a client; with `on_demand` it subscribes to addresses one by one.
    pub(crate) fn new(node: Node, on_demand: bool) -> Self {
        let types = ResourceType::ALL
            .into_iter()
            .map(|k| (k, TypeState::default()))
            .collect();
        Self {
            node,
            on_demand,
            omit_versions: false,
            subscribed: BTreeSet::new(),
            types,
        }
    }

    /// Handles a new stream and returns the first requests. They carry the known versions, so that
    /// the server sends only what has changed or was removed since. If the versions do not fit in a
    /// request, the server sends everything.
    pub(crate) fn handle_connect(&mut self) -> Vec<DeltaRequest> {
        let mut requests = Vec::new();
        for (kind, known) in &mut self.types {
            known.current = false;
            let mut request = DeltaRequest {
                node: Some(self.node.clone()),
                type_url: kind.type_url().to_owned(),
                ..DeltaRequest::default()
            };
            let mut further = Vec::new();
            if self.on_demand && *kind == ResourceType::Address {
                // An empty subscription is a wildcard, so subscribe to the wildcard and cancel it
                // at once.
                let wildcard = || "*".to_owned();
                let names = std::iter::once(wildcard()).chain(self.subscribed.iter().cloned());
                let mut parts = parts_within(MAX_REQUEST / 2, names).into_iter();
                request.subscribe = parts.next().unwrap_or_default();
                request.unsubscribe = vec![wildcard()];
                further.extend(parts.map(|names| subscription(names, vec![])));
            }
            let length = request.encoded_len() + versions_len(&known.versions);
            if length <= MAX_REQUEST && !self.omit_versions {
                known.unconfirmed.clear();
                request.initial_resource_versions = known.versions.clone();
            } else {
                known.unconfirmed = known.versions.keys().cloned().collect();
            }
            requests.push(request);
            requests.append(&mut further);
        }
        requests
    }

    /// Records that the server rejected a request as too large. The next stream sends no versions.
    pub(crate) fn handle_request_too_large(&mut self) {
        self.omit_versions = true;
    }

    /// Whether the server has sent all types on this stream, but not all known resources, without
    /// being able to report their removal.
    pub(crate) fn awaits_confirmation(&self) -> bool {
        let mut types = self.types.values();
        types.all(|k| k.current) && self.types.values().any(|k| !k.unconfirmed.is_empty())
    }

    /// Removes the known resources that the server has not sent on this stream, and returns their
    /// names.
    pub(crate) fn take_unconfirmed(&mut self) -> Vec<(ResourceType, BTreeSet<String>)> {
        let take = |(kind, known): (&ResourceType, &mut TypeState)| {
            let names = std::mem::take(&mut known.unconfirmed);
            known.versions.retain(|name, _| !names.contains(name));
            (*kind, names)
        };
        self.types.iter_mut().map(take).collect()
    }

    /// Records an applied push and returns its ACK or NACK. The previously accepted version of a
    /// rejected resource stays the known one.
    pub(crate) fn handle_applied(&mut self, push: &AppliedPush) -> DeltaRequest {
        let known = self.types.entry(push.kind).or_default();
        known.versions.extend(push.accepted.iter().cloned());
        for name in &push.removed {
            known.versions.remove(name);
        }
        if !known.unconfirmed.is_empty() {
            let accepted = push.accepted.iter().map(|(name, _)| name);
            let rejected = push.rejected.iter().map(|r| &r.name);
            for name in accepted.chain(rejected).chain(&push.removed) {
                known.unconfirmed.remove(name);
            }
        }
        known.current = true;
        known.synced = true;
        let type_url = push.kind.type_url().to_owned();
        acknowledge(type_url, push.nonce.clone(), &push.rejected)
    }

    /// Subscribes to one address. If it is subscribed already, the server sends it again.
    pub(crate) fn subscribe(&mut self, name: String) -> DeltaRequest {
        self.subscribed.insert(name.clone());
        subscription(vec![name], vec![])
    }

    /// Cancels the subscription to one address; `None` if there is none.
    pub(crate) fn unsubscribe(&mut self, name: String) -> Option<DeltaRequest> {
        self.subscribed
            .remove(&name)
            .then(|| subscription(vec![], vec![name]))
    }

    /// Whether a push of every type was ever received.
    pub(crate) fn is_synced(&self) -> bool {
        self.types.values().all(|k| k.synced)
    }

    /// Types without a push on this stream.
    pub(crate) fn missing_types(&self) -> Vec<ResourceType> {
        self.types
            .iter()
            .filter(|(_, k)| !k.current)
            .map(|(kind, _)| *kind)
            .collect()
    }

    /// Number of accepted resources of a type.
    pub(crate) fn count(&self, kind: ResourceType) -> usize {
        self.types.get(&kind).map_or(0, |k| k.versions.len())
    }
}

/// A request that changes the subscriptions to addresses.
fn subscription(subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaRequest {
    DeltaRequest {
        type_url: ResourceType::Address.type_url().to_owned(),
        subscribe,
        unsubscribe,
        ..DeltaRequest::default()
    }
}

/// Upper bound of the length of versions in a request, in bytes: each entry has three tags and
/// lengths in addition to its strings.
fn versions_len(versions: &BTreeMap<String, String>) -> usize {
    let lengths = versions
        .iter()
        .map(|(name, version)| name.len() + version.len() + 12);
    lengths.sum()
}

/// Splits names into lists of at most `limit` bytes in a request.
fn parts_within(limit: usize, names: impl Iterator<Item = String>) -> Vec<Vec<String>> {
    let (mut parts, mut length) = (vec![Vec::new()], 0);
    for name in names {
        length += name.len() + 6; // tag and length
        if length > limit {
            parts.push(Vec::new());
            length = name.len() + 6;
        }
        if let Some(part) = parts.last_mut() {
            part.push(name);
        }
    }
    parts
}

/// Acknowledges a response; `rejected` makes it a NACK. A response of a type without a subscription
/// is acknowledged as well.
pub(crate) fn acknowledge(
    type_url: String,
    nonce: String,
    rejected: &[RejectedResource],
) -> DeltaRequest {
    let error_detail = (!rejected.is_empty()).then(|| Status {
        code: INVALID_ARGUMENT,
        message: reasons(rejected),
    });
    DeltaRequest {
        type_url,
        response_nonce: nonce,
        error_detail,
        ..DeltaRequest::default()
    }
}

/// Formats rejections as `name: reason; name: reason`, within [`MAX_REASONS`].
fn reasons(rejected: &[RejectedResource]) -> String {
    let mut text = String::new();
    for (index, RejectedResource { name, reason, .. }) in rejected.iter().enumerate() {
        let next = format!("{}{name}: {reason}", if index == 0 { "" } else { "; " });
        if text.len() + next.len() > MAX_REASONS && index > 0 {
            text.push_str(&format!("; and {} more", rejected.len() - index));
            break;
        }
        text.push_str(&next);
    }
    text
}

#[cfg(test)]
mod tests;
