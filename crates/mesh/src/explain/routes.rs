//! Builds the explanation of one route and of the policy decision for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::explanation::{ExplainedRoute, Party, PolicyDecision, RouteKind, TransportProtocol};
use crate::address::{ClientAddr, OrigDst, PodAddr};
use crate::authorize::{Connection, Ruling, RulingReason, Verdict, authorize};
use crate::decision::Decision;
use crate::host::HostPort;
use crate::identity::Identity;
use crate::route::{Route, Via};
use crate::snapshot::Mesh;
use crate::workload::{Protocol, Workload};

/// The route of a client outside the mesh: the node's own routing applies.
pub(super) fn route_uncaptured(
    mesh: &Mesh,
    source: &Workload,
    orig_dst: OrigDst,
) -> Decision<Route> {
    let reason = format!(
        "{} is not in the mesh, so its traffic is not captured",
        source.namespaced_name()
    );
    let workload = mesh.workload_by_ip(&source.network, orig_dst.ip()).cloned();
    Decision::new(
        Route::Direct {
            to: orig_dst.0.into(),
            workload,
            service: None,
        },
        reason,
    )
}

/// The route of a protocol that proxies do not capture.
pub(super) fn uncaptured(
    protocol: TransportProtocol,
    destination: SocketAddr,
    recipient: Option<&Arc<Workload>>,
) -> ExplainedRoute {
    let name = protocol.name().to_ascii_uppercase();
    let is_dns = protocol == TransportProtocol::Udp && destination.port() == 53;
    let dns = if is_dns {
        "; if DNS of the client is captured, its proxy answers instead"
    } else {
        ""
    };
    ExplainedRoute {
        path: RouteKind::Uncaptured,
        to: Some(destination.to_string()),
        workload: recipient.map(|w| party(w)),
        reason: format!("{name} is not captured: it is not encrypted, and no policy applies{dns}"),
        decided_elsewhere: Some("policies apply to TCP only".to_owned()),
        allowed: true,
        ..ExplainedRoute::default()
    }
}

/// Explains a routing decision.
pub(super) fn explain_route(
    mesh: &Mesh,
    source: &Workload,
    decision: Decision<Route>,
) -> ExplainedRoute {
    let Decision {
        outcome,
        reason,
        considered,
        ..
    } = decision;
    let refused = ExplainedRoute {
        reason,
        considered,
        ..ExplainedRoute::default()
    };
    match outcome {
        Route::Refuse { service } => {
            let change = match service {
                Some(service) => format!(
                    "service {} needs a healthy, reachable endpoint",
                    service.key()
                ),
                None => "the destination must be reachable from the source's network".to_owned(),
            };
            ExplainedRoute {
                change: vec![change],
                ..refused
            }
        }
        Route::Direct { to, workload, .. } => {
            let enrolled = workload.as_ref().filter(|w| w.protocol == Protocol::Hbone);
            let policy = enrolled.and_then(|w| evaluate_policy(mesh, w, source, None, &to));
            let elsewhere = enrolled
                .is_none()
                .then(|| "no proxy: the destination is not in the mesh".to_owned());
            let workload = workload.as_deref().map(party);
            with_policy(
                ExplainedRoute {
                    path: RouteKind::Passthrough,
                    to: Some(to.to_string()),
                    workload,
                    ..refused
                },
                policy,
                elsewhere,
            )
        }
        Route::Tunnel {
            tunnel,
            authority,
            expected,
            via,
            workload,
            ..
        } => {
            let (path, elsewhere) = match via {
                Via::Nothing => (RouteKind::Hbone, None),
                Via::ServiceWaypoint | Via::WorkloadWaypoint => {
                    (RouteKind::Waypoint, Some("the waypoint decides"))
                }
                Via::NetworkGateway => (
                    RouteKind::Gateway,
                    Some("the proxies of the other network decide"),
                ),
            };
            let policy = match via {
                Via::Nothing => {
                    evaluate_policy(mesh, &workload, source, Some(source.identity()), &authority)
                }
                _ => None,
            };
            let explained = ExplainedRoute {
                path,
                to: Some(tunnel.to_string()),
                authority: Some(authority.to_string()),
                expected_identities: expected.iter().map(ToString::to_string).collect(),
                // Also a waypoint, which no agent enrols, has an identity and speaks HBONE.
                workload: Some(Party {
                    in_mesh: true,
                    ..party(&workload)
                }),
                ..refused
            };
            with_policy(explained, policy, elsewhere.map(str::to_owned))
        }
    }
}

fn with_policy(
    route: ExplainedRoute,
    policy: Option<(PolicyDecision, Vec<String>)>,
    decided_elsewhere: Option<String>,
) -> ExplainedRoute {
    let (policy, change) = policy.map_or((None, Vec::new()), |(decision, change)| {
        (Some(decision), change)
    });
    let allowed = policy.as_ref().is_none_or(|p| p.allowed);
    let unknown = || "the address is unknown until the host name is resolved".to_owned();
    let decided_elsewhere = decided_elsewhere.or_else(|| policy.is_none().then(unknown));
    ExplainedRoute {
        policy,
        change,
        decided_elsewhere,
        allowed,
        ..route
    }
}

/// What the destination's proxy would decide, and what would have to change for it to allow the
/// connection; none if the address is not known yet.
fn evaluate_policy(
    mesh: &Mesh,
    workload: &Workload,
    source: &Workload,
    identity: Option<Identity>,
    to: &HostPort,
) -> Option<(PolicyDecision, Vec<String>)> {
    let destination = to.address()?;
    let same_family = |ip: &&IpAddr| ip.is_ipv6() == destination.is_ipv6();
    let ip = source
        .workload_ips
        .iter()
        .find(same_family)
        .or(source.workload_ips.first())?;
    let client = ClientAddr::from(SocketAddr::new(*ip, 0));
    let connection = Connection {
        client,
        identity,
        destination: PodAddr(destination),
    };
    let Decision {
        outcome,
        reason,
        considered,
        ..
    } = authorize(mesh, workload, &connection);
    let decision = PolicyDecision {
        allowed: outcome.verdict() == Verdict::Allow,
        reason,
        policy: outcome.rule().map(|r| r.policy.to_string()),
        rule: outcome.rule().map(|r| r.index + 1),
        considered,
        dry_run: (!outcome.dry_run.is_empty()).then(|| {
            let each: Vec<String> = outcome.dry_run.iter().map(ToString::to_string).collect();
            each.join("; ")
        }),
        client_identity: connection.identity.as_ref().map(ToString::to_string),
    };
    let change = required_changes(&outcome, workload, &connection, source);
    Some((decision, change))
}

/// What would have to change to allow a connection.
fn required_changes(
    ruling: &Ruling,
    workload: &Workload,
    connection: &Connection,
    source: &Workload,
) -> Vec<String> {
    let mut change = match &ruling.reason {
        RulingReason::Allowed(_) | RulingReason::NoAllowPolicy => return Vec::new(),
        RulingReason::UnknownPolicy(key) => {
            vec![format!(
                "policy {key} must exist, or workload {} must not refer to it",
                workload.namespaced_name()
            )]
        }
        RulingReason::UnknownWorkload(uid) => {
            vec![format!(
                "this version of Underpass must understand workload {uid}"
            )]
        }
        RulingReason::Denied(rule) => vec![format!("{rule} must not match this connection")],
        RulingReason::DeniedInDoubt(rule, parts) => vec![format!(
            "{rule} must not contain what this version of Underpass does not understand: {parts}"
        )],
        RulingReason::NoneAllowed | RulingReason::NotAllowedInDoubt(..) => {
            match &connection.identity {
                Some(identity) => {
                    let principal = identity.to_string();
                    let principal = principal.trim_start_matches("spiffe://");
                    vec![format!("an allow policy must match principal {principal}")]
                }
                None => vec![format!(
                    "an allow policy must match source address {}",
                    connection.client.ip()
                )],
            }
        }
    };
    if connection.identity.is_none() {
        change.push(format!(
            "or {} must join the mesh and so prove its identity {}",
            source.namespaced_name(),
            source.identity()
        ));
    }
    change
}

/// Describes a workload.
pub(super) fn party(workload: &Workload) -> Party {
    Party {
        workload: workload.namespaced_name(),
        identity: workload.identity().to_string(),
        in_mesh: workload.protocol == Protocol::Hbone,
        node: workload.node.to_string(),
    }
}
