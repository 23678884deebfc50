//! Explains where a connection would go and whether it would be allowed, using the same decisions
//! as the data path.

mod explanation;
mod lookup;
mod routes;

use self::lookup::{destination, source};
use self::routes::{explain_route, party, route_uncaptured, uncaptured};
use crate::address::OrigDst;
use crate::route::{Route, route};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::Protocol;

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
    let (mut routes, mut tried, mut more) = (Vec::new(), Vec::<Text>::new(), false);
    loop {
        let decision = match source.protocol {
            Protocol::Hbone => route(mesh, &source, orig_dst, 0, &tried),
            Protocol::Tcp | Protocol::Unsupported => route_uncaptured(mesh, &source, orig_dst),
        };
        let peer = decision.outcome.replaceable().cloned();
        // Stop when an endpoint repeats or none is left.
        let seen = peer.as_ref().is_some_and(|p| tried.contains(p));
        if seen || !routes.is_empty() && matches!(decision.outcome, Route::Refuse { .. }) {
            break;
        }
        if routes.len() == MAX_ROUTES {
            more = true;
            break;
        }
        routes.push(explain_route(mesh, &source, decision));
        match peer {
            Some(peer) => tried.push(peer),
            None => break,
        }
    }
    Ok(Explanation {
        source: party(&source),
        destination,
        service,
        routes,
        more,
    })
}
