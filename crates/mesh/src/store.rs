//! The mesh as it changes: what a control plane says goes in, snapshots come out.

use std::sync::Arc;

use crate::policy::Policy;
use crate::service::Service;
use crate::snapshot::{Mesh, Namespace};
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

/// What the control thread keeps: it applies updates, and gives snapshots to all others.
#[derive(Debug, Default)]
pub struct Store {
    mesh: Mesh,
}

impl Store {
    /// Puts resources in, each in place of an earlier one of its name, and takes others out: what is gone first, for a name
    /// may come back as something else. Names that are unknown are nothing.
    pub fn apply<'a>(
        &mut self,
        upserts: impl IntoIterator<Item = Resource>,
        removed: impl IntoIterator<Item = Removed<'a>>,
    ) {
        let (mut workloads, mut services, mut policies, mut namespaces) = self.mesh.clone().into_parts();
        for name in removed {
            match name {
                Removed::Address(name) => {
                    workloads.remove(name);
                    services.remove(name);
                }
                Removed::Policy(name) => {
                    policies.remove(name);
                }
            }
        }
        for resource in upserts {
            match resource {
                Resource::Workload(w) => {
                    workloads.insert(w.uid.clone(), Arc::new(w));
                }
                Resource::Service(s) => {
                    services.insert(Text::from(s.key()), Arc::new(s));
                }
                Resource::Policy(p) => {
                    policies.insert(Text::from(p.key()), Arc::new(p));
                }
                Resource::Namespace(n) => {
                    namespaces.insert(n.name.clone(), Arc::new(n));
                }
            }
        }
        self.mesh = Mesh::from_parts(workloads, services, policies, namespaces);
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> Arc<Mesh> {
        Arc::new(self.mesh.clone())
    }
}
