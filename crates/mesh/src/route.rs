//! Decides where an outbound connection of a pod goes.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::address::OrigDst;
use crate::decision::{Decision, Reason, Unread, reason};
use crate::endpoints::Group;
use crate::gateway::GatewayAddress;
use crate::host::{Host, HostPort};
use crate::service::{LoadBalancerMode, Service};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::waypoint::{Gateway, find_gateway, is_gateway, is_waypoint_of, waypoint_of};
use crate::workload::{Protocol, Workload};

/// The route to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Through a tunnel.
    Tunnel {
        /// The proxy at the other end.
        tunnel: HostPort,
        /// The CONNECT authority.
        authority: HostPort,
        /// SPIFFE ids; the other end must prove one of them.
        expected: Vec<Text>,
        /// For a destination in another network: accepted SPIFFE ids for a second tunnel to the
        /// same authority, inside the first one, which ends at the gateway.
        inner: Option<Vec<Text>>,
        /// The kind of proxy at the other end.
        via: Via,
        /// The workload that is reached: a waypoint or the destination.
        workload: Arc<Workload>,
        /// The uid of the workload that the proxy connects to; the gateway's, if there is one.
        peer: Text,
        /// The addressed service.
        service: Option<Arc<Service>>,
    },
    /// In plain text.
    Direct {
        /// The destination.
        to: HostPort,
        /// The workload at the destination, if known.
        workload: Option<Arc<Workload>>,
        /// The addressed service.
        service: Option<Arc<Service>>,
    },
    /// Refused.
    Refuse {
        /// The addressed service.
        service: Option<Arc<Service>>,
    },
}

/// The kind of proxy between a client and its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// None: the tunnel ends at the destination's own proxy.
    Nothing,
    /// The waypoint of the addressed service.
    ServiceWaypoint,
    /// The waypoint of the addressed workload.
    WorkloadWaypoint,
    /// The gateway of the destination's network.
    NetworkGateway,
}

/// Decides where a connection from `source` to `orig_dst` goes. `random` determines the choice
/// among endpoints; workloads whose uids are in `tried` are excluded.
pub fn route(
    mesh: &Mesh,
    source: &Workload,
    orig_dst: OrigDst,
    random: u64,
    tried: &[Text],
) -> Decision<Route> {
    RouteQuery::new(mesh, source, orig_dst, random, tried).decide()
}

/// The outcome of [`route`], for connections, whose reasons are formatted only when someone reads
/// them.
pub fn route_unexplained(
    mesh: &Mesh,
    source: &Workload,
    orig_dst: OrigDst,
    random: u64,
    tried: &[Text],
) -> Route {
    let query = RouteQuery::new(mesh, source, orig_dst, random, tried);
    query.decide::<Unread>().outcome
}

/// The parameters of [`route`].
pub(crate) struct RouteQuery<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) source: &'a Workload,
    pub(crate) orig_dst: OrigDst,
    pub(crate) random: u64,
    pub(crate) tried: &'a [Text],
}

impl<'a> RouteQuery<'a> {
    fn new(
        mesh: &'a Mesh,
        source: &'a Workload,
        orig_dst: OrigDst,
        random: u64,
        tried: &'a [Text],
    ) -> Self {
        Self {
            mesh,
            source,
            orig_dst,
            random,
            tried,
        }
    }

    fn decide<R: Reason>(&self) -> Decision<Route, R> {
        let (mesh, source, orig_dst) = (self.mesh, self.source, self.orig_dst);
        let workload = mesh.workload_by_ip(&source.network, orig_dst.ip());
        match (mesh.addressed_service(source, orig_dst), workload) {
            (Some(addressed), workload) => {
                let query = RouteQuery {
                    orig_dst: addressed.orig_dst,
                    ..*self
                };
                let route = query.to_service(addressed.group, addressed.service, workload);
                match addressed.instead_of {
                    Some(first) => route.after(vec![reason!(
                        "{} is service {}, which does not have port {}",
                        orig_dst.ip(),
                        first.display_key(),
                        orig_dst.port()
                    )]),
                    None => route,
                }
            }
            (None, Some(workload)) => {
                let name = workload.display_name();
                let reason = reason!("{} is workload {name}", orig_dst.ip());
                self.to_workload(workload, HostPort::from(orig_dst.0), None, reason)
            }
            (None, None) => {
                let direct = Route::Direct {
                    to: orig_dst.0.into(),
                    workload: None,
                    service: None,
                };
                Decision::because(direct, reason!("{} is not in the mesh", orig_dst.ip()))
            }
        }
    }

    fn to_service<R: Reason>(
        &self,
        group: &Group,
        service: &Arc<Service>,
        workload: Option<&Arc<Workload>>,
    ) -> Decision<Route, R> {
        let orig_dst = self.orig_dst;
        let key = service.display_key();
        let mut considered = vec![reason!("{} is service {key}", orig_dst.ip())];
        match waypoint_of(service, self.random) {
            Some(_) if workload.is_some() => considered.push(reason!(
                "the waypoint of service {key} is skipped: {} is also a workload's own address",
                orig_dst.ip()
            )),
            // Any waypoint of the service: otherwise several would forward to each other.
            Some(_) if is_waypoint_of(self.mesh, self.source, service) => {
                considered.push(reason!(
                    "{} is the waypoint of service {key}",
                    self.source.display_name()
                ));
            }
            Some(waypoint) => {
                let reason = reason!("service {key} has the waypoint {}", waypoint.destination);
                return self
                    .to_waypoint(waypoint, Via::ServiceWaypoint, Some(service), reason)
                    .after(considered);
            }
            None => {}
        }
        if service.load_balancer.mode == LoadBalancerMode::Passthrough {
            let reason = reason!("service {key} is passed through");
            return match workload {
                // It may have a proxy: a known workload gets a tunnel, not plain text.
                Some(workload) => {
                    self.to_workload(workload, orig_dst.0.into(), Some(service), reason)
                }
                None => {
                    let to = orig_dst.0.into();
                    Decision::because(
                        Route::Direct {
                            to,
                            workload: None,
                            service: Some(service.clone()),
                        },
                        reason,
                    )
                }
            }
            .after(considered);
        }
        match self.endpoint(group) {
            Some((workload, port)) => {
                let to = HostPort {
                    host: Host::of(workload, orig_dst.ip()),
                    port,
                };
                let reason = reason!(
                    "service {key} is served by workload {}",
                    workload.display_name()
                );
                self.to_workload(workload, to, Some(service), reason)
                    .after(considered)
            }
            None => {
                considered.push(reason!("service {key} has {} endpoints", group.len()));
                let tried = self.tried.len();
                if tried > 0 {
                    considered.push(reason!("{tried} endpoints were already tried"));
                }
                let reason = reason!(
                    "no healthy upstream: service {key} has no endpoint for port {}",
                    orig_dst.port()
                );
                refuse(Some(service), reason).after(considered)
            }
        }
    }

    /// Chooses an endpoint of the addressed service. One of another network counts only if its
    /// gateway can be used: when that was tried, an endpoint elsewhere takes its place.
    fn endpoint<'g>(&self, group: &'g Group) -> Option<(&'g Arc<Workload>, u16)> {
        let is_reachable = |w: &Workload| {
            let gateway = || w.network_gateway.as_ref();
            w.network == self.source.network
                || gateway().is_some_and(|gateway| find_gateway(self, gateway).is_ok())
        };
        let (port, source, random) = (self.orig_dst.port(), self.source, self.random);
        let reachable = |w: &Workload| self.is_untried(w) && is_reachable(w);
        let chosen = group.choose(port, source, random, reachable);
        // If there is none, the decision explains why that one is not reachable.
        chosen.or_else(|| group.choose(port, source, random, |w| self.is_untried(w)))
    }

    /// Whether a workload is not one of those that were tried.
    pub(crate) fn is_untried(&self, workload: &Workload) -> bool {
        !self.tried.contains(&workload.uid)
    }

    fn to_workload<R: Reason>(
        &self,
        workload: &Arc<Workload>,
        to: HostPort,
        service: Option<&Arc<Service>>,
        reason: R,
    ) -> Decision<Route, R> {
        if workload.network != self.source.network {
            return self.to_network(workload, service, reason);
        }
        let mut considered = Vec::new();
        match &workload.waypoint {
            Some(waypoint) if service.is_none() && is_gateway(self.mesh, self.source, waypoint) => {
                considered.push(reason!(
                    "{} is the waypoint itself",
                    self.source.display_name()
                ));
            }
            Some(waypoint) if service.is_none() => {
                let reason = reason!("{reason}, which has the waypoint {}", waypoint.destination);
                return self.to_waypoint(waypoint, Via::WorkloadWaypoint, None, reason);
            }
            _ => {}
        }
        let route = match workload.protocol {
            Protocol::Hbone => {
                let route = Route::Tunnel {
                    tunnel: HostPort {
                        host: to.host.clone(),
                        port: istio::port::HBONE,
                    },
                    authority: to,
                    expected: expected_identities(service, workload),
                    inner: None,
                    via: Via::Nothing,
                    peer: workload.uid.clone(),
                    workload: workload.clone(),
                    service: service.cloned(),
                };
                Decision::because(route, reason!("{reason}, reached by HBONE"))
            }
            Protocol::Unsupported => {
                let reason = reason!(
                    "no valid destination: {reason}, but this version does not understand {}",
                    workload.uid
                );
                refuse(service, reason)
            }
            Protocol::Tcp => {
                let route = Route::Direct {
                    to,
                    workload: Some(workload.clone()),
                    service: service.cloned(),
                };
                Decision::because(route, reason!("{reason}, not in the mesh"))
            }
        };
        route.after(considered)
    }

    /// Routes to a waypoint; the CONNECT authority is the original destination.
    fn to_waypoint<R: Reason>(
        &self,
        waypoint: &GatewayAddress,
        via: Via,
        service: Option<&Arc<Service>>,
        reason: R,
    ) -> Decision<Route, R> {
        match find_gateway(self, waypoint) {
            Ok(found) if found.workload.network != self.source.network => self.to_network(
                found.workload,
                service,
                reason!("{reason}, workload {}", found.workload.display_name()),
            ),
            Ok(Gateway {
                workload,
                to,
                service: of_waypoint,
            }) => {
                let route = Route::Tunnel {
                    tunnel: to,
                    authority: self.orig_dst.0.into(),
                    expected: expected_identities(of_waypoint, workload),
                    inner: None,
                    via,
                    peer: workload.uid.clone(),
                    workload: workload.clone(),
                    service: service.cloned(),
                };
                Decision::because(
                    route,
                    reason!("{reason}, workload {}", workload.display_name()),
                )
            }
            // Fail closed: the waypoint might have denied the connection.
            Err(why) => refuse(service, reason!("{reason}: {why}")),
        }
    }

    fn to_network<R: Reason>(
        &self,
        workload: &Arc<Workload>,
        service: Option<&Arc<Service>>,
        reason: R,
    ) -> Decision<Route, R> {
        let reason: R = reason!("{reason}, which is in network {:?}", workload.network);
        let (Some(gateway), Some(service)) = (&workload.network_gateway, service) else {
            let what = if service.is_some() {
                "it has no gateway"
            } else {
                "no service was addressed"
            };
            return refuse(
                service,
                reason!("no valid destination: {reason}, and {what}"),
            );
        };
        match find_gateway(self, gateway) {
            Ok(found) => {
                // The workload represents many, whose identities the service may list.
                let inner = if service.subject_alt_names.is_empty() {
                    expected_identities(None, workload)
                } else {
                    service.subject_alt_names.clone()
                };
                let authority = HostPort {
                    host: Host::Name(service.hostname.clone()),
                    port: self.orig_dst.port(),
                };
                let route = Route::Tunnel {
                    tunnel: found.to,
                    authority,
                    expected: expected_identities(found.service, found.workload),
                    inner: Some(inner),
                    via: Via::NetworkGateway,
                    peer: found.workload.uid.clone(),
                    workload: workload.clone(),
                    service: Some(service.clone()),
                };
                Decision::because(
                    route,
                    reason!(
                        "{reason}, reached through the gateway {}",
                        gateway.destination
                    ),
                )
            }
            Err(why) => refuse(
                Some(service),
                reason!("no valid destination: {reason}: {why}"),
            ),
        }
    }
}

fn refuse<R: Reason>(service: Option<&Arc<Service>>, reason: R) -> Decision<Route, R> {
    Decision::because(
        Route::Refuse {
            service: service.cloned(),
        },
        reason,
    )
}

/// The accepted identities of the other end: the workload's own, and those that the service lists.
fn expected_identities(service: Option<&Arc<Service>>, workload: &Workload) -> Vec<Text> {
    let mut expected = service
        .map(|s| s.subject_alt_names.clone())
        .unwrap_or_default();
    expected.push(workload.identity().to_string().into());
    expected
}

impl Route {
    /// The uid of the workload that the proxy connects to, if another one can replace it.
    pub fn replaceable(&self) -> Option<&Text> {
        match self {
            Self::Tunnel {
                via: Via::Nothing,
                service: None,
                ..
            } => None,
            Self::Tunnel { peer, .. } => Some(peer),
            Self::Direct {
                workload, service, ..
            } => service.as_ref().and(workload.as_ref()).map(|w| &w.uid),
            Self::Refuse { .. } => None,
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Address(address.ip().to_canonical()),
            port: address.port(),
        }
    }
}
