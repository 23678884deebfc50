//! A map that is limited in entries and bytes, of which the least recently used are removed first.
//! No I/O.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use telemetry::Metrics;

/// Maximum size of the caches of all pods, in bytes.
const NODE_BYTES: usize = 16 << 20;
/// Memory of an entry besides its key and its value, in bytes; an estimate.
const ENTRY: usize = 200;

/// The memory of the caches of all pods. A pod's own cache is limited to a small part of it.
#[derive(Debug)]
pub struct CacheBudget {
    limit: usize,
    used: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl CacheBudget {
    /// Creates the budget of a node, which reports to these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self::limited(NODE_BYTES, metrics)
    }

    fn limited(limit: usize, metrics: Arc<Metrics>) -> Self {
        let used = AtomicUsize::default();
        Self {
            limit,
            used,
            metrics,
        }
    }

    /// Reserves memory for an entry, if there is enough.
    fn reserve(&self, size: usize) -> bool {
        let add = |used: usize| Some(used + size).filter(|sum| *sum <= self.limit);
        let relaxed = Ordering::Relaxed;
        let reserved = self.used.fetch_update(relaxed, relaxed, add).is_ok();
        if reserved {
            self.metrics.dns_cache_entries.inc();
            self.metrics.dns_cache_bytes.inc_by(signed(size));
        }
        reserved
    }

    /// Returns the memory of an entry.
    fn release(&self, size: usize) {
        self.used.fetch_sub(size, Ordering::Relaxed);
        self.metrics.dns_cache_entries.dec();
        self.metrics.dns_cache_bytes.dec_by(signed(size));
    }
}

/// A size as a gauge counts it.
fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Limits on the cache of one pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheLimits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// A map within the limits of its pod and the budget of the node.
#[derive(Debug)]
pub(super) struct BoundedMap<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Sum of the sizes of all entries.
    bytes: usize,
    /// Number of uses so far.
    uses: u64,
    limits: CacheLimits,
    budget: Arc<CacheBudget>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    size: usize,
    /// The number of its last use.
    last_use: u64,
}

impl<K: Clone + Eq + Hash, V> BoundedMap<K, V> {
    pub(super) fn new(limits: CacheLimits, budget: Arc<CacheBudget>) -> Self {
        Self {
            entries: HashMap::new(),
            bytes: 0,
            uses: 0,
            limits,
            budget,
        }
    }

    /// Finds a value, which counts as a use.
    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.uses;
        Some(&entry.value)
    }

    /// Removes a value.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.size;
        self.budget.release(entry.size);
        Some(entry.value)
    }

    /// Adds or replaces a value that is `size` bytes long with its key. Others are removed to make
    /// room for it; it is not added if that does not suffice.
    pub(super) fn insert(&mut self, key: K, value: V, size: usize) {
        let _ = self.remove(&key);
        let size = size.saturating_add(ENTRY);
        if size > self.limits.bytes {
            return;
        }
        while self.entries.len() >= self.limits.entries
            || self.bytes + size > self.limits.bytes
            || !self.budget.reserve(size)
        {
            if !self.remove_oldest() {
                return;
            }
        }
        self.uses += 1;
        self.bytes += size;
        let last_use = self.uses;
        let entry = Entry {
            value,
            size,
            last_use,
        };
        self.entries.insert(key, entry);
    }

    /// Removes the value that was not used for the longest time; false if there is none.
    fn remove_oldest(&mut self) -> bool {
        let oldest = self.entries.iter().min_by_key(|(_, e)| e.last_use);
        let Some(key) = oldest.map(|(key, _)| key.clone()) else {
            return false;
        };
        self.remove(&key).is_some()
    }
}

impl<K, V> Drop for BoundedMap<K, V> {
    fn drop(&mut self) {
        for entry in self.entries.values() {
            self.budget.release(entry.size);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A budget of this many bytes.
    pub(in super::super) fn budget(limit: usize) -> Arc<CacheBudget> {
        let metrics = Arc::new(Metrics::new(Default::default(), Default::default()));
        Arc::new(CacheBudget::limited(limit, metrics))
    }

    fn used(budget: &CacheBudget) -> usize {
        let used = budget.used.load(Ordering::Relaxed);
        assert_eq!(budget.metrics.dns_cache_bytes.get(), signed(used));
        used
    }

    #[test]
    fn the_least_recently_used_entry_is_removed_first() {
        let limits = CacheLimits {
            entries: 2,
            bytes: usize::MAX,
        };
        let mut map = BoundedMap::new(limits, budget(usize::MAX));
        map.insert("a", 1, 1);
        map.insert("b", 2, 1);
        assert_eq!(map.get(&"a"), Some(&1));
        map.insert("c", 3, 1);
        assert_eq!(map.get(&"b"), None);
        assert_eq!((map.get(&"a").copied(), map.get(&"c")), (Some(1), Some(&3)));
    }

    #[test]
    fn an_entry_without_room_is_not_added_and_ends_the_earlier_one() {
        let limits = CacheLimits {
            entries: 9,
            bytes: 1000,
        };
        let budget = budget(1500);
        let mut first = BoundedMap::new(limits, budget.clone());
        first.insert("a", 1, 1000 - ENTRY);
        assert_eq!((first.get(&"a"), used(&budget)), (Some(&1), 1000));
        first.insert("a", 2, 1001 - ENTRY);
        assert_eq!((first.get(&"a"), used(&budget)), (None, 0), "too large");
        first.insert("a", 3, 1000 - ENTRY);
        let mut second = BoundedMap::new(limits, budget.clone());
        second.insert("a", 4, 1000 - ENTRY);
        assert_eq!(second.get(&"a"), None, "another pod has the memory");
        assert_eq!(first.get(&"a"), Some(&3), "and keeps it");
        drop(first);
        assert_eq!(used(&budget), 0);
        second.insert("a", 5, 1000 - ENTRY);
        assert_eq!(second.get(&"a"), Some(&5));
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded(
            changes in proptest::collection::vec((0..2_usize, 0..12_u8, 0..900_usize), 0..200),
        ) {
            let limits = CacheLimits { entries: 5, bytes: 2000 };
            let budget = budget(3000);
            let mut maps = [(); 2].map(|()| BoundedMap::new(limits, budget.clone()));
            for (map, key, size) in changes {
                match size {
                    0..100 => { let _ = maps[map].remove(&key); }
                    100..200 => { let _ = maps[map].get(&key); }
                    _ => maps[map].insert(key, (), size),
                }
                for map in &maps {
                    let sum: usize = map.entries.values().map(|e| e.size).sum();
                    prop_assert_eq!(sum, map.bytes);
                    prop_assert!(map.entries.len() <= 5 && sum <= 2000);
                }
                prop_assert_eq!(used(&budget), maps[0].bytes + maps[1].bytes);
                prop_assert!(used(&budget) <= 3000);
            }
            drop(maps);
            prop_assert_eq!(used(&budget), 0);
            prop_assert_eq!(budget.metrics.dns_cache_entries.get(), 0);
        }
    }
}
