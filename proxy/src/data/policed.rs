//! Inbound connections that policy looks at again whenever it, or what is known of their pod, changes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mesh::authorize::{Connection, Ruling, Verdict, check};
use mesh::{Mesh, Workload};
use tokio::sync::oneshot;

use super::error::ConnectionError;
use crate::inpod::Pod;

/// The policed connections of one worker.
pub(super) struct Policed {
    pods: RefCell<HashMap<*const Pod, OfPod>>,
    next: Cell<u64>,
    /// Whether what is allowed is logged, too.
    tells_all: bool,
}

/// The policed connections of one pod.
struct OfPod {
    /// Held, so that no other pod gets its place in memory.
    pod: Arc<Pod>,
    /// What they were judged by last.
    workload: Arc<Workload>,
    policy_epoch: u64,
    connections: HashMap<u64, Entry>,
}

struct Entry {
    connection: Connection,
    deny: oneshot::Sender<String>,
}

/// A connection stays policed for as long as this lives.
pub(super) struct Registration {
    table: Rc<Policed>,
    pod: *const Pod,
    id: u64,
    denied: oneshot::Receiver<String>,
}

impl Policed {
    pub(super) fn new(tells_all: bool) -> Self {
        Self { pods: RefCell::default(), next: Cell::default(), tells_all }
    }

    /// Decides whether a connection may begin, by the mesh as it is now, and has it looked at again whenever the pod or a
    /// policy changes.
    pub(super) fn admit(
        self: &Rc<Self>,
        mesh: &Mesh,
        pod: &Arc<Pod>,
        connection: Connection,
    ) -> Result<Registration, ConnectionError> {
        let key = Arc::as_ptr(pod);
        let mut pods = self.pods.borrow_mut();
        let of_pod = pods.entry(key).or_insert_with(|| OfPod {
            pod: pod.clone(),
            workload: pod.workload(mesh),
            policy_epoch: mesh.policy_epoch(),
            connections: HashMap::new(),
        });
        // Those that were there before have not been judged by this mesh yet, perhaps.
        of_pod.reconsider(mesh);
        let ruling = check(mesh, &of_pod.workload, &connection);
        tell_dry_run(&ruling, &connection);
        if self.tells_all {
            tell(&connection, &ruling.to_string());
        }
        if ruling.verdict == Verdict::Deny {
            if of_pod.connections.is_empty() {
                pods.remove(&key);
            }
            return Err(ConnectionError::Denied(ruling.to_string()));
        }
        let (deny, denied) = oneshot::channel();
        let id = self.next.get();
        self.next.set(id + 1);
        of_pod.connections.insert(id, Entry { connection, deny });
        Ok(Registration { table: self.clone(), pod: key, id, denied })
    }

    /// The mesh has changed: cuts what is not allowed any more.
    pub(super) fn reconsider(&self, mesh: &Mesh) {
        self.pods.borrow_mut().values_mut().for_each(|of_pod| of_pod.reconsider(mesh));
    }
}

impl OfPod {
    fn reconsider(&mut self, mesh: &Mesh) {
        // A pod that the control plane has forgotten is judged by what was known last.
        let workload = self.pod.known(mesh).unwrap_or(&self.workload).clone();
        if Arc::ptr_eq(&workload, &self.workload) && self.policy_epoch == mesh.policy_epoch() {
            return;
        }
        (self.workload, self.policy_epoch) = (workload, mesh.policy_epoch());
        let denied =
            |e: &Entry| Some(check(mesh, &self.workload, &e.connection)).filter(|r| r.verdict == Verdict::Deny);
        let denied: Vec<(u64, Ruling)> =
            self.connections.iter().filter_map(|(id, e)| Some((*id, denied(e)?))).collect();
        for (id, ruling) in denied {
            if let Some(entry) = self.connections.remove(&id) {
                let _ = entry.deny.send(ruling.to_string()); // it has just ended
            }
        }
    }
}

/// Says what a policy on trial would have done.
fn tell_dry_run(ruling: &Ruling, connection: &Connection) {
    if let Some((action, rule)) = &ruling.dry_run {
        tell(connection, &format!("dry run: {action:?} by {rule}"));
    }
}

fn tell(connection: &Connection, what: &str) {
    let Connection { client, destination, .. } = connection;
    tracing::event!(target: "policy", tracing::Level::INFO, src.addr = %client, dst.addr = %destination, "{what}");
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
        let mut pods = self.table.pods.borrow_mut();
        if let Some(of_pod) = pods.get_mut(&self.pod) {
            of_pod.connections.remove(&self.id);
            if of_pod.connections.is_empty() {
                pods.remove(&self.pod);
            }
        }
    }
}
