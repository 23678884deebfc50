//! Inbound connections that policy looks at again whenever the mesh changes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mesh::Mesh;
use mesh::authorize::{Connection, Verdict, authorize};
use tokio::sync::oneshot;

use super::error::ConnectionError;
use crate::inpod::Pod;

/// The policed connections of one worker.
#[derive(Default)]
pub(super) struct Policed {
    entries: RefCell<HashMap<u64, Entry>>,
    next: RefCell<u64>,
}

struct Entry {
    pod: Arc<Pod>,
    connection: Connection,
    deny: oneshot::Sender<String>,
}

/// A connection stays policed for as long as this lives.
pub(super) struct Registration {
    table: Rc<Policed>,
    id: u64,
    denied: oneshot::Receiver<String>,
}

/// Whether a connection may begin, by the mesh as it is now.
pub(super) fn check(mesh: &Mesh, pod: &Pod, connection: &Connection) -> Result<(), ConnectionError> {
    let decision = authorize(mesh, &pod.workload(mesh), connection);
    match decision.outcome {
        Verdict::Allow => Ok(()),
        Verdict::Deny => Err(ConnectionError::Denied(decision.reason)),
    }
}

impl Policed {
    /// Has a connection looked at again whenever the mesh changes. Register before checking, so that no change falls between.
    pub(super) fn register(self: &Rc<Self>, pod: Arc<Pod>, connection: Connection) -> Registration {
        let (deny, denied) = oneshot::channel();
        let mut next = self.next.borrow_mut();
        *next += 1;
        self.entries.borrow_mut().insert(*next, Entry { pod, connection, deny });
        Registration { table: self.clone(), id: *next, denied }
    }

    /// The mesh has changed: cuts what is not allowed any more.
    pub(super) fn reconsider(&self, mesh: &Mesh) {
        let denied: Vec<(u64, String)> = {
            let entries = self.entries.borrow();
            let decide = |e: &Entry| authorize(mesh, &e.pod.workload(mesh), &e.connection);
            entries
                .iter()
                .map(|(id, e)| (*id, decide(e)))
                .filter(|(_, d)| d.outcome == Verdict::Deny)
                .map(|(id, d)| (id, d.reason))
                .collect()
        };
        for (id, reason) in denied {
            if let Some(entry) = self.entries.borrow_mut().remove(&id) {
                let _ = entry.deny.send(reason); // it has just ended
            }
        }
    }
}

impl Registration {
    /// Completes when policy denies the connection.
    pub(super) async fn denied(&mut self) -> ConnectionError {
        match (&mut self.denied).await {
            Ok(reason) => ConnectionError::PolicyChanged(reason),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.entries.borrow_mut().remove(&self.id);
    }
}
