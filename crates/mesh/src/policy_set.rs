//! The policies that apply to a workload, as a value that is compared without evaluating them.

use std::sync::Arc;

use crate::compiled::CompiledPolicy;
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// The policies that apply to a workload. Two are equal if they consist of the same versions of the
/// same policies. The comparison may miss that two sets are equal, but not that they differ.
#[derive(Debug, Clone)]
pub struct PolicySet {
    global: Arc<Vec<Arc<CompiledPolicy>>>,
    of_namespace: Option<Arc<Vec<Arc<CompiledPolicy>>>>,
    /// Those that the workload refers to, in order; `None` for unknown ones.
    selected: Vec<Option<Arc<CompiledPolicy>>>,
}

impl Mesh {
    /// The policies that apply to a workload.
    pub fn policy_set(&self, workload: &Workload) -> PolicySet {
        let of_namespace = self.namespace_policies.get(workload.namespace.as_str());
        let selected = workload.authorization_policies.iter();
        PolicySet {
            global: self.global_policies.clone(),
            of_namespace: of_namespace.cloned(),
            selected: selected
                .map(|key| self.compiled_policy(key).cloned())
                .collect(),
        }
    }
}

impl PartialEq for PolicySet {
    /// Compares pointers: what a set refers to is never changed in place.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.global, &other.global)
            && are_same(&self.of_namespace, &other.of_namespace)
            && self.selected.len() == other.selected.len()
            && self
                .selected
                .iter()
                .zip(&other.selected)
                .all(|(a, b)| are_same(a, b))
    }
}

fn are_same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}
