//! Where a connection goes and what policy says of it, told.

use std::net::{IpAddr, SocketAddr};

use super::{Judgement, Party, Path, Way};
use crate::address::{ClientAddr, OrigDst, PodAddr};
use crate::authorize::{Connection, Ruling, Verdict, Why, authorize};
use crate::decision::Decision;
use crate::host::HostPort;
use crate::identity::Identity;
use crate::route::{Route, Via};
use crate::snapshot::Mesh;
use crate::workload::{Protocol, Workload};

/// A client without a proxy: the node's own routing decides.
pub(super) fn uncaptured(mesh: &Mesh, source: &Workload, orig_dst: OrigDst) -> Decision<Route> {
    let reason = format!("{} is not in the mesh: its connections are not captured", source.namespaced_name());
    let workload = mesh.workload_by_ip(&source.network, orig_dst.ip()).cloned();
    Decision::new(Route::Direct { to: orig_dst.0.into(), workload, service: None }, reason)
}

/// Tells a decision.
pub(super) fn way(mesh: &Mesh, source: &Workload, decision: Decision<Route>) -> Way {
    let Decision { outcome, reason, considered } = decision;
    let nowhere = Way {
        path: Path::Refused,
        to: None,
        authority: None,
        expected_identities: Vec::new(),
        workload: None,
        reason,
        considered,
        policy: None,
        decided_elsewhere: None,
        allowed: false,
        change: Vec::new(),
    };
    match outcome {
        Route::Refuse { service } => {
            let change = match service {
                Some(service) => format!("service {} needs a healthy endpoint that can be reached", service.key()),
                None => "the destination must be reachable from the network of the source".to_owned(),
            };
            Way { change: vec![change], ..nowhere }
        }
        Route::Direct { to, workload, .. } => {
            let judged = workload.as_ref().filter(|w| w.protocol == Protocol::Hbone);
            let policy = judged.and_then(|w| judge(mesh, w, source, None, &to));
            let elsewhere = judged.is_none().then(|| "no proxy: the destination is not in the mesh".to_owned());
            let workload = workload.as_deref().map(party);
            decided(Way { path: Path::Passthrough, to: Some(to.to_string()), workload, ..nowhere }, policy, elsewhere)
        }
        Route::Tunnel { tunnel, authority, expected, via, workload, .. } => {
            let (path, elsewhere) = match via {
                Via::Nothing => (Path::Hbone, None),
                Via::ServiceWaypoint | Via::WorkloadWaypoint => (Path::Waypoint, Some("the waypoint decides")),
                Via::NetworkGateway => (Path::Gateway, Some("the proxies of the other network decide")),
            };
            let policy = match via {
                Via::Nothing => judge(mesh, &workload, source, Some(source.identity()), &authority),
                _ => None,
            };
            let way = Way {
                path,
                to: Some(tunnel.to_string()),
                authority: Some(authority.to_string()),
                expected_identities: expected.iter().map(ToString::to_string).collect(),
                workload: Some(party(&workload)),
                ..nowhere
            };
            decided(way, policy, elsewhere.map(str::to_owned))
        }
    }
}

fn decided(way: Way, policy: Option<(Judgement, Vec<String>)>, decided_elsewhere: Option<String>) -> Way {
    let (policy, change) = policy.map_or((None, Vec::new()), |(judgement, change)| (Some(judgement), change));
    let allowed = policy.as_ref().is_none_or(|p| p.allowed);
    let unknown = || "the address is known only once the name has been looked up".to_owned();
    let decided_elsewhere = decided_elsewhere.or_else(|| policy.is_none().then(unknown));
    Way { policy, change, decided_elsewhere, allowed, ..way }
}

/// What the destination's proxy would say, and what would have to change; none where the address is not known yet.
fn judge(
    mesh: &Mesh,
    workload: &Workload,
    source: &Workload,
    identity: Option<Identity>,
    to: &HostPort,
) -> Option<(Judgement, Vec<String>)> {
    let destination = to.address()?;
    let same_family = |ip: &&IpAddr| ip.is_ipv6() == destination.is_ipv6();
    let ip = source.workload_ips.iter().find(same_family).or(source.workload_ips.first())?;
    let client = ClientAddr::from(SocketAddr::new(*ip, 0));
    let connection = Connection { client, identity, destination: PodAddr(destination) };
    let Decision { outcome, reason, considered } = authorize(mesh, workload, &connection);
    let judgement = Judgement {
        allowed: outcome.verdict == Verdict::Allow,
        reason,
        policy: outcome.rule().map(|r| r.policy.to_string()),
        rule: outcome.rule().map(|r| r.index + 1),
        considered,
        dry_run: outcome.dry_run.as_ref().map(|(action, rule)| format!("{action:?} by {rule}")),
        client_identity: connection.identity.as_ref().map(ToString::to_string),
    };
    let change = change(&outcome, workload, &connection, source);
    Some((judgement, change))
}

/// What would have to change for a connection to be let in.
fn change(ruling: &Ruling, workload: &Workload, connection: &Connection, source: &Workload) -> Vec<String> {
    let mut change = match &ruling.why {
        Why::Allowed(_) | Why::NoAllowPolicy => return Vec::new(),
        Why::UnknownPolicy(key) => {
            vec![format!("policy {key} must arrive, or workload {} must not refer to it", workload.namespaced_name())]
        }
        Why::Denied(rule) => vec![format!("{rule} must not match this connection")],
        Why::NoneAllowed => match &connection.identity {
            Some(identity) => {
                let principal = identity.to_string();
                let principal = principal.trim_start_matches("spiffe://");
                vec![format!("an allow policy must match principal {principal}")]
            }
            None => vec![format!("an allow policy must match source address {}", connection.client.ip())],
        },
    };
    if connection.identity.is_none() {
        change.push(format!(
            "or {} must join the mesh, and so prove that it is {}",
            source.namespaced_name(),
            source.identity()
        ));
    }
    change
}

/// Tells who it is.
pub(super) fn party(workload: &Workload) -> Party {
    Party {
        workload: workload.namespaced_name(),
        identity: workload.identity().to_string(),
        in_mesh: workload.protocol == Protocol::Hbone,
        node: workload.node.to_string(),
    }
}
