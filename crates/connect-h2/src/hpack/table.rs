//! The table of a decoder: the static entries, and the dynamic ones of bounded size.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::static_table::ENTRIES;

/// What an entry counts, in bytes.
pub(super) fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + 32
}

/// The table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Table {
    /// Names and values; the latest is the first.
    dynamic: VecDeque<(Vec<u8>, Vec<u8>)>,
    /// The size of the dynamic entries, in bytes.
    size: usize,
    /// The largest size, in bytes.
    max_size: usize,
}

impl Table {
    pub(super) fn new(max_size: usize) -> Self {
        Self {
            dynamic: VecDeque::new(),
            size: 0,
            max_size,
        }
    }

    /// The entry with this index, from 1.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = ENTRIES.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) = self.dynamic.get(index - ENTRIES.len())?;
        Some((name, value))
    }

    /// Inserts an entry, and removes the oldest ones that it leaves no space for. One that is
    /// larger than the table empties it.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = entry_size(name, value);
        self.shrink_to(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.dynamic.push_front((name.to_vec(), value.to_vec()));
        }
    }

    /// Changes the largest size.
    pub(super) fn resize(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.shrink_to(max_size);
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size {
            let Some((name, value)) = self.dynamic.pop_back() else {
                return;
            };
            self.size -= entry_size(&name, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_make_space() {
        let mut table = Table::new(100);
        table.insert(b"a", b"1");
        table.insert(b"b", b"2");
        assert_eq!(table.get(62), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.get(63), Some((&b"a"[..], &b"1"[..])));
        table.insert(b"c", b"3");
        assert_eq!(table.get(63), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.get(64), None);
        table.resize(34);
        assert_eq!((table.get(62).is_some(), table.get(63)), (true, None));
        table.insert(&[b'd'; 3], b"");
        assert_eq!(table.get(62), None, "too large for the table");
        assert_eq!((table.size, table.get(0)), (0, None));
    }
}
