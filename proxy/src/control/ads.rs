//! Delta discovery as a state machine: what to ask for, what to answer, and what is known of each resource. No I/O.
//!
//! The contract: after [`Ads::connected`], everything it returns is sent. Each response of the server is given to
//! [`Ads::received`]; what that returns is applied, and the names that could not be applied are given to [`Ads::applied`],
//! whose answer is sent. [`Ads::demand`] may be called at any time.

use std::collections::{BTreeMap, BTreeSet};

use api::discovery::{DeltaRequest, DeltaResponse, Node, Resource};
use api::protobuf::Status;

/// `INVALID_ARGUMENT` of gRPC.
const REJECTED: i32 = 3;
/// A server that sends nothing but bad resources gets as much of the reasons as a person reads.
const LONGEST_REASON: usize = 4096;

/// The types that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Address => api::ADDRESS,
            Self::Authorization => api::AUTHORIZATION,
        }
    }

    fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.type_url() == type_url)
    }
}

/// A resource that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What a response says, to be applied.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) kind: Kind,
    pub(crate) resources: Vec<Resource>,
    /// Names. Some may never have been there.
    pub(crate) removed: Vec<String>,
    nonce: String,
}

/// What is done with a response.
#[derive(Debug)]
pub(crate) enum Received {
    /// It is to be applied.
    Push(Push),
    /// It is of a type that was never asked for; this is its answer.
    Unknown(DeltaRequest),
}

/// One client of a discovery server.
#[derive(Debug)]
pub(crate) struct Ads {
    node: Node,
    on_demand: bool,
    /// Names that were asked for one by one.
    demanded: BTreeSet<String>,
    types: BTreeMap<Kind, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of every resource that was taken, by name.
    versions: BTreeMap<String, String>,
    /// Whether anything was said on this connection.
    current: bool,
    /// Whether anything was ever said.
    synced: bool,
}

impl Ads {
    /// With `on_demand`, addresses are asked for one by one.
    pub(crate) fn new(node: Node, on_demand: bool) -> Self {
        let types = Kind::ALL.into_iter().map(|k| (k, Known::default())).collect();
        Self { node, on_demand, demanded: BTreeSet::new(), types }
    }

    /// A stream has been opened: the first request of each type. They say what is known already, so that the server sends
    /// what has changed since, and what is gone.
    pub(crate) fn connected(&mut self) -> Vec<DeltaRequest> {
        let node = &self.node;
        let first = |(kind, known): (&Kind, &mut Known)| {
            known.current = false;
            let mut request = DeltaRequest {
                node: Some(node.clone()),
                type_url: kind.type_url().to_owned(),
                initial_resource_versions: known.versions.clone(),
                ..DeltaRequest::default()
            };
            if self.on_demand && *kind == Kind::Address {
                // Subscribing to nothing would mean everything: so to everything, and at once no more.
                request.subscribe = std::iter::once("*".to_owned()).chain(self.demanded.iter().cloned()).collect();
                request.unsubscribe = vec!["*".to_owned()];
            }
            request
        };
        self.types.iter_mut().map(first).collect()
    }

    /// The server has said something.
    pub(crate) fn received(&mut self, response: DeltaResponse) -> Received {
        let Some(kind) = Kind::from_type_url(&response.type_url) else {
            return Received::Unknown(answer(response.type_url, response.nonce, &[]));
        };
        Received::Push(Push {
            kind,
            resources: response.resources,
            removed: response.removed_resources,
            nonce: response.nonce,
        })
    }

    /// A push has been applied, but for some resources; the good ones of the batch are in force. `taken` are the names and
    /// versions that are. Of a resource that was rejected, the version that was taken before stays what is known.
    pub(crate) fn applied(
        &mut self,
        kind: Kind,
        nonce: String,
        taken: Vec<(String, String)>,
        removed: &[String],
        rejected: &[Rejected],
    ) -> DeltaRequest {
        let known = self.types.entry(kind).or_default();
        known.versions.extend(taken);
        for name in removed {
            known.versions.remove(name);
        }
        (known.current, known.synced) = (true, true);
        answer(kind.type_url().to_owned(), nonce, rejected)
    }

    /// Asks for one address, unless that was done before.
    pub(crate) fn demand(&mut self, name: String) -> Option<DeltaRequest> {
        self.demanded.insert(name.clone()).then(|| DeltaRequest {
            type_url: Kind::Address.type_url().to_owned(),
            subscribe: vec![name],
            ..DeltaRequest::default()
        })
    }

    /// Whether something of every type has ever been received.
    pub(crate) fn synced(&self) -> bool {
        self.types.values().all(|k| k.synced)
    }

    /// The types of which nothing has been received on this connection.
    pub(crate) fn awaited(&self) -> Vec<Kind> {
        self.types.iter().filter(|(_, k)| !k.current).map(|(kind, _)| *kind).collect()
    }

    /// How many resources of a type are in force.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.types.get(&kind).map_or(0, |k| k.versions.len())
    }
}

impl Push {
    /// Takes it apart: what to apply, and what the answer needs.
    pub(crate) fn into_parts(self) -> (Kind, Vec<Resource>, Vec<String>, String) {
        (self.kind, self.resources, self.removed, self.nonce)
    }
}

fn answer(type_url: String, nonce: String, rejected: &[Rejected]) -> DeltaRequest {
    let error_detail = (!rejected.is_empty()).then(|| Status { code: REJECTED, message: reasons(rejected) });
    DeltaRequest { type_url, response_nonce: nonce, error_detail, ..DeltaRequest::default() }
}

/// `name: why; name: why`, as long as a person may read.
fn reasons(rejected: &[Rejected]) -> String {
    let mut text = String::new();
    for (index, Rejected { name, why }) in rejected.iter().enumerate() {
        let next = format!("{}{name}: {why}", if index == 0 { "" } else { "; " });
        if text.len() + next.len() > LONGEST_REASON && index > 0 {
            text.push_str(&format!("; and {} more", rejected.len() - index));
            break;
        }
        text.push_str(&next);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node { id: "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local".to_owned(), metadata: None }
    }

    fn response(kind: Kind, nonce: &str, names: &[(&str, &str)], removed: &[&str]) -> DeltaResponse {
        DeltaResponse {
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_owned(),
            resources: names
                .iter()
                .map(|(name, version)| Resource {
                    name: (*name).to_owned(),
                    version: (*version).to_owned(),
                    ..Resource::default()
                })
                .collect(),
            removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
            ..DeltaResponse::default()
        }
    }

    /// Takes everything but what is named.
    fn take(ads: &mut Ads, response: DeltaResponse, bad: &[&str]) -> DeltaRequest {
        let Received::Push(push) = ads.received(response) else { panic!("it is a push") };
        let (kind, resources, removed, nonce) = push.into_parts();
        let (rejected, taken): (Vec<_>, Vec<_>) = resources.into_iter().partition(|r| bad.contains(&r.name.as_str()));
        let taken = taken.into_iter().map(|r| (r.name, r.version)).collect();
        let rejected: Vec<_> = rejected.into_iter().map(|r| Rejected { name: r.name, why: "bad".to_owned() }).collect();
        ads.applied(kind, nonce, taken, &removed, &rejected)
    }

    #[test]
    fn both_types_are_asked_for_by_a_node_that_says_who_it_is() {
        let mut ads = Ads::new(node(), false);
        let first = ads.connected();
        let urls: Vec<_> = first.iter().map(|r| r.type_url.as_str()).collect();
        assert_eq!(urls, [api::ADDRESS, api::AUTHORIZATION]);
        for request in &first {
            assert_eq!(request.node, Some(node()));
            assert!(request.subscribe.is_empty() && request.unsubscribe.is_empty(), "which means all");
        }
        assert_eq!(ads.awaited(), Kind::ALL);
    }

    #[test]
    fn a_response_is_acknowledged_with_its_nonce_and_a_bad_resource_is_named() {
        let mut ads = Ads::new(node(), false);
        ads.connected();
        let ack = take(&mut ads, response(Kind::Address, "n1", &[("a", "1"), ("b", "1")], &[]), &[]);
        assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str(), ack.error_detail), (api::ADDRESS, "n1", None));
        assert!(!ads.synced(), "policies are still awaited");
        let nack =
            take(&mut ads, response(Kind::Address, "n2", &[("a", "2"), ("b", "2"), ("c", "1")], &[]), &["b", "c"]);
        assert_eq!(nack.response_nonce, "n2");
        assert_eq!(nack.error_detail.unwrap().message, "b: bad; c: bad");
        // On a new stream the server is told what is in force: of b that is the version before.
        let versions = ads.connected()[0].initial_resource_versions.clone();
        let versions: Vec<_> = versions.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(versions, [("a", "2"), ("b", "1")]);
    }

    #[test]
    fn what_is_removed_is_forgotten_and_an_unknown_type_is_acknowledged() {
        let mut ads = Ads::new(node(), false);
        ads.connected();
        take(&mut ads, response(Kind::Address, "1", &[("a", "1"), ("b", "1")], &[]), &[]);
        take(&mut ads, response(Kind::Address, "2", &[], &["a", "never-there"]), &[]);
        take(&mut ads, response(Kind::Authorization, "3", &[], &[]), &[]);
        assert!(ads.synced() && ads.awaited().is_empty());
        assert_eq!(ads.count(Kind::Address), 1);
        let unknown = DeltaResponse { type_url: "x".to_owned(), nonce: "4".to_owned(), ..DeltaResponse::default() };
        let Received::Unknown(ack) = ads.received(unknown) else { panic!("nobody asked for it") };
        assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str(), ack.error_detail), ("x", "4", None));
        ads.connected();
        assert!(ads.synced(), "what was known stays known");
        assert_eq!(ads.awaited(), Kind::ALL, "but is not confirmed yet");
    }

    #[test]
    fn on_demand_addresses_are_asked_for_once_and_again_on_a_new_stream() {
        let mut ads = Ads::new(node(), true);
        let first = ads.connected();
        assert_eq!(
            (first[0].subscribe.clone(), first[0].unsubscribe.clone()),
            (vec!["*".to_owned()], vec!["*".to_owned()])
        );
        assert!(first[1].subscribe.is_empty() && first[1].unsubscribe.is_empty(), "policies are all wanted");
        let asked = ads.demand("net/10.0.0.1".to_owned()).unwrap();
        assert_eq!((asked.type_url.as_str(), asked.subscribe), (api::ADDRESS, vec!["net/10.0.0.1".to_owned()]));
        assert_eq!(ads.demand("net/10.0.0.1".to_owned()), None);
        assert_eq!(ads.connected()[0].subscribe, ["*", "net/10.0.0.1"]);
    }

    #[test]
    fn reasons_are_no_longer_than_a_person_reads() {
        let rejected: Vec<_> = (0..10_000).map(|i| Rejected { name: format!("r{i}"), why: "bad".to_owned() }).collect();
        let text = reasons(&rejected);
        assert!(text.len() < LONGEST_REASON + 50 && text.ends_with("more"), "{text}");
    }
}
