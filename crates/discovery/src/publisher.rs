//! Publishes snapshots of the mesh.

use std::cell::RefCell;
use std::time::Instant;

use mesh::{Removal, Resource, SettlingStore};
use tokio::sync::{Notify, watch};

use crate::ads_client::MeshUpdate;

/// Applies pushes to the mesh and publishes snapshots of it.
pub(crate) struct Publisher {
    state: RefCell<State>,
    /// Notified after each push.
    applied: Notify,
}

struct State {
    store: SettlingStore,
    updates: watch::Sender<MeshUpdate>,
}

impl Publisher {
    pub(crate) fn new(store: SettlingStore, updates: watch::Sender<MeshUpdate>) -> Self {
        Self {
            state: RefCell::new(State { store, updates }),
            applied: Notify::new(),
        }
    }

    /// Applies a push and publishes the result; see [`MeshUpdate`] for the last two parameters.
    pub(crate) fn apply<'a>(
        &self,
        upserts: Vec<Resource>,
        removed: impl IntoIterator<Item = Removal<'a>>,
        complete: bool,
        push: u64,
    ) {
        let State { store, updates } = &mut *self.state.borrow_mut();
        store.apply(upserts, removed, Instant::now());
        updates.send_replace(MeshUpdate {
            mesh: store.snapshot(),
            complete,
            push,
        });
        self.applied.notify_one();
    }

    /// Applies the parts of pushes that have waited for others too long. Never returns.
    pub(crate) async fn run(&self) {
        loop {
            let deadline = self.state.borrow().store.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.expire(),
                () = self.applied.notified() => {}
            }
        }
    }

    fn expire(&self) {
        let State { store, updates } = &mut *self.state.borrow_mut();
        if store.expire(Instant::now()) {
            let mesh = store.snapshot();
            updates.send_modify(|update| update.mesh = mesh);
        }
    }
}
