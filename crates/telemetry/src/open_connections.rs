//! The registry of open connections, for the admin interface.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::facts::ConnectionFacts;

/// Number of tables that connections are spread over to reduce lock contention.
const TABLES: usize = 16;

/// An open connection.
#[derive(Debug)]
pub struct OpenConnection {
    /// The endpoints and what is known about them.
    pub facts: ConnectionFacts,
    /// When it was opened.
    pub started: Instant,
    /// Bytes received from the side that opened the connection.
    pub received: AtomicU64,
    /// Bytes sent to the side that opened the connection.
    pub sent: AtomicU64,
    /// Whether the sockets of both pods are joined.
    pub is_joined: AtomicBool,
}

/// All open connections. Opening and closing one takes a lock; counting its bytes does not.
#[derive(Debug, Default)]
pub struct OpenConnections {
    next: AtomicUsize,
    tables: [Mutex<HashMap<usize, Arc<OpenConnection>>>; TABLES],
}

impl OpenConnections {
    /// Adds a connection and returns the id to remove it by.
    pub(super) fn insert(
        &self,
        facts: ConnectionFacts,
        started: Instant,
    ) -> (usize, Arc<OpenConnection>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(OpenConnection {
            facts,
            started,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            is_joined: AtomicBool::new(false),
        });
        self.table(id).insert(id, open.clone());
        (id, open)
    }

    /// Removes a connection.
    pub(super) fn remove(&self, id: usize) {
        self.table(id).remove(&id);
    }

    /// Returns all open connections.
    pub fn all(&self) -> Vec<Arc<OpenConnection>> {
        (0..TABLES)
            .flat_map(|t| self.table(t).values().cloned().collect::<Vec<_>>())
            .collect()
    }

    fn table(&self, id: usize) -> MutexGuard<'_, HashMap<usize, Arc<OpenConnection>>> {
        self.tables[id % TABLES].lock()
    }
}
