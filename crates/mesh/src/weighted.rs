//! A set of workloads for weighted random choice. Like those of [`Table`](crate::table::Table),
//! clones share unchanged nodes.

use std::sync::Arc;

use crate::table::hash_of;
use crate::text::Text;
use crate::workload::Workload;

const BITS: u32 = 4;
const FAN_OUT: usize = 1 << BITS;
const MAX_LEAF_LEN: usize = 32;
const MAX_DEPTH: u32 = 12;

/// A set of workloads, keyed by uid. Choosing, inserting and removing a workload are O(log n).
#[derive(Debug, Clone, Default)]
pub(crate) struct WeightedSet(Option<Arc<WeightedNode>>);

#[derive(Debug, Clone)]
struct WeightedNode {
    weight: u64,
    len: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Leaf(Vec<Arc<Workload>>),
    Branch([WeightedSet; FAN_OUT]),
}

fn weight_of(workload: &Workload) -> u64 {
    workload.capacity.into()
}

fn branch_at(hash: u64, depth: u32) -> usize {
    (hash >> (depth * BITS)) as usize % FAN_OUT
}

impl WeightedSet {
    /// The sum of all weights.
    pub(crate) fn weight(&self) -> u64 {
        self.0.as_ref().map_or(0, |n| n.weight)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |n| n.len)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The workload at a point between 0 and the sum of all weights.
    pub(crate) fn at(&self, mut point: u64) -> Option<&Arc<Workload>> {
        let mut set = self;
        loop {
            match &set.0.as_deref()?.kind {
                Kind::Leaf(workloads) => {
                    return workloads.iter().find(|w| {
                        let here = point < weight_of(w);
                        point = point.saturating_sub(weight_of(w));
                        here
                    });
                }
                Kind::Branch(nodes) => {
                    set = nodes.iter().find(|n| {
                        let here = point < n.weight();
                        if !here {
                            point -= n.weight();
                        }
                        here
                    })?;
                }
            }
        }
    }

    /// Inserts a workload, replacing one with the same uid.
    pub(crate) fn insert(&mut self, workload: Arc<Workload>) {
        let hash = hash_of(workload.uid.as_str());
        self.insert_at(workload, hash, 0);
    }

    /// Removes the workload with this uid.
    pub(crate) fn remove(&mut self, uid: &Text) {
        self.remove_at(uid, hash_of(uid.as_str()), 0);
    }

    /// All workloads, in no particular order.
    pub(crate) fn iter(&self) -> Box<dyn Iterator<Item = &Arc<Workload>> + '_> {
        match self.0.as_deref().map(|n| &n.kind) {
            None => Box::new(std::iter::empty()),
            Some(Kind::Leaf(workloads)) => Box::new(workloads.iter()),
            Some(Kind::Branch(nodes)) => Box::new(nodes.iter().flat_map(Self::iter)),
        }
    }

    fn insert_at(&mut self, workload: Arc<Workload>, hash: u64, depth: u32) {
        let empty = || {
            Arc::new(WeightedNode {
                weight: 0,
                len: 0,
                kind: Kind::Leaf(Vec::new()),
            })
        };
        let node = Arc::make_mut(self.0.get_or_insert_with(empty));
        match &mut node.kind {
            Kind::Leaf(workloads) => {
                match workloads.iter_mut().find(|w| w.uid == workload.uid) {
                    Some(old) => *old = workload,
                    None => workloads.push(workload),
                }
                if workloads.len() > MAX_LEAF_LEN && depth < MAX_DEPTH {
                    let mut nodes = [const { Self(None) }; FAN_OUT];
                    for workload in workloads.drain(..) {
                        let hash = hash_of(workload.uid.as_str());
                        nodes[branch_at(hash, depth)].insert_at(workload, hash, depth + 1);
                    }
                    node.kind = Kind::Branch(nodes);
                }
            }
            Kind::Branch(nodes) => {
                nodes[branch_at(hash, depth)].insert_at(workload, hash, depth + 1)
            }
        }
        node.recount();
    }

    fn remove_at(&mut self, uid: &Text, hash: u64, depth: u32) {
        let Some(node) = &mut self.0 else { return };
        let node = Arc::make_mut(node);
        match &mut node.kind {
            Kind::Leaf(workloads) => workloads.retain(|w| w.uid != *uid),
            Kind::Branch(nodes) => nodes[branch_at(hash, depth)].remove_at(uid, hash, depth + 1),
        }
        node.recount();
        if node.len == 0 {
            self.0 = None;
        }
    }
}

impl WeightedNode {
    /// Recomputes weight and length from the direct children.
    fn recount(&mut self) {
        (self.weight, self.len) = match &self.kind {
            Kind::Leaf(workloads) => (
                workloads.iter().map(|w| weight_of(w)).sum(),
                workloads.len(),
            ),
            Kind::Branch(nodes) => (
                nodes.iter().map(WeightedSet::weight).sum(),
                nodes.iter().map(WeightedSet::len).sum(),
            ),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn each_workload_owns_as_many_points_as_its_weight(
            steps in prop::collection::vec(
                (0u16..150, prop::option::weighted(0.7, 0u32..4)),
                0..500,
            ),
        ) {
            let (mut set, mut map) = (WeightedSet::default(), BTreeMap::new());
            for (n, capacity) in steps {
                let uid = Text::from(format!("uid-{n}"));
                match capacity {
                    Some(capacity) => {
                        set.insert(Arc::new(Workload {
                            uid: uid.clone(),
                            capacity,
                            ..Workload::default()
                        }));
                        map.insert(uid, u64::from(capacity));
                    }
                    None => {
                        set.remove(&uid);
                        map.remove(&uid);
                    }
                }
            }
            prop_assert_eq!(set.len(), map.len());
            prop_assert_eq!(set.iter().count(), map.len());
            prop_assert_eq!(set.weight(), map.values().sum::<u64>());
            let mut points = BTreeMap::new();
            for point in 0..set.weight() {
                *points.entry(set.at(point).unwrap().uid.clone()).or_insert(0u64) += 1;
            }
            map.retain(|_, capacity| *capacity > 0);
            prop_assert_eq!(points, map);
            prop_assert!(set.at(set.weight()).is_none());
        }
    }
}
