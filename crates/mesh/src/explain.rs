//! Why a connection would go where it goes, and whether it would be let in: for people, from the same decisions that the data
//! path makes.

mod asked;
mod way;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use self::asked::{destination, source};
use self::way::{party, uncaptured, way};
use crate::address::OrigDst;
use crate::route::{Route, route};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::Protocol;

/// Of a service with more endpoints than this, not every way is told.
const WAYS_AT_MOST: usize = 16;

/// What a person asks.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who connects: a workload's NAME, NAMESPACE/NAME or address.
    pub source: &'a str,
    /// To whom: a workload's NAME, NAMESPACE/NAME, a service's host name (or NAMESPACE/NAME), or an address.
    pub destination: &'a str,
    /// To which port; of a service that has one port only it need not be said.
    pub port: Option<u16>,
    /// The network of addresses that are asked about.
    pub network: &'a str,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// Nobody is called that.
    #[error("no workload {0:?} is known to this proxy")]
    NoSource(String),
    /// Nobody is called that.
    #[error("no workload, service or address {0:?} is known to this proxy")]
    NoDestination(String),
    /// More than one is called that.
    #[error("{0:?} is ambiguous: {1}")]
    Ambiguous(String, String),
    /// The destination has several ports, or none that is known.
    #[error("which port of {0}? {1}")]
    WhichPort(String, String),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who connects.
    pub source: Party,
    /// The address that it connects to.
    pub destination: SocketAddr,
    /// The service that has this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Where the connection may end up; of a service, one for each endpoint that may be chosen.
    pub ways: Vec<Way>,
    /// More endpoints may be chosen than are told.
    #[serde(default)]
    pub more: bool,
}

/// An answer, and on what it rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Where the mesh that was asked comes from, in words.
    pub from: String,
    /// The answer.
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// A workload, and whether it is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// `namespace/name`.
    pub workload: String,
    /// Its SPIFFE id.
    pub identity: String,
    /// Whether a proxy speaks for it.
    pub in_mesh: bool,
    /// The node that it runs on.
    pub node: String,
}

/// One way that a connection may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// In a word.
    pub path: Path,
    /// What is connected to; none where it leads nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What the tunnel leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// The SPIFFE ids of which the other end must prove one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_identities: Vec<String>,
    /// The workload at the other end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Party>,
    /// What decided the way.
    pub reason: String,
    /// What was considered before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<String>,
    /// What policy says; none where no policy of ours is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Judgement>,
    /// Who decides instead, where no policy of ours is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_elsewhere: Option<String>,
    /// Whether the connection gets through, as far as this is decided here.
    pub allowed: bool,
    /// What would have to change for it to get through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub change: Vec<String>,
}

/// The kinds of ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Path {
    /// A tunnel to the destination's proxy.
    Hbone,
    /// A tunnel to a waypoint.
    Waypoint,
    /// A tunnel to the gateway of another network, and in it one to the destination.
    Gateway,
    /// Plain text.
    Passthrough,
    /// Nowhere.
    Refused,
}

/// What policy says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Whether it may pass.
    pub allowed: bool,
    /// What decided.
    pub reason: String,
    /// `namespace/name` of the policy whose rule decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Which of its rules; the first is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// What was considered before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<String>,
    /// What a policy on trial would have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// The SPIFFE id that the client proves; none for one that is not in the mesh.
    pub client_identity: Option<String>,
}

/// Answers a question from a snapshot.
///
/// # Errors
/// [`Unanswerable`]
pub fn explain(mesh: &Mesh, question: &Question<'_>) -> Result<Explanation, Unanswerable> {
    let source = source(mesh, question)?;
    let destination = destination(mesh, question, &source)?;
    let orig_dst = OrigDst(destination);
    let service = mesh.service_by_vip(&source.network, destination.ip(), &source.namespace);
    let (mut ways, mut tried, mut more) = (Vec::new(), Vec::<Text>::new(), false);
    loop {
        let decision = match source.protocol {
            Protocol::Hbone => route(mesh, &source, orig_dst, 0, &tried),
            Protocol::Tcp => uncaptured(mesh, &source, orig_dst),
        };
        let peer = decision.outcome.replaceable().cloned();
        // Once every endpoint was tried, the first way that comes again, or none at all, ends the list.
        let seen = peer.as_ref().is_some_and(|p| tried.contains(p));
        if seen || !ways.is_empty() && matches!(decision.outcome, Route::Refuse { .. }) {
            break;
        }
        if ways.len() == WAYS_AT_MOST {
            more = true;
            break;
        }
        ways.push(way(mesh, &source, decision));
        match peer {
            Some(peer) => tried.push(peer),
            None => break,
        }
    }
    Ok(Explanation { source: party(&source), destination, service: service.map(|s| s.key()), ways, more })
}
