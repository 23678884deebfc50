//! The mutable mesh: applies updates from a control plane and produces snapshots.

use std::net::IpAddr;
use std::sync::Arc;

use crate::compiled::CompiledPolicy;
use crate::endpoints::{Endpoint, Group};
use crate::intern::Interner;
use crate::policy::{Policy, PolicyScope};
use crate::service::Service;
use crate::snapshot::{Mesh, MeshSettings, Namespace, Scoped, scoped};
use crate::text::Text;
use crate::workload::Workload;

/// A resource of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // moved once
pub enum Resource {
    /// A workload, named by its uid.
    Workload(Workload),
    /// A service, named by its key, `namespace/hostname`.
    Service(Service),
    /// A policy, named by its key, `namespace/name`.
    Policy(Policy),
    /// A namespace. Only the mesh file has them; a control plane does not send them.
    Namespace(Namespace),
    /// A stand-in for a resource that cannot be used; see [`Workload::placeholder`] and
    /// [`Policy::placeholder`]. An earlier version of the resource takes precedence.
    Placeholder(Placeholder),
}

/// A stand-in for a resource that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // moved once
pub enum Placeholder {
    /// For a workload or a service.
    Address(Workload),
    /// For a policy.
    Policy(Policy),
}

/// The name of a removed resource. A service and a policy may have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removal<'a> {
    /// A workload by its uid, or a service by its key.
    Address(&'a str),
    /// A policy by its key.
    Policy(&'a str),
}

/// The mesh state of the control thread, which applies updates and hands snapshots to other
/// threads. The cost of an update depends on its size, not on that of the mesh; a snapshot is
/// cheap.
#[derive(Debug, Default)]
pub struct Store {
    mesh: Mesh,
    interner: Interner,
    snapshot: Option<Arc<Mesh>>,
}

impl Store {
    /// Creates an empty store.
    pub fn new(settings: MeshSettings) -> Self {
        let mut store = Self::default();
        store.mesh.set(settings);
        store
    }

    /// Removes resources, then inserts or replaces others. Removals come first because a name may
    /// be reused for another kind of resource. Unknown names and unchanged resources have no
    /// effect.
    pub fn apply<'a>(
        &mut self,
        upserts: impl IntoIterator<Item = Resource>,
        removed: impl IntoIterator<Item = Removal<'a>>,
    ) {
        self.snapshot = None;
        for name in removed {
            match name {
                Removal::Address(name) => {
                    self.mesh.remove_workload(name);
                    self.mesh.remove_service(name);
                }
                Removal::Policy(key) => self.mesh.remove_policy(key),
            }
        }
        for resource in upserts {
            match resource {
                Resource::Workload(mut workload) => {
                    self.interner.workload(&mut workload);
                    self.mesh.put_workload(workload);
                }
                Resource::Service(mut service) => {
                    self.interner.service(&mut service);
                    self.mesh.put_service(service);
                }
                Resource::Policy(policy) => self.mesh.put_policy(policy),
                Resource::Placeholder(Placeholder::Address(workload)) => {
                    let uid = workload.uid.as_str();
                    if self.mesh.workload(uid).is_none() && self.mesh.service(uid).is_none() {
                        self.mesh.put_workload(workload);
                    }
                }
                Resource::Placeholder(Placeholder::Policy(policy)) => {
                    if self.mesh.compiled_policy(&policy.key()).is_none() {
                        self.mesh.put_policy(policy);
                    }
                }
                Resource::Namespace(namespace) => {
                    Arc::make_mut(&mut self.mesh.namespaces)
                        .insert(namespace.name.clone(), Arc::new(namespace));
                }
            }
        }
        self.interner.purge();
    }

    /// The current state.
    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// A snapshot of the current state.
    pub fn snapshot(&mut self) -> Arc<Mesh> {
        self.snapshot
            .get_or_insert_with(|| Arc::new(self.mesh.clone()))
            .clone()
    }
}

impl Mesh {
    /// Builds a mesh.
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
        store.apply(
            namespaces.chain(services).chain(policies).chain(workloads),
            [],
        );
        store.mesh
    }

    fn put_workload(&mut self, workload: Workload) {
        if self
            .workloads
            .get(workload.uid.as_str())
            .is_some_and(|known| **known == workload)
        {
            return;
        }
        self.remove_workload(&workload.uid);
        let workload = Arc::new(workload);
        for address in addresses(&workload) {
            self.by_address
                .update(&address, |all| all.push(workload.clone()));
        }
        self.by_name
            .update(&name(&workload), |all| all.push(workload.clone()));
        for (key, ports) in workload.services.iter() {
            let endpoint = Endpoint {
                workload: workload.clone(),
                ports: ports.clone(),
            };
            self.update_group(key, |group| group.insert(endpoint));
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &str) {
        let Some(workload) = self.workloads.remove(uid) else {
            return;
        };
        for address in addresses(&workload) {
            self.by_address
                .update(&address, |all| all.retain(|w| w.uid != *uid));
        }
        self.by_name
            .update(&name(&workload), |all| all.retain(|w| w.uid != *uid));
        for key in workload.services.keys() {
            self.update_group(key, |group| group.remove(uid));
        }
    }

    fn put_service(&mut self, service: Service) {
        let key = Text::from(service.key());
        match self.service(&key) {
            Some(known) if **known == service => return,
            Some(known) => {
                let known = known.clone();
                self.index_service(&key, &known, false);
            }
            None => {}
        }
        self.remove_workload(&key); // its placeholder
        let service = Arc::new(service);
        self.index_service(&key, &service, true);
        self.update_group(&key, |group| group.set_service(Some(service)));
    }

    fn remove_service(&mut self, key: &str) {
        let Some(service) = self.service(key).cloned() else {
            return;
        };
        let key = Text::from(key);
        self.index_service(&key, &service, false);
        self.update_group(&key, |group| group.set_service(None));
    }

    /// Adds a service to the address and host name indexes, or removes it from them.
    fn index_service(&mut self, key: &Text, service: &Service, present: bool) {
        let change = |keys: &mut crate::one_or_many::OneOrMany<Text>| {
            if present {
                keys.push(key.clone());
            } else {
                keys.retain(|k| k != key);
            }
        };
        self.by_hostname
            .update(&service.hostname.to_ascii_lowercase().into(), change);
        for vip in &service.vips {
            if let Some(address) = vip.address() {
                let key = scoped(vip.network.clone(), address);
                self.by_vip.update(&key, change);
                continue;
            }
            let key = scoped(vip.network.clone(), vip.net);
            self.by_range.update(&key, change);
            let lengths = Arc::make_mut(&mut self.range_lengths);
            let of_length = (vip.net.network().is_ipv6(), vip.net.prefix_len());
            let count = lengths.entry(of_length).or_default();
            *count = if present {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            if *count == 0 {
                lengths.remove(&of_length);
            }
        }
    }

    fn update_group(&mut self, key: &Text, change: impl FnOnce(&mut Group)) {
        let mut group = self.groups.remove(key.as_str()).unwrap_or_default();
        change(Arc::make_mut(&mut group));
        if !group.is_empty() {
            self.groups.insert(key.clone(), group);
        }
    }

    fn put_policy(&mut self, policy: Policy) {
        let key = policy.key();
        if self
            .compiled_policy(&key)
            .is_some_and(|known| *known.policy == policy)
        {
            return;
        }
        self.remove_policy(&key);
        let compiled = Arc::new(CompiledPolicy::new(policy));
        self.update_scope(&compiled, |all| {
            let at = all.partition_point(|p| p.key < compiled.key);
            all.insert(at, compiled.clone());
        });
        self.policies.insert(compiled.key.clone(), compiled);
    }

    fn remove_policy(&mut self, key: &str) {
        let Some(compiled) = self.policies.remove(key) else {
            return;
        };
        self.update_scope(&compiled, |all| all.retain(|p| p.key != compiled.key));
    }

    /// Updates the list of policies with the same scope as this one, if there is such a list.
    fn update_scope(
        &mut self,
        policy: &CompiledPolicy,
        change: impl FnOnce(&mut Vec<Arc<CompiledPolicy>>),
    ) {
        match policy.policy.scope {
            PolicyScope::Global => change(Arc::make_mut(&mut self.global_policies)),
            PolicyScope::Namespace => {
                let namespace = &policy.policy.namespace;
                let mut all = self
                    .namespace_policies
                    .remove(namespace.as_str())
                    .unwrap_or_default();
                change(Arc::make_mut(&mut all));
                if !all.is_empty() {
                    self.namespace_policies.insert(namespace.clone(), all);
                }
            }
            PolicyScope::WorkloadSelector => {}
        }
    }
}

/// The addresses that identify a workload. Pods in the node's network namespace have none, as they
/// share the node's address.
fn addresses(workload: &Workload) -> impl Iterator<Item = Scoped<Text, IpAddr>> + '_ {
    let own = if workload.host_network {
        &[]
    } else {
        workload.workload_ips.as_slice()
    };
    own.iter().map(|ip| scoped(workload.network.clone(), *ip))
}

fn name(workload: &Workload) -> Scoped<Text, Text> {
    scoped(workload.namespace.clone(), workload.name.clone())
}
