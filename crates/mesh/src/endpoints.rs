//! The workloads of a service, kept such that one of them is chosen at once, whoever asks.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hashbrown::Equivalent;

use crate::ports::Ports;
use crate::service::{HealthPolicy, LoadBalancer, LoadBalancerMode, Scope, Service};
use crate::table::Table;
use crate::text::Text;
use crate::weighted::Weighted;
use crate::workload::{HealthStatus, Workload};

/// How often chance is asked for one that has not been tried.
const DRAWS: u64 = 8;

/// One workload of a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own port for each service port that it maps differently.
    pub ports: Ports,
}

/// A service and its workloads. The service may not be known yet, or not any more: then its workloads wait for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    pub(crate) service: Option<Arc<Service>>,
    members: Table<Text, Endpoint>,
    /// Those that may be chosen; what is tried first comes first.
    levels: Vec<Level>,
}

/// Workloads by what they have in common with whoever asks.
#[derive(Debug, Clone)]
struct Level {
    scopes: Box<[Scope]>,
    classes: Table<Values, Arc<Vec<Class>>>,
}

/// Workloads that differ in nothing that decides whether they can be chosen.
#[derive(Debug, Clone)]
struct Class {
    /// Their own ports.
    ports: Ports,
    /// Whether their application takes tunnels to any port.
    any_port: bool,
    /// For those without an address: their network. Others reach them through its gateway.
    hidden_in: Option<Text>,
    workloads: Weighted,
}

/// Values of scopes, one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Values(Box<[Text]>);

/// The values that a workload has for some scopes.
struct ValuesOf<'a>(&'a [Scope], &'a Workload);

impl Group {
    /// Whether nothing is known about it.
    pub(crate) fn is_empty(&self) -> bool {
        self.service.is_none() && self.members.len() == 0
    }

    /// How many workloads there are, whether or not they may be chosen.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// All workloads, whether or not they may be chosen, in no order.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.members.iter().map(|(_, endpoint)| endpoint)
    }

    /// Whether a workload belongs to it.
    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.members.get(uid).is_some()
    }

    /// Puts the service in, or takes it out. Its workloads stay.
    pub(crate) fn set_service(&mut self, service: Option<Arc<Service>>) {
        let before = self.service.as_ref().map(|s| &s.load_balancer);
        let same = before == service.as_ref().map(|s| &s.load_balancer);
        self.service = service;
        if same {
            return;
        }
        self.levels.clear();
        if let Some(service) = &self.service {
            let level = |scopes: &[Scope]| Level { scopes: scopes.into(), classes: Table::default() };
            self.levels = levels(&service.load_balancer).into_iter().map(level).collect();
            for endpoint in self.members.sorted() {
                choosable(endpoint, &service.load_balancer, &mut self.levels, Class::insert);
            }
        }
    }

    pub(crate) fn insert(&mut self, endpoint: Endpoint) {
        if let Some(service) = &self.service {
            choosable(&endpoint, &service.load_balancer, &mut self.levels, Class::insert);
        }
        self.members.insert(endpoint.workload.uid.clone(), endpoint);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(endpoint) = self.members.remove(uid) else { return };
        if let Some(service) = &self.service {
            choosable(&endpoint, &service.load_balancer, &mut self.levels, Class::remove);
        }
    }

    /// Chooses a workload that serves `port` for `source`, by weight, and its own port. `random` decides; none of `tried` is
    /// chosen.
    pub(crate) fn choose(
        &self,
        port: u16,
        source: &Workload,
        random: u64,
        tried: &[Text],
    ) -> Option<(&Arc<Workload>, u16)> {
        let service = self.service.as_deref()?;
        let untried = |w: &Workload| !tried.contains(&w.uid);
        for level in &self.levels {
            let Some(classes) = level.classes.get(&ValuesOf(&level.scopes, source)) else { continue };
            let fitting = || {
                classes.iter().filter_map(|class| {
                    let near = class.hidden_in.as_ref().is_none_or(|network| *network != source.network);
                    Some((class, class.target_port(service, port).filter(|_| near)?))
                })
            };
            let total: u64 = fitting().map(|(class, _)| class.workloads.weight()).sum();
            if total == 0 {
                continue;
            }
            for draw in 0..DRAWS {
                let mut point = random.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % total;
                for (class, port) in fitting() {
                    match class.workloads.at(point) {
                        Some(workload) if untried(workload) => return Some((workload, port)),
                        Some(_) => break,
                        None => point -= class.workloads.weight(),
                    }
                }
            }
            let all = fitting().flat_map(|(class, port)| class.workloads.iter().map(move |w| (w, port)));
            if let Some(left) = all.into_iter().find(|(w, _)| w.capacity > 0 && untried(w)) {
                return Some(left);
            }
        }
        None
    }
}

/// What must be in common, the most first.
fn levels(balancer: &LoadBalancer) -> Vec<&[Scope]> {
    let wanted = balancer.routing_preferences.as_slice();
    let leading = |scopes: &'_ [Scope]| (0..=scopes.len()).rev().collect::<Vec<_>>();
    match balancer.mode {
        LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => vec![&[]],
        LoadBalancerMode::Strict => vec![wanted],
        LoadBalancerMode::Failover => match wanted {
            // The own network goes before all else; and where that has none, the others are still looked at.
            [Scope::Network, rest @ ..] => {
                let own = leading(rest).into_iter().map(|n| &wanted[..=n]);
                own.chain(leading(rest).into_iter().map(|n| &rest[..n])).collect()
            }
            _ => leading(wanted).into_iter().map(|n| &wanted[..n]).collect(),
        },
    }
}

/// Calls `change` with the class of an endpoint in each level, if it may be chosen at all.
fn choosable(
    endpoint: &Endpoint,
    balancer: &LoadBalancer,
    levels: &mut [Level],
    change: fn(&mut Class, &Arc<Workload>),
) {
    let workload = &endpoint.workload;
    let healthy = balancer.health_policy == HealthPolicy::AllowAll || workload.status == HealthStatus::Healthy;
    let hidden = workload.workload_ips.is_empty() && workload.hostname.is_empty();
    if !healthy || hidden && workload.network_gateway.is_none() {
        return;
    }
    let any_port = workload.application_tunnel.as_ref().is_some_and(|t| t.port.is_some());
    let hidden_in = hidden.then(|| workload.network.clone());
    for level in levels {
        let key = Values(level.scopes.iter().map(|s| value(*s, workload).clone()).collect());
        let mut classes = level.classes.remove(&key).unwrap_or_default();
        let all = Arc::make_mut(&mut classes);
        let same = |c: &Class| c.ports == endpoint.ports && c.any_port == any_port && c.hidden_in == hidden_in;
        let at = all.iter().position(same).unwrap_or_else(|| {
            let (ports, hidden_in) = (endpoint.ports.clone(), hidden_in.clone());
            all.push(Class { ports, any_port, hidden_in, workloads: Weighted::default() });
            all.len() - 1
        });
        change(&mut all[at], workload);
        all.retain(|c| !c.workloads.is_empty());
        if !all.is_empty() {
            level.classes.insert(key, classes);
        }
    }
}

impl Class {
    fn insert(&mut self, workload: &Arc<Workload>) {
        self.workloads.insert(workload.clone());
    }

    fn remove(&mut self, workload: &Arc<Workload>) {
        self.workloads.remove(&workload.uid);
    }

    fn target_port(&self, service: &Service, port: u16) -> Option<u16> {
        target_port(service, &self.ports, port).or_else(|| self.any_port.then_some(port))
    }
}

/// A workload's own mapping goes before that of the service; 0 in the service's means "ask the workload".
pub(crate) fn target_port(service: &Service, own: &Ports, port: u16) -> Option<u16> {
    own.get(port).or_else(|| service.ports.get(port)).filter(|p| *p != 0)
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
        self.0.iter().for_each(|scope| value(*scope, self.1).hash(state));
    }
}

impl Equivalent<Values> for ValuesOf<'_> {
    fn equivalent(&self, key: &Values) -> bool {
        self.0.iter().map(|scope| value(*scope, self.1)).eq(key.0.iter())
    }
}
