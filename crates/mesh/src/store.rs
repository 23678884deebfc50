//! The mesh as it changes: what a control plane says goes in, snapshots come out.

use std::sync::Arc;

use crate::compiled::Compiled;
use crate::endpoints::{Endpoint, Group};
use crate::gateway::NetworkAddress;
use crate::intern::Interner;
use crate::policy::{Policy, PolicyScope};
use crate::service::Service;
use crate::snapshot::{Mesh, Name, Namespace, Range};
use crate::text::Text;
use crate::workload::Workload;

/// Something that a mesh consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // moved once
pub enum Resource {
    /// Named by its uid.
    Workload(Workload),
    /// Named by its key, `namespace/hostname`.
    Service(Service),
    /// Named by its key, `namespace/name`.
    Policy(Policy),
    /// Named by its name. A control plane says nothing of namespaces; the mesh file does.
    Namespace(Namespace),
}

/// The name of something that is gone, as a control plane says it. A service and a policy may have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removed<'a> {
    /// A workload by its uid, or a service by its key.
    Address(&'a str),
    /// A policy by its key.
    Policy(&'a str),
}

/// What the control thread keeps: it applies updates, and gives snapshots to all others. An update costs what it changes,
/// and a snapshot next to nothing, however large the mesh is.
#[derive(Debug, Default)]
pub struct Store {
    mesh: Mesh,
    interner: Interner,
    snapshot: Option<Arc<Mesh>>,
}

impl Store {
    /// An empty one, whose snapshots prefer the services of this namespace, as [`Mesh::prefer`] says.
    pub fn preferring(namespace: Option<&str>) -> Self {
        let mut store = Self::default();
        store.mesh.prefer(namespace);
        store
    }

    /// Puts resources in, each in place of an earlier one of its name, and takes others out: what is gone first, for a name
    /// may come back as something else. Names that are unknown, and resources that are known as they are, change nothing.
    pub fn apply<'a>(
        &mut self,
        upserts: impl IntoIterator<Item = Resource>,
        removed: impl IntoIterator<Item = Removed<'a>>,
    ) {
        self.snapshot = None;
        for name in removed {
            match name {
                Removed::Address(name) => {
                    self.mesh.remove_workload(name);
                    self.mesh.remove_service(name);
                }
                Removed::Policy(key) => self.mesh.remove_policy(key),
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
                Resource::Namespace(namespace) => {
                    Arc::make_mut(&mut self.mesh.namespaces).insert(namespace.name.clone(), Arc::new(namespace));
                }
            }
        }
        self.interner.tidy();
    }

    /// The mesh as it is now.
    pub fn snapshot(&mut self) -> Arc<Mesh> {
        self.snapshot.get_or_insert_with(|| Arc::new(self.mesh.clone())).clone()
    }

    pub(crate) fn into_mesh(self) -> Mesh {
        self.mesh
    }
}

impl Mesh {
    fn put_workload(&mut self, workload: Workload) {
        if self.workloads.get(workload.uid.as_str()).is_some_and(|known| **known == workload) {
            return;
        }
        self.remove_workload(&workload.uid);
        let workload = Arc::new(workload);
        for address in addresses(&workload) {
            self.by_address.update(&address, |all| all.push(workload.clone()));
        }
        self.by_name.update(&name(&workload), |all| all.push(workload.clone()));
        for (key, ports) in workload.services.iter() {
            let endpoint = Endpoint { workload: workload.clone(), ports: ports.clone() };
            self.change_group(key, |group| group.insert(endpoint));
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &str) {
        let Some(workload) = self.workloads.remove(uid) else { return };
        for address in addresses(&workload) {
            self.by_address.update(&address, |all| all.retain(|w| w.uid != *uid));
        }
        self.by_name.update(&name(&workload), |all| all.retain(|w| w.uid != *uid));
        for key in workload.services.keys() {
            self.change_group(key, |group| group.remove(uid));
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
        let service = Arc::new(service);
        self.index_service(&key, &service, true);
        self.change_group(&key, |group| group.set_service(Some(service)));
    }

    fn remove_service(&mut self, key: &str) {
        let Some(service) = self.service(key).cloned() else { return };
        let key = Text::from(key);
        self.index_service(&key, &service, false);
        self.change_group(&key, |group| group.set_service(None));
    }

    /// Has a service found by its addresses and its name, or not any more.
    fn index_service(&mut self, key: &Text, service: &Service, found: bool) {
        let change = |keys: &mut crate::few::Few<Text>| match found {
            true => keys.push(key.clone()),
            false => keys.retain(|k| k != key),
        };
        self.by_hostname.update(&service.hostname.to_ascii_lowercase().into(), change);
        for vip in &service.vips {
            if let Some(address) = vip.address() {
                self.by_vip.update(&NetworkAddress { network: vip.network.clone(), address }, change);
                continue;
            }
            self.by_range.update(&Range { network: vip.network.clone(), net: vip.net }, change);
            let lengths = Arc::make_mut(&mut self.range_lengths);
            let of_length = (vip.net.network().is_ipv6(), vip.net.prefix_len());
            let count = lengths.entry(of_length).or_default();
            *count = if found { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                lengths.remove(&of_length);
            }
        }
    }

    fn change_group(&mut self, key: &Text, change: impl FnOnce(&mut Group)) {
        let mut group = self.groups.remove(key.as_str()).unwrap_or_default();
        change(Arc::make_mut(&mut group));
        if !group.is_empty() {
            self.groups.insert(key.clone(), group);
        }
    }

    fn put_policy(&mut self, policy: Policy) {
        let key = policy.key();
        if self.compiled_policy(&key).is_some_and(|known| *known.policy == policy) {
            return;
        }
        self.remove_policy(&key);
        self.policy_epoch += 1;
        let compiled = Arc::new(Compiled::new(policy));
        self.change_scope(&compiled, |all| {
            let at = all.partition_point(|p| p.key < compiled.key);
            all.insert(at, compiled.clone());
        });
        self.policies.insert(compiled.key.clone(), compiled);
    }

    fn remove_policy(&mut self, key: &str) {
        let Some(compiled) = self.policies.remove(key) else { return };
        self.policy_epoch += 1;
        self.change_scope(&compiled, |all| all.retain(|p| p.key != compiled.key));
    }

    /// Changes the list of all policies whose scope is that of this one, if there is such a list.
    fn change_scope(&mut self, policy: &Compiled, change: impl FnOnce(&mut Vec<Arc<Compiled>>)) {
        match policy.policy.scope {
            PolicyScope::Global => change(Arc::make_mut(&mut self.global_policies)),
            PolicyScope::Namespace => {
                let namespace = &policy.policy.namespace;
                let mut all = self.namespace_policies.remove(namespace.as_str()).unwrap_or_default();
                change(Arc::make_mut(&mut all));
                if !all.is_empty() {
                    self.namespace_policies.insert(namespace.clone(), all);
                }
            }
            PolicyScope::WorkloadSelector => {}
        }
    }
}

/// Pods in the node's network namespace share its address, so the address does not tell which one is meant.
fn addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> + '_ {
    let own = if workload.host_network { &[] } else { workload.workload_ips.as_slice() };
    own.iter().map(|ip| NetworkAddress { network: workload.network.clone(), address: *ip })
}

fn name(workload: &Workload) -> Name {
    Name { namespace: workload.namespace.clone(), name: workload.name.clone() }
}
