//! The whole mesh at one moment, indexed for the questions that are asked of it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::{Policy, PolicyScope};
use crate::ports::Ports;
use crate::service::Service;
use crate::text::Text;
use crate::workload::Workload;

pub(crate) type Parts = (
    BTreeMap<Text, Arc<Workload>>,
    BTreeMap<Text, Arc<Service>>,
    BTreeMap<Text, Arc<Policy>>,
    BTreeMap<Text, Arc<Namespace>>,
);

/// An immutable snapshot of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    workloads: BTreeMap<Text, Arc<Workload>>,
    services: BTreeMap<Text, Arc<Service>>,
    policies: BTreeMap<Text, Arc<Policy>>,
    namespaces: BTreeMap<Text, Arc<Namespace>>,
    workload_by_ip: HashMap<(Text, IpAddr), Arc<Workload>>,
    workload_by_name: HashMap<(Text, Text), Arc<Workload>>,
    service_by_vip: HashMap<(Text, IpAddr), Arc<Service>>,
    services_by_hostname: HashMap<Text, Vec<Arc<Service>>>,
    endpoints: HashMap<Text, Vec<Endpoint>>,
    global_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Text, Vec<Arc<Policy>>>,
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

/// One workload of a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own port for each service port.
    pub ports: Ports,
}

impl Mesh {
    /// Indexes everything. Of two workloads with one address, the one with the greater uid is found by it.
    pub fn new(
        workloads: impl IntoIterator<Item = Workload>,
        services: impl IntoIterator<Item = Service>,
        policies: impl IntoIterator<Item = Policy>,
        namespaces: impl IntoIterator<Item = Namespace>,
    ) -> Self {
        Self::from_parts(
            workloads.into_iter().map(|w| (w.uid.clone(), Arc::new(w))).collect(),
            services.into_iter().map(|s| (s.key().into(), Arc::new(s))).collect(),
            policies.into_iter().map(|p| (p.key().into(), Arc::new(p))).collect(),
            namespaces.into_iter().map(|n| (n.name.clone(), Arc::new(n))).collect(),
        )
    }

    pub(crate) fn into_parts(self) -> Parts {
        (self.workloads, self.services, self.policies, self.namespaces)
    }

    pub(crate) fn from_parts(
        workloads: BTreeMap<Text, Arc<Workload>>,
        services: BTreeMap<Text, Arc<Service>>,
        policies: BTreeMap<Text, Arc<Policy>>,
        namespaces: BTreeMap<Text, Arc<Namespace>>,
    ) -> Self {
        let mut mesh = Self { workloads, services, policies, namespaces, ..Self::default() };
        for workload in mesh.workloads.values() {
            let name = (workload.namespace.clone(), workload.name.clone());
            mesh.workload_by_name.insert(name, workload.clone());
            // Pods in the node's network namespace share its address, so the address does not tell which one is meant.
            if !workload.host_network {
                for ip in &workload.workload_ips {
                    mesh.workload_by_ip.insert((workload.network.clone(), *ip), workload.clone());
                }
            }
            for (key, ports) in workload.services.iter() {
                let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
                mesh.endpoints.entry(key.clone()).or_default().push(endpoint);
            }
        }
        for service in mesh.services.values() {
            let hostname = Text::from(service.hostname.to_ascii_lowercase());
            mesh.services_by_hostname.entry(hostname).or_default().push(service.clone());
            for vip in &service.vips {
                mesh.service_by_vip.insert((vip.network.clone(), vip.net.addr()), service.clone());
            }
        }
        for policy in mesh.policies.values() {
            match policy.scope {
                PolicyScope::Global => mesh.global_policies.push(policy.clone()),
                PolicyScope::Namespace => {
                    mesh.namespace_policies.entry(policy.namespace.clone()).or_default().push(policy.clone());
                }
                PolicyScope::WorkloadSelector => {}
            }
        }
        mesh
    }

    /// The workload that has this address in this network.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workload_by_ip.get(&(network.into(), ip))
    }

    /// The workload of this name.
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workload_by_name.get(&(namespace.into(), name.into()))
    }

    /// The service that has this virtual address in this network.
    pub fn service_by_vip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Service>> {
        self.service_by_vip.get(&(network.into(), ip))
    }

    /// The service of this host name, which is in lower case and without a dot at its end. Of several, the one in
    /// `namespace`, else the first by key.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let services = self.services_by_hostname.get(hostname)?;
        services.iter().find(|s| s.namespace == *namespace).or(services.first())
    }

    /// The first service that a workload belongs to, for telemetry of inbound connections.
    pub fn service_of(&self, workload: &Workload) -> Option<&Arc<Service>> {
        workload.services.keys().find_map(|key| self.services.get(key))
    }

    /// The port of a workload that stands for a port of the service of this host name.
    pub fn target_port(&self, workload: &Workload, hostname: &str, port: u16) -> Option<u16> {
        let service =
            self.services.values().find(|s| s.hostname == *hostname && workload.services.get(&s.key()).is_some())?;
        let own = workload.services.get(&service.key())?.get(port);
        own.or_else(|| service.ports.get(port)).filter(|p| *p != 0)
    }

    /// The workloads of a service.
    pub fn endpoints(&self, service: &Service) -> &[Endpoint] {
        self.endpoints.get(service.key().as_str()).map_or(&[], Vec::as_slice)
    }

    /// A namespace by name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// All workloads, by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The policies that apply to a workload, and the keys that it refers to and nobody knows.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> (Vec<&'a Arc<Policy>>, Vec<&'a str>) {
        let scoped = self.namespace_policies.get(&workload.namespace).into_iter().flatten();
        let mut policies: Vec<&Arc<Policy>> = self.global_policies.iter().chain(scoped).collect();
        let mut unknown = Vec::new();
        for key in &workload.authorization_policies {
            match self.policies.get(key) {
                Some(policy) => policies.push(policy),
                None => unknown.push(key.as_str()),
            }
        }
        (policies, unknown)
    }
}
