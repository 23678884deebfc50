//! Explains where a connection would go and whether it would be allowed, using the same decisions
//! as the data path.

mod explanation;
mod lookup;
mod routes;

use std::sync::Arc;

use self::lookup::{destination, source};
use self::routes::{explain_route, party, route_uncaptured, uncaptured};
use crate::address::OrigDst;
use crate::route::{Route, Via, route};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::{Protocol, Workload};

pub use self::explanation::{
    ExplainError, ExplainedRoute, Explanation, ExplanationResponse, Party, PolicyDecision,
    ProtocolError, Question, RouteKind, TransportProtocol,
};

/// Maximum number of routes in an explanation.
const MAX_ROUTES: usize = 16;

/// Answers a question from a snapshot.
///
/// # Errors
/// Returns [`ExplainError`] if the source or the destination cannot be resolved.
pub fn explain(mesh: &Mesh, question: &Question<'_>) -> Result<Explanation, ExplainError> {
    let source = source(mesh, question)?;
    let destination = destination(mesh, question, &source)?;
    let orig_dst = OrigDst(destination);
    let service = mesh.addressed_service(&source, orig_dst);
    let service = service.map(|addressed| addressed.service.key());
    if question.protocol != TransportProtocol::Tcp {
        let to = mesh.workload_by_ip(&source.network, destination.ip());
        return Ok(Explanation {
            source: party(&source),
            destination,
            service,
            routes: vec![uncaptured(question.protocol, destination, to)],
            more: false,
        });
    }
    let (routes, more) = match source.protocol {
        Protocol::Hbone => routes_from(mesh, &source, orig_dst, Onward::Explained),
        Protocol::Tcp | Protocol::Unsupported => {
            let decision = route_uncaptured(mesh, &source, orig_dst);
            (vec![explain_route(mesh, &source, decision)], false)
        }
    };
    Ok(Explanation {
        source: party(&source),
        destination,
        service,
        routes,
        more,
    })
}

/// Whether the routes from a waypoint to the destination are explained as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Onward {
    Explained,
    Omitted,
}

/// Explains the routes that a client with a proxy, or a waypoint, may choose. Also returns whether
/// there are more.
fn routes_from(
    mesh: &Mesh,
    source: &Workload,
    orig_dst: OrigDst,
    onward: Onward,
) -> (Vec<ExplainedRoute>, bool) {
    let (mut routes, mut tried) = (Vec::<ExplainedRoute>::new(), Vec::<Text>::new());
    loop {
        let decision = route(mesh, source, orig_dst, 0, &tried);
        let peer = decision.outcome.replaceable().cloned();
        // Stop when an endpoint repeats or none is left.
        let seen = peer.as_ref().is_some_and(|p| tried.contains(p));
        if seen || !routes.is_empty() && matches!(decision.outcome, Route::Refuse { .. }) {
            return (routes, false);
        }
        if routes.len() == MAX_ROUTES {
            return (routes, true);
        }
        let waypoint = waypoint_on(&decision.outcome).filter(|_| onward == Onward::Explained);
        let mut explained = explain_route(mesh, source, decision);
        if let Some(waypoint) = waypoint {
            explained.onward = routes_from(mesh, &waypoint, orig_dst, Onward::Omitted).0;
        }
        routes.push(explained);
        match peer {
            Some(peer) => tried.push(peer),
            None => return (routes, false),
        }
    }
}

/// The waypoint at the end of a route.
fn waypoint_on(route: &Route) -> Option<Arc<Workload>> {
    match route {
        Route::Tunnel {
            via: Via::ServiceWaypoint | Via::WorkloadWaypoint,
            workload,
            ..
        } => Some(workload.clone()),
        _ => None,
    }
}
