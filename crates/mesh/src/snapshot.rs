//! An immutable snapshot of the mesh, indexed for lookups.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::Equivalent;
use ipnet::IpNet;

use crate::compiled::CompiledPolicy;
use crate::endpoints::{Endpoint, Group, has_target, target_port};
use crate::one_or_many::OneOrMany;
use crate::policy::Policy;
use crate::service::Service;
use crate::table::Table;
use crate::text::Text;
use crate::trust_domains::TrustDomains;
use crate::waypoint::is_waypoint_of;
use crate::workload::{Protocol, Workload};

/// An immutable snapshot of the mesh. Clones and later snapshots share its unchanged parts.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    pub(crate) workloads: Table<Text, Arc<Workload>>,
    /// Usually one workload; see [`Mesh::workload_by_ip`] for the choice among several.
    pub(crate) by_address: Table<Scoped<Text, IpAddr>, OneOrMany<Arc<Workload>>>,
    pub(crate) by_name: Table<Scoped<Text, Text>, OneOrMany<Arc<Workload>>>,
    /// Services with their workloads, by service key.
    pub(crate) groups: Table<Text, Arc<Group>>,
    /// Service keys by virtual address.
    pub(crate) by_vip: Table<Scoped<Text, IpAddr>, OneOrMany<Text>>,
    pub(crate) by_range: Table<Scoped<Text, IpNet>, OneOrMany<Text>>,
    /// The number of ranges by family (`true` for IPv6) and prefix length.
    pub(crate) range_lengths: Arc<BTreeMap<(bool, u8), usize>>,
    /// Service keys by lower-case host name.
    pub(crate) by_hostname: Table<Text, OneOrMany<Text>>,
    pub(crate) policies: Table<Text, Arc<CompiledPolicy>>,
    pub(crate) global_policies: Arc<Vec<Arc<CompiledPolicy>>>,
    pub(crate) namespace_policies: Table<Text, Arc<Vec<Arc<CompiledPolicy>>>>,
    pub(crate) namespaces: Arc<BTreeMap<Text, Arc<Namespace>>>,
    pub(crate) preferred_namespace: Option<Text>,
    pub(crate) trust_domains: Arc<TrustDomains>,
}

/// What does not come from the source of the mesh, but from the settings of the proxy.
#[derive(Debug, Clone, Default)]
pub struct MeshSettings {
    /// The namespace whose services win when several have the same address or host name, and none
    /// of them is canonical or in the client's namespace.
    pub preferred_namespace: Option<Text>,
    /// The names of the own trust domain.
    pub trust_domains: Arc<TrustDomains>,
}

/// The parts of a Kubernetes namespace that enrolment needs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: Text,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A key of an index: a name within a namespace, or an address or range within a network.
/// Borrowed as `Scoped<&str, Q>`, it is looked up without being copied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scoped<S, K> {
    pub(crate) scope: S,
    pub(crate) key: K,
}

impl<K: PartialEq<Q>, Q> Equivalent<Scoped<Text, K>> for Scoped<&str, Q> {
    fn equivalent(&self, owned: &Scoped<Text, K>) -> bool {
        owned.key == self.key && owned.scope == *self.scope
    }
}

pub(crate) fn scoped<S, K>(scope: S, key: K) -> Scoped<S, K> {
    Scoped { scope, key }
}

impl Mesh {
    /// Applies settings.
    pub fn set(&mut self, settings: MeshSettings) {
        self.preferred_namespace = settings.preferred_namespace;
        self.trust_domains = settings.trust_domains;
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload with this address in this network. If several claim it, one with a proxy wins,
    /// so that none of them is reached in plain text, then the first by uid: the order in which
    /// they became known has no influence.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let all = self.by_address.get(&scoped(network, ip))?.as_slice();
        all.iter()
            .min_by_key(|w| (w.protocol != Protocol::Hbone, &w.uid))
    }

    /// The workload with this name; if several clusters have one, the first by uid.
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let all = self.workloads_by_name(namespace, name);
        all.iter().min_by_key(|w| &w.uid)
    }

    /// All workloads with this name; each cluster may have one.
    pub fn workloads_by_name(&self, namespace: &str, name: &str) -> &[Arc<Workload>] {
        self.by_name
            .get(&scoped(namespace, name))
            .map_or(&[], OneOrMany::as_slice)
    }

    /// The service with this key, `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.groups.get(key)?.service.as_ref()
    }

    /// The service with this virtual address in this network, as seen from `namespace`: a single
    /// address, or else the longest range, unless the address is a workload's own. Among several
    /// services, the one in `namespace` wins, then the canonical one, then one in the preferred
    /// namespace, then the first by key.
    pub fn service_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Service>> {
        self.group_by_vip(network, ip, namespace)?.service.as_ref()
    }

    pub(crate) fn group_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Group>> {
        let exact = self.by_vip.get(&scoped(network, ip));
        if let Some(group) = exact.and_then(|keys| self.best(keys, namespace)) {
            return Some(group);
        }
        // A range may contain pods, which are reached by their own address, never by way of it.
        if self.workload_by_ip(network, ip).is_some() {
            return None;
        }
        let lengths = self
            .range_lengths
            .range((ip.is_ipv6(), 0)..=(ip.is_ipv6(), u8::MAX))
            .rev();
        lengths.into_iter().find_map(|((_, length), _)| {
            let net = IpNet::new(ip, *length).ok()?.trunc();
            self.best(self.by_range.get(&scoped(network, net))?, namespace)
        })
    }

    /// The service with this host name, as seen from `namespace`. The host name must be in lower
    /// case, without a trailing dot. Among several services, the order is that of
    /// [`service_by_vip`](Self::service_by_vip).
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.best(self.by_hostname.get(hostname)?, namespace)?
            .service
            .as_ref()
    }

    /// The best of these services for a namespace.
    fn best<'m>(&'m self, keys: &'m OneOrMany<Text>, namespace: &str) -> Option<&'m Arc<Group>> {
        let visible = self.visible(keys, namespace);
        visible
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, group)| group)
    }

    /// Those of these services that a namespace can use, best first.
    pub(crate) fn ranked<'m>(
        &'m self,
        keys: &'m OneOrMany<Text>,
        namespace: &str,
    ) -> Vec<&'m Arc<Group>> {
        let mut visible: Vec<_> = self.visible(keys, namespace).collect();
        visible.sort_by_key(|(rank, _)| *rank);
        visible.into_iter().map(|(_, group)| group).collect()
    }

    /// Those of these services that a namespace can use, each with its rank.
    fn visible<'m>(
        &'m self,
        keys: &'m OneOrMany<Text>,
        namespace: &str,
    ) -> impl Iterator<Item = ((u8, &'m Text), &'m Arc<Group>)> {
        keys.as_slice().iter().filter_map(move |key| {
            let group = self.groups.get(key.as_str())?;
            let service = group
                .service
                .as_ref()
                .filter(|s| s.is_visible_to(namespace))?;
            let rank = match service {
                s if s.namespace == *namespace => 0,
                s if s.canonical => 1,
                s if self.preferred_namespace.as_ref() == Some(&s.namespace) => 2,
                _ => 3,
            };
            Some(((rank, key), group))
        })
    }

    /// The service through which a connection reaches a workload's `port`, for telemetry of inbound
    /// connections: the one with the host name that the client states, if the workload belongs to
    /// it or is its waypoint; else the first that leads to this port; else the first.
    pub fn service_of(
        &self,
        workload: &Workload,
        named: Option<&str>,
        port: u16,
    ) -> Option<&Arc<Service>> {
        let own = || {
            let services = workload.services.iter();
            services.filter_map(|(key, ports)| Some((self.service(key)?, ports)))
        };
        if let Some(named) = named.map(str::to_ascii_lowercase) {
            let groups = self.groups_by_hostname(&named, &workload.namespace);
            let is_here = |service: &Service| {
                workload.services.get(&service.key()).is_some()
                    || is_waypoint_of(self, workload, service)
            };
            let services = || groups.iter().filter_map(|group| group.service.as_ref());
            if let Some(service) = services().find(|service| is_here(service)) {
                return Some(service);
            }
        }
        let by_port = own().find(|(service, ports)| has_target(service, ports, port));
        let found = by_port.or_else(|| own().next());
        found.map(|(service, _)| service)
    }

    /// The target port of a workload for a port of the service with this host name.
    pub fn target_port(&self, workload: &Workload, hostname: &str, port: u16) -> Option<u16> {
        let of_name = |key: &str| {
            key.split_once('/')
                .is_some_and(|(_, h)| h.eq_ignore_ascii_case(hostname))
        };
        workload
            .services
            .iter()
            .filter(|(key, _)| of_name(key))
            .find_map(|(key, own)| target_port(self.service(key)?, own, port))
    }

    /// All workloads of a service, including those that cannot be chosen.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = &Endpoint> {
        self.groups
            .get(service.key().as_str())
            .into_iter()
            .flat_map(|group| group.endpoints())
    }

    /// The namespace with this name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// All workloads, ordered by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.sorted().into_iter()
    }

    /// All services, ordered by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.groups
            .sorted()
            .into_iter()
            .filter_map(|group| group.service.as_ref())
    }

    /// Keys of unknown services that workloads refer to, with the uids of these workloads.
    pub fn staged_services(&self) -> BTreeMap<&Text, Vec<&Text>> {
        let staged = self
            .groups
            .iter()
            .filter(|(_, group)| group.service.is_none());
        staged
            .map(|(key, group)| (key, group.endpoints().map(|e| &e.workload.uid).collect()))
            .collect()
    }

    /// All policies, ordered by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies
            .sorted()
            .into_iter()
            .map(|compiled| &compiled.policy)
    }

    /// Whether a workload refers to a policy that is not known.
    pub fn lacks_policy_of(&self, workload: &Workload) -> bool {
        let policies = &workload.authorization_policies;
        policies
            .iter()
            .any(|key| self.compiled_policy(key).is_none())
    }

    pub(crate) fn compiled_policy(&self, key: &str) -> Option<&Arc<CompiledPolicy>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload: global ones, those of its namespace, and those that
    /// it refers to.
    pub(crate) fn policies_of<'m>(
        &'m self,
        workload: &'m Workload,
    ) -> impl Iterator<Item = &'m Arc<CompiledPolicy>> {
        let of_namespace = self.namespace_policies.get(workload.namespace.as_str());
        let selected = workload
            .authorization_policies
            .iter()
            .filter_map(|key| self.policies.get(key.as_str()));
        self.global_policies
            .iter()
            .chain(of_namespace.into_iter().flat_map(|all| all.iter()))
            .chain(selected)
    }

    /// The numbers of workloads, services and policies.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.groups.len(), self.policies.len())
    }
}
