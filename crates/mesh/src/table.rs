//! A hash table whose clones share what is equal: a clone costs nothing, and a change costs one small leaf and the few
//! nodes above it, however much there is.
//!
//! It is a trie of six bits a level whose leaves are hash tables of up to [`LARGEST_LEAF`] entries, so that small tables
//! are one hash table, and large ones take little more memory than one.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, LazyLock};

use hashbrown::{Equivalent, HashTable};

const BITS: u32 = 6;
const FAN_OUT: usize = 1 << BITS;
const LARGEST_LEAF: usize = 128;
/// The lowest bits choose a slot within a leaf, and the highest are its tags: the trie takes those between.
const FIRST_BIT: u32 = 24;
const DEEPEST: u32 = 4;

/// Random for each process, so that nobody can choose names that collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

pub(crate) fn hash_of(key: &(impl Hash + ?Sized)) -> u64 {
    HASHER.hash_one(key)
}

#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    root: Node<K, V>,
    len: usize,
}

#[derive(Debug)]
enum Node<K, V> {
    Leaf(Arc<HashTable<(K, V)>>),
    Branch(Arc<[Node<K, V>]>),
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(leaf.clone()),
            Self::Branch(nodes) => Self::Branch(nodes.clone()),
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::default()), len: 0 }
    }
}

fn branch_at(hash: u64, depth: u32) -> usize {
    (hash >> (FIRST_BIT + depth * BITS)) as usize % FAN_OUT
}

impl<K: Hash + Eq + Clone, V: Clone> Table<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A value. The key may be anything that hashes as the stored one does.
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        let hash = hash_of(key);
        let mut node = &self.root;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.find(hash, |(k, _)| key.equivalent(k)).map(|(_, v)| v),
                Node::Branch(nodes) => {
                    node = &nodes[branch_at(hash, depth)];
                    depth += 1;
                }
            }
        }
    }

    /// Puts a value in, and gives back what was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = hash_of(&key);
        let (leaf, depth) = leaf_mut(&mut self.root, hash);
        if let Some((_, old)) = leaf.find_mut(hash, |(k, _)| *k == key) {
            return Some(std::mem::replace(old, value));
        }
        leaf.insert_unique(hash, (key, value), |(k, _)| hash_of(k));
        self.len += 1;
        if leaf.len() > LARGEST_LEAF && depth < DEEPEST {
            let full = std::mem::take(leaf);
            *node_mut(&mut self.root, hash, depth) = split(full, depth);
        }
        None
    }

    /// Takes a value out.
    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        self.get(key)?; // a table that does not have it is not copied
        let hash = hash_of(key);
        let (leaf, _) = leaf_mut(&mut self.root, hash);
        let (_, value) = leaf.find_entry(hash, |(k, _)| key.equivalent(k)).ok()?.remove().0;
        self.len -= 1;
        Some(value)
    }

    /// Changes the value of a key, which begins as the default and is taken out when it is the default again.
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

    /// All entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut waiting = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                match waiting.pop()? {
                    Node::Leaf(leaf) => return Some(leaf),
                    Node::Branch(nodes) => waiting.extend(nodes.iter()),
                }
            }
        })
        .flat_map(|leaf| leaf.iter().map(|(k, v)| (k, v)))
    }

    /// All values, by the order of their keys.
    pub(crate) fn sorted(&self) -> Vec<&V>
    where
        K: Ord,
    {
        let mut entries: Vec<(&K, &V)> = self.iter().collect();
        entries.sort_unstable_by_key(|(k, _)| *k);
        entries.into_iter().map(|(_, v)| v).collect()
    }
}

/// The leaf of a hash, and how deep it is; whatever is shared on the way there is copied.
fn leaf_mut<K: Clone, V: Clone>(root: &mut Node<K, V>, hash: u64) -> (&mut HashTable<(K, V)>, u32) {
    let mut node = root;
    let mut depth = 0;
    loop {
        match node {
            Node::Leaf(leaf) => return (Arc::make_mut(leaf), depth),
            Node::Branch(nodes) => {
                node = &mut Arc::make_mut(nodes)[branch_at(hash, depth)];
                depth += 1;
            }
        }
    }
}

fn node_mut<K, V>(root: &mut Node<K, V>, hash: u64, depth: u32) -> &mut Node<K, V> {
    let mut node = root;
    for at in 0..depth {
        match node {
            Node::Branch(nodes) => node = &mut Arc::make_mut(nodes)[branch_at(hash, at)],
            Node::Leaf(_) => unreachable!("a leaf was found below"),
        }
    }
    node
}

fn split<K: Hash, V>(full: HashTable<(K, V)>, depth: u32) -> Node<K, V> {
    let mut leaves: Vec<HashTable<(K, V)>> = (0..FAN_OUT).map(|_| HashTable::new()).collect();
    for (key, value) in full {
        let hash = hash_of(&key);
        leaves[branch_at(hash, depth)].insert_unique(hash, (key, value), |(k, _)| hash_of(k));
    }
    Node::Branch(leaves.into_iter().map(|leaf| Node::Leaf(Arc::new(leaf))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_what_a_map_is_and_snapshots_stay(
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
                let (a, b) = match add {
                    true => (table.insert(name.clone(), step), map.insert(name, step)),
                    false => (table.remove(name.as_str()), map.remove(&name)),
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
