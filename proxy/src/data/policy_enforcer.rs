//! Enforcement of authorization policies on inbound connections, including open ones: those are
//! re-evaluated whenever their pod or a policy that applies to it changes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use mesh::authorize::{Connection, Ruling, Verdict, check};
use mesh::{ClientAddr, Mesh, PolicySet, ServerAddr, Workload};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::error::ConnectionError;
use crate::inpod::{Pod, PodId};

/// Enforces policies on the inbound connections of one worker.
pub(super) struct PolicyEnforcer {
    pods: RefCell<HashMap<PodId, PodConnections>>,
    next_id: Cell<u64>,
    /// Whether to log every decision.
    log_decisions: bool,
}

/// The open inbound connections of one pod.
struct PodConnections {
    pod: Arc<Pod>,
    /// The workload that the connections were last evaluated for.
    workload: Arc<Workload>,
    /// The policies that the connections were last evaluated with.
    policies: PolicySet,
    connections: HashMap<u64, EnforcedConnection>,
}

struct EnforcedConnection {
    connection: Connection,
    deny: oneshot::Sender<Ruling>,
}

/// Proof that a connection may be relayed. Each implementation has private fields, so that only its
/// own module grants it.
pub(super) trait Permit {
    /// Completes, with the reason, when the permit is withdrawn.
    async fn withdrawn(&self) -> ConnectionError;
}

/// The permit of an inbound connection: policies allow it. The connection is subject to changes of
/// them until this is dropped.
pub(crate) struct Admitted {
    /// The client that was admitted.
    pub(super) client: ClientAddr,
    enforcer: Rc<PolicyEnforcer>,
    pod: PodId,
    id: u64,
    denied: RefCell<oneshot::Receiver<Ruling>>,
}

impl PolicyEnforcer {
    pub(super) fn new(log_decisions: bool) -> Self {
        Self {
            pods: RefCell::default(),
            next_id: Cell::default(),
            log_decisions,
        }
    }

    /// Evaluates a new connection against the given mesh. An allowed one is re-evaluated whenever
    /// the pod or a policy changes, until its permit is dropped.
    pub(super) fn admit(
        self: &Rc<Self>,
        mesh: &Mesh,
        pod: &Arc<Pod>,
        connection: Connection,
    ) -> Result<Admitted, ConnectionError> {
        let mut pods = self.pods.borrow_mut();
        let entry = pods.entry(pod.id).or_insert_with(|| {
            let workload = pod.workload(mesh);
            PodConnections {
                pod: pod.clone(),
                policies: mesh.policy_set(&workload),
                workload,
                connections: HashMap::new(),
            }
        });
        // The worker may not have applied this mesh to the pod's open connections yet.
        entry.reevaluate(mesh);
        let ruling = check(mesh, &entry.workload, &connection);
        log_dry_run(&ruling, &connection);
        if self.log_decisions {
            let verdict = if ruling.verdict() == Verdict::Deny {
                "deny"
            } else {
                "allow"
            };
            log_decision(&connection, verdict, &ruling.to_string());
        }
        if ruling.verdict() == Verdict::Deny {
            if entry.connections.is_empty() {
                pods.remove(&pod.id);
            }
            return Err(ConnectionError::Denied(ruling));
        }
        let (deny, denied) = oneshot::channel();
        let (id, client) = (self.next_id.get(), connection.client);
        self.next_id.set(id + 1);
        entry
            .connections
            .insert(id, EnforcedConnection { connection, deny });
        Ok(Admitted {
            client,
            enforcer: self.clone(),
            pod: pod.id,
            id,
            denied: RefCell::new(denied),
        })
    }

    /// Evaluates open connections against a new mesh and closes those that are no longer allowed.
    pub(super) fn reevaluate(&self, mesh: &Mesh) {
        self.pods
            .borrow_mut()
            .values_mut()
            .for_each(|entry| entry.reevaluate(mesh));
    }
}

impl PodConnections {
    fn reevaluate(&mut self, mesh: &Mesh) {
        // A pod that is missing from the mesh is evaluated as the last known workload.
        let workload = self.pod.find_in(mesh).unwrap_or(&self.workload).clone();
        let policies = mesh.policy_set(&workload);
        if Arc::ptr_eq(&workload, &self.workload) && policies == self.policies {
            return;
        }
        (self.workload, self.policies) = (workload, policies);
        let denial = |e: &EnforcedConnection| {
            Some(check(mesh, &self.workload, &e.connection))
                .filter(|r| r.verdict() == Verdict::Deny)
        };
        let denied: Vec<(u64, Ruling)> = self
            .connections
            .iter()
            .filter_map(|(id, e)| Some((*id, denial(e)?)))
            .collect();
        for (id, ruling) in denied {
            if let Some(denied) = self.connections.remove(&id) {
                let _ = denied.deny.send(ruling); // it may have just ended
            }
        }
    }
}

/// Logs what each dry-run policy would have done.
fn log_dry_run(ruling: &Ruling, connection: &Connection) {
    for outcome in &ruling.dry_run {
        log_decision(connection, "dry_run", &format!("dry run: {outcome}"));
    }
}

fn log_decision(connection: &Connection, verdict: &str, decision: &str) {
    let Connection {
        client,
        destination,
        ..
    } = connection;
    tracing::event!(
        target: "policy",
        tracing::Level::INFO,
        src.addr = %client,
        dst.addr = %destination,
        verdict,
        "{decision}"
    );
}

impl Admitted {
    /// Connects to the application from the address of the admitted client, so that the application
    /// sees its real client.
    pub(super) async fn connect(
        &self,
        pod: &Pod,
        to: impl Into<ServerAddr>,
    ) -> io::Result<TcpStream> {
        pod_socket::connect_as(self.client, pod, to).await
    }
}

impl Permit for Admitted {
    async fn withdrawn(&self) -> ConnectionError {
        match poll_fn(|cx| Pin::new(&mut *self.denied.borrow_mut()).poll(cx)).await {
            Ok(ruling) => ConnectionError::PolicyChanged(ruling),
            Err(_) => pending().await,
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut pods = self.enforcer.pods.borrow_mut();
        if let Some(entry) = pods.get_mut(&self.pod) {
            entry.connections.remove(&self.id);
            if entry.connections.is_empty() {
                pods.remove(&self.pod);
            }
        }
    }
}
