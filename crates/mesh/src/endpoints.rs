//! The workloads of a service, indexed so that choosing an endpoint is fast for every client.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::Equivalent;

use crate::ports::Ports;
use crate::service::{HealthPolicy, LoadBalancer, LoadBalancerMode, Scope, Service};
use crate::table::Table;
use crate::text::Text;
use crate::weighted::WeightedSet;
use crate::workload::{HealthStatus, Protocol, Workload};

/// Maximum number of random draws for an eligible endpoint.
const MAX_DRAWS: u64 = 8;

/// One workload of a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own target ports, where they differ from the service's.
    pub ports: Ports,
}

/// A service and its workloads. The service is `None` while only workloads that refer to it are
/// known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    pub(crate) service: Option<Arc<Service>>,
    members: Table<Text, Endpoint>,
    /// The endpoints that can be chosen, in order of preference.
    levels: Vec<Level>,
}

/// Workloads by the values of the scopes that they must share with the client.
#[derive(Debug, Clone)]
struct Level {
    scopes: Box<[Scope]>,
    classes: Table<Values, Arc<Vec<Class>>>,
}

/// Workloads with identical properties for endpoint selection.
#[derive(Debug, Clone)]
struct Class {
    kind: ClassKind,
    workloads: WeightedSet,
}

/// The properties that the workloads of a class share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClassKind {
    /// Their own target ports.
    ports: Ports,
    /// Whether their application tunnel accepts any port.
    any_port: bool,
    /// The network of workloads without an address: they are reachable only from other networks,
    /// through the gateway.
    gateway_only_network: Option<Text>,
}

/// One value per scope.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Values(Box<[Text]>);

/// The values of a workload for some scopes.
struct ValuesOf<'a>(&'a [Scope], &'a Workload);

impl Group {
    /// Whether the group has neither a service nor workloads.
    pub(crate) fn is_empty(&self) -> bool {
        self.service.is_none() && self.members.len() == 0
    }

    /// The number of workloads, including those that cannot be chosen.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// All workloads, including those that cannot be chosen, in no particular order.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.members.iter().map(|(_, endpoint)| endpoint)
    }

    /// Whether this workload is a member.
    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.members.get(uid).is_some()
    }

    /// Sets or removes the service; its workloads stay.
    pub(crate) fn set_service(&mut self, service: Option<Arc<Service>>) {
        let before = self.service.as_ref().map(|s| &s.load_balancer);
        let same = before == service.as_ref().map(|s| &s.load_balancer);
        self.service = service;
        if same {
            return;
        }
        self.levels.clear();
        if let Some(service) = &self.service {
            let level = |scopes: &[Scope]| Level {
                scopes: scopes.into(),
                classes: Table::default(),
            };
            self.levels = levels(&service.load_balancer)
                .into_iter()
                .map(level)
                .collect();
            for endpoint in self.members.clone().sorted() {
                self.update_classes(endpoint, Class::insert);
            }
        }
    }

    pub(crate) fn insert(&mut self, endpoint: Endpoint) {
        self.update_classes(&endpoint, Class::insert);
        self.members.insert(endpoint.workload.uid.clone(), endpoint);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some(endpoint) = self.members.remove(uid) {
            self.update_classes(&endpoint, Class::remove);
        }
    }

    /// Calls `change` with the class of an endpoint in each level, if the endpoint can be chosen.
    fn update_classes(&mut self, endpoint: &Endpoint, change: fn(&mut Class, &Arc<Workload>)) {
        let Some(service) = &self.service else { return };
        let balancer = &service.load_balancer;
        let workload = &endpoint.workload;
        let healthy = balancer.health_policy == HealthPolicy::AllowAll
            || workload.status == HealthStatus::Healthy;
        let understood = workload.protocol != Protocol::Unsupported;
        let addressless = workload.workload_ips.is_empty() && workload.hostname.is_empty();
        if !healthy || !understood || addressless && workload.network_gateway.is_none() {
            return;
        }
        let any_port = workload
            .application_tunnel
            .as_ref()
            .is_some_and(|t| t.port.is_some());
        let kind = ClassKind {
            ports: endpoint.ports.clone(),
            any_port,
            gateway_only_network: addressless.then(|| workload.network.clone()),
        };
        for level in &mut self.levels {
            let key = Values(
                level
                    .scopes
                    .iter()
                    .map(|s| value(*s, workload).clone())
                    .collect(),
            );
            let mut classes = level.classes.remove(&key).unwrap_or_default();
            let all = Arc::make_mut(&mut classes);
            let known = all.iter().position(|class| class.kind == kind);
            let at = known.unwrap_or_else(|| {
                all.push(Class {
                    kind: kind.clone(),
                    workloads: WeightedSet::default(),
                });
                all.len() - 1
            });
            change(&mut all[at], workload);
            all.retain(|c| !c.workloads.is_empty());
            if !all.is_empty() {
                level.classes.insert(key, classes);
            }
        }
    }

    /// Chooses a workload that serves `port` for `source`, weighted by capacity, and returns it
    /// with its target port. `random` determines the choice among those that are `eligible`.
    pub(crate) fn choose(
        &self,
        port: u16,
        source: &Workload,
        random: u64,
        eligible: impl Fn(&Workload) -> bool,
    ) -> Option<(&Arc<Workload>, u16)> {
        let service = self.service.as_deref()?;
        for level in &self.levels {
            let Some(classes) = level.classes.get(&ValuesOf(&level.scopes, source)) else {
                continue;
            };
            let fitting = || {
                classes.iter().filter_map(|class| {
                    let gateway_only = class.kind.gateway_only_network.as_ref();
                    let reachable = gateway_only.is_none_or(|n| *n != source.network);
                    let port = class.kind.target_port(service, port);
                    Some((class, port.filter(|_| reachable)?))
                })
            };
            let total: u64 = fitting().map(|(class, _)| class.workloads.weight()).sum();
            if total == 0 {
                continue;
            }
            for draw in 0..MAX_DRAWS {
                let mut point =
                    random.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % total;
                for (class, port) in fitting() {
                    match class.workloads.at(point) {
                        Some(workload) if eligible(workload) => return Some((workload, port)),
                        Some(_) => break,
                        None => point -= class.workloads.weight(),
                    }
                }
            }
            let all =
                fitting().flat_map(|(class, port)| class.workloads.iter().map(move |w| (w, port)));
            if let Some(left) = all.into_iter().find(|(w, _)| w.capacity > 0 && eligible(w)) {
                return Some(left);
            }
        }
        None
    }
}

/// The scopes that client and endpoint must share, per level, in order of preference.
fn levels(balancer: &LoadBalancer) -> Vec<&[Scope]> {
    let wanted = balancer.routing_preferences.as_slice();
    let leading = |scopes: &'_ [Scope]| (0..=scopes.len()).rev().collect::<Vec<_>>();
    match balancer.mode {
        LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => vec![&[]],
        LoadBalancerMode::Strict => vec![wanted],
        LoadBalancerMode::Failover => match wanted {
            // The own network comes before all other scopes; other networks are the fallback.
            [Scope::Network, rest @ ..] => {
                let own = leading(rest).into_iter().map(|n| &wanted[..=n]);
                own.chain(leading(rest).into_iter().map(|n| &rest[..n]))
                    .collect()
            }
            _ => leading(wanted).into_iter().map(|n| &wanted[..n]).collect(),
        },
    }
}

impl Class {
    fn insert(&mut self, workload: &Arc<Workload>) {
        self.workloads.insert(workload.clone());
    }

    fn remove(&mut self, workload: &Arc<Workload>) {
        self.workloads.remove(&workload.uid);
    }
}

impl ClassKind {
    fn target_port(&self, service: &Service, port: u16) -> Option<u16> {
        target_port(service, &self.ports, port).or_else(|| self.any_port.then_some(port))
    }
}

/// The target port of a workload for a service port. The workload's own mapping takes precedence; 0
/// in the service's mapping means that only the workload defines it.
pub(crate) fn target_port(service: &Service, own: &Ports, port: u16) -> Option<u16> {
    own.get(port)
        .or_else(|| service.ports.get(port))
        .filter(|p| *p != 0)
}

/// Whether a port of the service leads to this port of a workload.
pub(crate) fn has_target(service: &Service, own: &Ports, target: u16) -> bool {
    let ports = service.ports.as_slice().iter().chain(own.as_slice());
    ports
        .map(|(port, _)| *port)
        .any(|port| target_port(service, own, port) == Some(target))
}

fn value(scope: Scope, workload: &Workload) -> &Text {
    match scope {
        Scope::Region => &workload.locality.region,
        Scope::Zone => &workload.locality.zone,
        Scope::Subzone => &workload.locality.subzone,
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster_id,
        Scope::Network => &workload.network,
    }
}

impl Hash for Values {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|value| value.hash(state));
    }
}

impl Hash for ValuesOf<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0
            .iter()
            .for_each(|scope| value(*scope, self.1).hash(state));
    }
}

impl Equivalent<Values> for ValuesOf<'_> {
    fn equivalent(&self, key: &Values) -> bool {
        self.0
            .iter()
            .map(|scope| value(*scope, self.1))
            .eq(key.0.iter())
    }
}
