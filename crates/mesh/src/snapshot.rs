//! The whole mesh at one moment, indexed for the questions that are asked of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::Equivalent;
use ipnet::IpNet;

use crate::compiled::Compiled;
use crate::endpoints::{Endpoint, Group, target_port};
use crate::few::Few;
use crate::gateway::NetworkAddress;
use crate::policy::Policy;
use crate::service::Service;
use crate::store::{Resource, Store};
use crate::table::Table;
use crate::text::Text;
use crate::workload::Workload;

/// An immutable snapshot of the mesh. Clones and later snapshots share with it what has not changed.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    pub(crate) workloads: Table<Text, Arc<Workload>>,
    /// Of several that say they have an address, the one that said so last is at the end.
    pub(crate) by_address: Table<NetworkAddress, Few<Arc<Workload>>>,
    pub(crate) by_name: Table<Name, Few<Arc<Workload>>>,
    /// Services with their workloads, by key.
    pub(crate) groups: Table<Text, Arc<Group>>,
    /// Keys of services.
    pub(crate) by_vip: Table<NetworkAddress, Few<Text>>,
    pub(crate) by_range: Table<Range, Few<Text>>,
    /// How many ranges there are of each length, by family; IPv6 is `true`.
    pub(crate) range_lengths: Arc<BTreeMap<(bool, u8), usize>>,
    /// In lower case.
    pub(crate) by_hostname: Table<Text, Few<Text>>,
    pub(crate) policies: Table<Text, Arc<Compiled>>,
    pub(crate) global_policies: Arc<Vec<Arc<Compiled>>>,
    pub(crate) namespace_policies: Table<Text, Arc<Vec<Arc<Compiled>>>>,
    pub(crate) policy_epoch: u64,
    pub(crate) namespaces: Arc<BTreeMap<Text, Arc<Namespace>>>,
    pub(crate) preferred_namespace: Option<Text>,
}

/// A Kubernetes namespace, as far as enrolment looks at it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: Text,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A name within a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) namespace: Text,
    pub(crate) name: Text,
}

#[derive(Hash)]
struct NameRef<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, key: &Name) -> bool {
        key.namespace == *self.namespace && key.name == *self.name
    }
}

/// A range of addresses in a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Range {
    pub(crate) network: Text,
    pub(crate) net: IpNet,
}

#[derive(Hash)]
struct RangeRef<'a> {
    network: &'a str,
    net: IpNet,
}

impl Equivalent<Range> for RangeRef<'_> {
    fn equivalent(&self, key: &Range) -> bool {
        key.net == self.net && key.network == *self.network
    }
}

#[derive(Hash)]
struct AddressRef<'a> {
    network: &'a str,
    address: IpAddr,
}

impl Equivalent<NetworkAddress> for AddressRef<'_> {
    fn equivalent(&self, key: &NetworkAddress) -> bool {
        key.address == self.address && key.network == *self.network
    }
}

impl Mesh {
    /// A mesh of these. Of two workloads with one address, the later one is found by it.
    pub fn new(
        workloads: impl IntoIterator<Item = Workload>,
        services: impl IntoIterator<Item = Service>,
        policies: impl IntoIterator<Item = Policy>,
        namespaces: impl IntoIterator<Item = Namespace>,
    ) -> Self {
        let mut store = Store::default();
        let namespaces = namespaces.into_iter().map(Resource::Namespace);
        let services = services.into_iter().map(Resource::Service);
        let policies = policies.into_iter().map(Resource::Policy);
        let workloads = workloads.into_iter().map(Resource::Workload);
        store.apply(namespaces.chain(services).chain(policies).chain(workloads), []);
        store.into_mesh()
    }

    /// Services of this namespace go before those of others, where several have one address or name and none is in the
    /// namespace of whoever asks, or canonical.
    pub fn prefer(&mut self, namespace: Option<&str>) {
        self.preferred_namespace = namespace.map(Text::from);
    }

    /// The workload of this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address in this network.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&AddressRef { network, address: ip })?.as_slice().last()
    }

    /// The workload of this name; of several in different clusters, the one that came last.
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads_by_name(namespace, name).last()
    }

    /// All workloads of this name: there may be one in each cluster.
    pub fn workloads_by_name(&self, namespace: &str, name: &str) -> &[Arc<Workload>] {
        self.by_name.get(&NameRef { namespace, name }).map_or(&[], Few::as_slice)
    }

    /// The service of this key, `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.groups.get(key)?.service.as_ref()
    }

    /// The service that has this virtual address in this network, as a workload of `namespace` sees it: by the address
    /// itself, else by the longest range; of several, the one in that namespace, else the canonical one, else one in the
    /// preferred namespace, else the first by key. Among ranges this goes before the length.
    pub fn service_by_vip(&self, network: &str, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        self.group_by_vip(network, ip, namespace)?.service.as_ref()
    }

    pub(crate) fn group_by_vip(&self, network: &str, ip: IpAddr, namespace: &str) -> Option<&Arc<Group>> {
        let exact = self.by_vip.get(&AddressRef { network, address: ip });
        if let Some((_, group)) = exact.and_then(|keys| self.best(keys, namespace)) {
            return Some(group);
        }
        let lengths = self.range_lengths.range((ip.is_ipv6(), 0)..=(ip.is_ipv6(), u8::MAX)).rev();
        let ranges = lengths.filter_map(|((_, length), _)| {
            let net = IpNet::new(ip, *length).ok()?.trunc();
            self.best(self.by_range.get(&RangeRef { network, net })?, namespace)
        });
        // The longest comes first, and stays unless another one is better.
        ranges.reduce(|best, next| if next.0 < best.0 { next } else { best }).map(|(_, group)| group)
    }

    /// The service of this host name, which is in lower case and without a dot at its end, as a workload of `namespace`
    /// sees it. Of several, the one in that namespace, else the canonical one, else one in the preferred
    /// namespace, else the first by key.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.best(self.by_hostname.get(hostname)?, namespace)?.1.service.as_ref()
    }

    /// The best of these services for a namespace, with how good it is: 0 is best.
    fn best<'m>(&'m self, keys: &'m Few<Text>, namespace: &str) -> Option<(u8, &'m Arc<Group>)> {
        let visible = keys.as_slice().iter().filter_map(|key| {
            let group = self.groups.get(key.as_str())?;
            let service = group.service.as_ref().filter(|s| s.is_visible_to(namespace))?;
            let rank = match service {
                s if s.namespace == *namespace => 0,
                s if s.canonical => 1,
                s if self.preferred_namespace.as_ref() == Some(&s.namespace) => 2,
                _ => 3,
            };
            Some((rank, key, group))
        });
        visible.min_by_key(|(rank, key, _)| (*rank, *key)).map(|(rank, _, group)| (rank, group))
    }

    /// The first service that a workload belongs to, for telemetry of inbound connections.
    pub fn service_of(&self, workload: &Workload) -> Option<&Arc<Service>> {
        workload.services.keys().find_map(|key| self.service(key))
    }

    /// The port of a workload that stands for a port of the service of this host name.
    pub fn target_port(&self, workload: &Workload, hostname: &str, port: u16) -> Option<u16> {
        let of_name = |key: &str| key.split_once('/').is_some_and(|(_, h)| h.eq_ignore_ascii_case(hostname));
        workload
            .services
            .iter()
            .filter(|(key, _)| of_name(key))
            .find_map(|(key, own)| target_port(self.service(key)?, own, port))
    }

    /// The workloads of a service, whether or not they may be chosen.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = &Endpoint> {
        self.groups.get(service.key().as_str()).into_iter().flat_map(|group| group.endpoints())
    }

    /// A namespace by name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// All workloads, by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.sorted().into_iter()
    }

    /// All services, by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.groups.sorted().into_iter().filter_map(|group| group.service.as_ref())
    }

    /// Keys of services that workloads belong to and nobody knows, with the uids of these workloads.
    pub fn staged_services(&self) -> BTreeMap<&Text, Vec<&Text>> {
        let staged = self.groups.iter().filter(|(_, group)| group.service.is_none());
        staged.map(|(key, group)| (key, group.endpoints().map(|e| &e.workload.uid).collect())).collect()
    }

    /// All policies, by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.sorted().into_iter().map(|compiled| &compiled.policy)
    }

    /// Differs between snapshots of which one has another policy than the other.
    pub fn policy_epoch(&self) -> u64 {
        self.policy_epoch
    }

    pub(crate) fn compiled_policy(&self, key: &str) -> Option<&Arc<Compiled>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload: global ones, those of its namespace, and those that it refers to.
    pub(crate) fn policies_of<'m>(&'m self, workload: &'m Workload) -> impl Iterator<Item = &'m Arc<Compiled>> {
        let of_namespace = self.namespace_policies.get(workload.namespace.as_str());
        let selected = workload.authorization_policies.iter().filter_map(|key| self.policies.get(key.as_str()));
        self.global_policies.iter().chain(of_namespace.into_iter().flat_map(|all| all.iter())).chain(selected)
    }

    /// How many workloads, services, policies there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.groups.len(), self.policies.len())
    }
}
