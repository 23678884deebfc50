//! A persistent hash table: clones share unchanged nodes. Cloning is O(1); a change copies one
//! small leaf and the few nodes above it, regardless of the table's size.
//!
//! It is a trie with six bits per level, whose leaves are hash tables of up to [`MAX_LEAF_LEN`]
//! entries. A small table is a single hash table, and a large one takes little more memory than
//! one.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, LazyLock};

use hashbrown::{Equivalent, HashTable};

const BITS: u32 = 6;
const FAN_OUT: usize = 1 << BITS;
const MAX_LEAF_LEN: usize = 128;
/// hashbrown uses the lowest bits for the slot in a leaf and the highest for tags; the trie uses
/// the bits in between.
const FIRST_BRANCH_BIT: u32 = 24;
const MAX_DEPTH: u32 = 4;

/// Seeded at random per process, so that chosen names cannot force collisions.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

pub(crate) fn hash_of(key: &(impl Hash + ?Sized)) -> u64 {
    HASHER.hash_one(key)
}

#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    root: TableNode<K, V>,
    len: usize,
}

#[derive(Debug)]
enum TableNode<K, V> {
    Leaf(Arc<HashTable<(K, V)>>),
    Branch(Arc<[TableNode<K, V>]>),
}

impl<K, V> Clone for TableNode<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(leaf.clone()),
            Self::Branch(nodes) => Self::Branch(nodes.clone()),
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            root: TableNode::Leaf(Arc::default()),
            len: 0,
        }
    }
}

fn branch_at(hash: u64, depth: u32) -> usize {
    (hash >> (FIRST_BRANCH_BIT + depth * BITS)) as usize % FAN_OUT
}

impl<K: Hash + Eq + Clone, V: Clone> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The value of a key. The key may have another type with the same hash as the stored one.
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        let hash = hash_of(key);
        let mut node = &self.root;
        let mut depth = 0;
        loop {
            match node {
                TableNode::Leaf(leaf) => {
                    return leaf.find(hash, |(k, _)| key.equivalent(k)).map(|(_, v)| v);
                }
                TableNode::Branch(nodes) => {
                    node = &nodes[branch_at(hash, depth)];
                    depth += 1;
                }
            }
        }
    }

    /// Inserts a value and returns the previous one.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.root.insert(hash_of(&key), 0, key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes and returns a value.
    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        self.get(key)?; // do not copy nodes for an absent key
        self.len -= 1;
        self.root.remove(hash_of(key), 0, key)
    }

    /// Changes the value of a key in place. An absent value starts as the default; a value that
    /// becomes the default is removed.
    pub(crate) fn update(&mut self, key: &K, change: impl FnOnce(&mut V))
    where
        V: Default + PartialEq,
    {
        let mut value = self.remove(key).unwrap_or_default();
        change(&mut value);
        if value != V::default() {
            self.insert(key.clone(), value);
        }
    }

    /// All entries, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut pending = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                match pending.pop()? {
                    TableNode::Leaf(leaf) => return Some(leaf),
                    TableNode::Branch(nodes) => pending.extend(nodes.iter()),
                }
            }
        })
        .flat_map(|leaf| leaf.iter().map(|(k, v)| (k, v)))
    }

    /// All values, ordered by key.
    pub(crate) fn sorted(&self) -> Vec<&V>
    where
        K: Ord,
    {
        let mut entries: Vec<(&K, &V)> = self.iter().collect();
        entries.sort_unstable_by_key(|(k, _)| *k);
        entries.into_iter().map(|(_, v)| v).collect()
    }
}

/// Both copy the shared nodes on their path.
impl<K: Hash + Eq + Clone, V: Clone> TableNode<K, V> {
    fn insert(&mut self, hash: u64, depth: u32, key: K, value: V) -> Option<V> {
        let leaf = match self {
            Self::Leaf(leaf) => Arc::make_mut(leaf),
            Self::Branch(nodes) => {
                let node = &mut Arc::make_mut(nodes)[branch_at(hash, depth)];
                return node.insert(hash, depth + 1, key, value);
            }
        };
        if let Some((_, old)) = leaf.find_mut(hash, |(k, _)| *k == key) {
            return Some(std::mem::replace(old, value));
        }
        leaf.insert_unique(hash, (key, value), |(k, _)| hash_of(k));
        if leaf.len() > MAX_LEAF_LEN && depth < MAX_DEPTH {
            *self = split(std::mem::take(leaf), depth);
        }
        None
    }

    fn remove<Q: Equivalent<K> + ?Sized>(&mut self, hash: u64, depth: u32, key: &Q) -> Option<V> {
        let leaf = match self {
            Self::Leaf(leaf) => Arc::make_mut(leaf),
            Self::Branch(nodes) => {
                let node = &mut Arc::make_mut(nodes)[branch_at(hash, depth)];
                return node.remove(hash, depth + 1, key);
            }
        };
        let entry = leaf.find_entry(hash, |(k, _)| key.equivalent(k)).ok()?;
        let ((_, value), _) = entry.remove();
        Some(value)
    }
}

fn split<K: Hash, V>(full: HashTable<(K, V)>, depth: u32) -> TableNode<K, V> {
    let mut leaves: Vec<HashTable<(K, V)>> = (0..FAN_OUT).map(|_| HashTable::new()).collect();
    for (key, value) in full {
        let hash = hash_of(&key);
        leaves[branch_at(hash, depth)].insert_unique(hash, (key, value), |(k, _)| hash_of(k));
    }
    TableNode::Branch(
        leaves
            .into_iter()
            .map(|leaf| TableNode::Leaf(Arc::new(leaf)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn table_equals_map_and_snapshots_stay_unchanged(
            steps in prop::collection::vec((0u16..400, any::<bool>()), 0..1500),
            at in 0usize..1500,
        ) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            let mut snapshot = None;
            for (step, (key, add)) in steps.into_iter().enumerate() {
                if step == at {
                    snapshot = Some((table.clone(), map.clone()));
                }
                let name = Text::from(format!("key-{key}"));
                let (a, b) = if add {
                    (table.insert(name.clone(), step), map.insert(name, step))
                } else {
                    (table.remove(name.as_str()), map.remove(&name))
                };
                prop_assert_eq!(a, b);
            }
            for (table, map) in snapshot.into_iter().chain([(table, map)]) {
                prop_assert_eq!(table.len(), map.len());
                prop_assert!(table.sorted().into_iter().eq(map.values()));
                prop_assert!(map.iter().all(|(k, v)| table.get(k.as_str()) == Some(v)));
            }
        }
    }
}
