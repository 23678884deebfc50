//! Where a connection that a pod opens goes.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::address::OrigDst;
use crate::decision::Decision;
use crate::endpoints::Group;
use crate::gateway::GatewayAddress;
use crate::host::{Host, HostPort};
use crate::service::{LoadBalancerMode, Service};
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::waypoint::{Gateway, find_gateway, is_gateway, is_waypoint_of, waypoint_of};
use crate::workload::{Protocol, Workload};

/// The port on which every proxy accepts HBONE.
pub const HBONE_PORT: u16 = 15008;

/// The way to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Through a tunnel.
    Tunnel {
        /// The proxy at the other end.
        tunnel: HostPort,
        /// What the tunnel leads to.
        authority: HostPort,
        /// SPIFFE ids, one of which the other end must prove.
        expected: Vec<Text>,
        /// For a destination in another network: the SPIFFE ids of which one must be proved within a second tunnel, to the
        /// same authority inside the first, which ends at the gateway.
        inner: Option<Vec<Text>>,
        /// What stands between.
        via: Via,
        /// The workload that is reached: a waypoint, or the destination.
        workload: Arc<Workload>,
        /// The uid of the workload that is connected to: of the gateway, if there is one.
        peer: Text,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
    /// In plain text.
    Direct {
        /// Where to.
        to: HostPort,
        /// The workload there, if it is known.
        workload: Option<Arc<Workload>>,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
    /// Nowhere.
    Refuse {
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
}

/// What stands between a client and its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// Nothing: the tunnel ends at the destination's own proxy.
    Nothing,
    /// The waypoint of the service that was addressed.
    ServiceWaypoint,
    /// The waypoint of the workload that was addressed.
    WorkloadWaypoint,
    /// The gateway of the network that the destination is in.
    NetworkGateway,
}

/// Decides where a connection of `source` to `orig_dst` goes. `random` chooses among endpoints; none of the workloads whose
/// uids are in `tried` is chosen, as long as there are others.
pub fn route(mesh: &Mesh, source: &Workload, orig_dst: OrigDst, random: u64, tried: &[Text]) -> Decision<Route> {
    let (network, namespace) = (source.network.as_str(), source.namespace.as_str());
    let ask = Ask { mesh, source, orig_dst, random, tried };
    let workload = mesh.workload_by_ip(network, orig_dst.ip());
    let addressed = mesh.group_by_vip(network, orig_dst.ip(), namespace);
    let addressed = addressed.and_then(|group| Some((group.as_ref(), group.service.as_ref()?)));
    match (addressed, workload) {
        (Some((group, service)), workload) => ask.to_service(group, service, workload),
        (None, Some(workload)) => {
            let reason = format!("{} is workload {}", orig_dst.ip(), workload.namespaced_name());
            ask.to_workload(workload, HostPort::from(orig_dst.0), None, reason)
        }
        (None, None) => {
            let direct = Route::Direct { to: orig_dst.0.into(), workload: None, service: None };
            Decision::new(direct, format!("{} is not in the mesh", orig_dst.ip()))
        }
    }
}

/// What is asked.
struct Ask<'a> {
    mesh: &'a Mesh,
    source: &'a Workload,
    orig_dst: OrigDst,
    random: u64,
    tried: &'a [Text],
}

impl Ask<'_> {
    fn to_service(&self, group: &Group, service: &Arc<Service>, workload: Option<&Arc<Workload>>) -> Decision<Route> {
        let Self { mesh, source, orig_dst, random, tried } = *self;
        let key = service.key();
        let mut considered = vec![format!("{} is service {key}", orig_dst.ip())];
        match waypoint_of(service, random) {
            Some(_) if workload.is_some() => considered.push(format!(
                "the waypoint of service {key} is left out: {} is a workload's own address, too",
                orig_dst.ip()
            )),
            // Any of several: else they would send to each other.
            Some(_) if is_waypoint_of(mesh, source, service) => {
                considered.push(format!("{} is the waypoint of service {key}", source.namespaced_name()));
            }
            Some(waypoint) => {
                let reason = format!("service {key} has the waypoint {}", waypoint.destination);
                return self.to_waypoint(waypoint, Via::ServiceWaypoint, Some(service), reason).after(considered);
            }
            None => {}
        }
        if service.load_balancer.mode == LoadBalancerMode::Passthrough {
            let reason = format!("service {key} is passed through");
            return match workload {
                // Known to have a proxy: nothing goes there in plain text.
                Some(workload) => self.to_workload(workload, orig_dst.0.into(), Some(service), reason),
                None => {
                    let to = orig_dst.0.into();
                    Decision::new(Route::Direct { to, workload: None, service: Some(service.clone()) }, reason)
                }
            }
            .after(considered);
        }
        match group.choose(orig_dst.port(), source, random, tried) {
            Some((workload, port)) => {
                let to = HostPort { host: Host::of(workload, orig_dst.ip()), port };
                let reason = format!("service {key} is served by workload {}", workload.namespaced_name());
                self.to_workload(workload, to, Some(service), reason).after(considered)
            }
            None => {
                considered.push(format!("service {key} has {} endpoints", group.len()));
                considered.extend((!tried.is_empty()).then(|| format!("{} of them were tried", tried.len())));
                let reason = format!("no healthy upstream: service {key} has no endpoint for port {}", orig_dst.port());
                refuse(Some(service), reason).after(considered)
            }
        }
    }

    fn to_workload(
        &self,
        workload: &Arc<Workload>,
        to: HostPort,
        service: Option<&Arc<Service>>,
        reason: String,
    ) -> Decision<Route> {
        if workload.network != self.source.network {
            return self.to_network(workload, service, reason);
        }
        let mut considered = Vec::new();
        match &workload.waypoint {
            Some(waypoint) if service.is_none() && is_gateway(self.mesh, self.source, waypoint) => {
                considered.push(format!("{} is the waypoint itself", self.source.namespaced_name()));
            }
            Some(waypoint) if service.is_none() => {
                let reason = format!("{reason}, which has the waypoint {}", waypoint.destination);
                return self.to_waypoint(waypoint, Via::WorkloadWaypoint, None, reason);
            }
            _ => {}
        }
        let route = match workload.protocol {
            Protocol::Hbone => {
                let route = Route::Tunnel {
                    tunnel: HostPort { host: to.host.clone(), port: HBONE_PORT },
                    authority: to,
                    expected: expected(service, workload),
                    inner: None,
                    via: Via::Nothing,
                    peer: workload.uid.clone(),
                    workload: workload.clone(),
                    service: service.cloned(),
                };
                Decision::new(route, format!("{reason}, reached by HBONE"))
            }
            Protocol::Tcp => {
                let route = Route::Direct { to, workload: Some(workload.clone()), service: service.cloned() };
                Decision::new(route, format!("{reason}, not in the mesh"))
            }
        };
        route.after(considered)
    }

    /// To a waypoint, which is told the destination as the application said it.
    fn to_waypoint(
        &self,
        waypoint: &GatewayAddress,
        via: Via,
        service: Option<&Arc<Service>>,
        reason: String,
    ) -> Decision<Route> {
        match self.find(waypoint) {
            Ok(found) if found.workload.network != self.source.network => self.to_network(
                found.workload,
                service,
                format!("{reason}, workload {}", found.workload.namespaced_name()),
            ),
            Ok(Gateway { workload, to, service: of_waypoint }) => {
                let route = Route::Tunnel {
                    tunnel: to,
                    authority: self.orig_dst.0.into(),
                    expected: expected(of_waypoint, workload),
                    inner: None,
                    via,
                    peer: workload.uid.clone(),
                    workload: workload.clone(),
                    service: service.cloned(),
                };
                Decision::new(route, format!("{reason}, workload {}", workload.namespaced_name()))
            }
            // Whatever the waypoint would have refused must not pass.
            Err(why) => refuse(service, format!("{reason}: {why}")),
        }
    }

    fn find(&self, gateway: &GatewayAddress) -> Result<Gateway<'_>, String> {
        find_gateway(self.mesh, self.source, gateway, self.orig_dst.ip(), self.random, self.tried)
    }

    /// To a workload of another network: through its gateway, within which a tunnel leads to the workload.
    fn to_network(&self, workload: &Arc<Workload>, service: Option<&Arc<Service>>, reason: String) -> Decision<Route> {
        let reason = format!("{reason}, which is in network {:?}", workload.network);
        let (Some(gateway), Some(service)) = (&workload.network_gateway, service) else {
            let what = if service.is_some() { "it has no gateway" } else { "no service was addressed" };
            return refuse(service, format!("no valid destination: {reason}, and {what}"));
        };
        match self.find(gateway) {
            Ok(found) => {
                // The workload stands for many: who they are is said by the service, if it says so.
                let inner = match service.subject_alt_names.is_empty() {
                    true => expected(None, workload),
                    false => service.subject_alt_names.clone(),
                };
                let authority = HostPort { host: Host::Name(service.hostname.clone()), port: self.orig_dst.port() };
                let route = Route::Tunnel {
                    tunnel: found.to,
                    authority,
                    expected: expected(found.service, found.workload),
                    inner: Some(inner),
                    via: Via::NetworkGateway,
                    peer: found.workload.uid.clone(),
                    workload: workload.clone(),
                    service: Some(service.clone()),
                };
                Decision::new(route, format!("{reason}, reached through the gateway {}", gateway.destination))
            }
            Err(why) => refuse(Some(service), format!("no valid destination: {reason}: {why}")),
        }
    }
}

fn refuse(service: Option<&Arc<Service>>, reason: String) -> Decision<Route> {
    Decision::new(Route::Refuse { service: service.cloned() }, reason)
}

/// Who may be at the other end: the workload itself, and whoever else its service says.
fn expected(service: Option<&Arc<Service>>, workload: &Workload) -> Vec<Text> {
    let mut expected = service.map(|s| s.subject_alt_names.clone()).unwrap_or_default();
    expected.push(workload.identity().to_string().into());
    expected
}

impl Route {
    /// The uid of the workload that is connected to, if there may be another one for the same purpose.
    pub fn replaceable(&self) -> Option<&Text> {
        match self {
            Self::Tunnel { via: Via::Nothing, service: None, .. } => None,
            Self::Tunnel { peer, .. } => Some(peer),
            Self::Direct { workload, service, .. } => service.as_ref().and(workload.as_ref()).map(|w| &w.uid),
            Self::Refuse { .. } => None,
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip().to_canonical()), port: address.port() }
    }
}
