//! The connections that are open now, for people who ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::event::Facts;

/// Connections are spread over so many tables, so that threads seldom meet at one.
const TABLES: usize = 16;

/// A connection that is open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) facts: Facts,
    pub(crate) started: Instant,
    /// From the side that opened it.
    pub(crate) received: AtomicU64,
    /// To the side that opened it.
    pub(crate) sent: AtomicU64,
}

/// All of them. A lock is taken when one begins and when it ends, never for its bytes.
#[derive(Debug, Default)]
pub(crate) struct OpenConnections {
    next: AtomicUsize,
    tables: [Mutex<HashMap<usize, Arc<Open>>>; TABLES],
}

impl OpenConnections {
    /// One begins; the number is for its end.
    pub(super) fn begins(&self, facts: Facts, started: Instant) -> (usize, Arc<Open>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(Open { facts, started, received: AtomicU64::new(0), sent: AtomicU64::new(0) });
        self.table(id).insert(id, open.clone());
        (id, open)
    }

    /// One has ended.
    pub(super) fn ends(&self, id: usize) {
        self.table(id).remove(&id);
    }

    /// Those that are open now.
    pub(crate) fn all(&self) -> Vec<Arc<Open>> {
        (0..TABLES).flat_map(|t| self.table(t).values().cloned().collect::<Vec<_>>()).collect()
    }

    fn table(&self, id: usize) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<Open>>> {
        self.tables[id % TABLES].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
