//! What all parts of the agent share. Everything runs on one thread.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use handoff::Attachment;
use mesh::Mesh;
use netns::{NetNs, NetNsId};
use zds::Request;

use crate::joining::Joining;
use crate::metrics::{Metrics, Outcome, State};
use crate::pods::{Enrolled, Pods, Record, Skipped};
use crate::proxies::Proxies;
use crate::refusal::Refusal;
use crate::sandbox_check;
use crate::state::StateDir;
use crate::verifier::{self, Verifier};

/// The agent of one node.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) node_namespaces: Vec<NetNsId>,
    mesh: RefCell<Arc<Mesh>>,
    pub(crate) pods: RefCell<Pods>,
    pub(crate) proxies: Proxies,
    pub(crate) joining: Joining,
    pub(crate) metrics: Metrics,
    pub(crate) verifier: RefCell<Verifier>,
    state: StateDir,
}

impl Agent {
    /// An agent that knows no pod yet.
    pub(crate) fn new(node: String, state_dir: &Path, mesh: Mesh) -> anyhow::Result<Self> {
        let state = StateDir::open(state_dir)
            .with_context(|| format!("{}: {}", error_code::agent::STATE, state_dir.display()))?;
        Ok(Self {
            node,
            node_namespaces: sandbox_check::node_namespaces()?,
            mesh: RefCell::new(Arc::new(mesh)),
            pods: RefCell::default(),
            proxies: Proxies::default(),
            joining: Joining::default(),
            metrics: Metrics::new(),
            verifier: RefCell::default(),
            state,
        })
    }

    /// Takes over the pods of an earlier agent.
    pub(crate) fn take_over(self: &Rc<Self>) {
        for record in self.state.load() {
            let netns = find_again(&record).map(Rc::new);
            if netns.is_none() {
                tracing::warn!(uid = record.uid, "the pod's namespace is not found; proxies that have it keep it");
            }
            let uid = record.uid.clone();
            self.pods.borrow_mut().enrol(Enrolled { record, netns, joined: true });
            verifier::look_after(self, &uid);
        }
        self.count_pods();
    }

    /// An enrolled pod.
    pub(crate) fn pod(&self, uid: &str) -> Option<Enrolled> {
        self.pods.borrow().enrolled().find(|p| p.record.uid == uid).cloned()
    }

    /// The mesh as it is now.
    pub(crate) fn mesh(&self) -> Arc<Mesh> {
        self.mesh.borrow().clone()
    }

    /// A new mesh file: it decides about pods that start from now on.
    pub(crate) fn mesh_changed(&self, mesh: Mesh) {
        tracing::info!(workloads = mesh.workloads().count(), "the mesh file has changed");
        *self.mesh.borrow_mut() = Arc::new(mesh);
    }

    /// A pod is about to join: every proxy is told of it. What had its attachment before has gone.
    pub(crate) fn joins(&self, pod: Enrolled) {
        let attachment = &pod.record.attachment;
        let another =
            self.pods.borrow().enrolled().any(|p| p.record.attachment == *attachment && p.record.uid != pod.record.uid);
        if another {
            self.remove(attachment);
        }
        self.pods.borrow_mut().enrol(pod);
        self.count_pods();
    }

    /// A pod has joined: remembered on disk before anybody relies on it.
    pub(crate) fn enrol(&self, pod: Enrolled) -> Result<(), Refusal> {
        self.pods.borrow_mut().enrol(pod);
        self.count_pods();
        self.save().map_err(Refusal::State)
    }

    /// A pod stays outside.
    pub(crate) fn skip(&self, attachment: Attachment, skipped: Skipped) {
        self.pods.borrow_mut().skip(attachment, skipped);
        self.count_pods();
    }

    /// An attachment goes away, and the proxies forget the pod. Returns its namespace, if it is still there.
    pub(crate) fn remove(&self, attachment: &Attachment) -> Option<Rc<NetNs>> {
        let removed = self.pods.borrow_mut().remove(attachment);
        let netns = removed.as_ref().and_then(|p| p.netns.clone());
        if let Some(pod) = removed {
            self.verifier.borrow_mut().forget(&pod.record.uid);
            self.proxies.ask_all(&Request::Del { uid: pod.record.uid }, None);
            if let Err(e) = self.save() {
                tracing::error!("{}: {e}", error_code::agent::STATE);
            }
        }
        self.count_pods();
        netns
    }

    /// Drops exceptions of connections that have closed.
    pub(crate) fn release_exceptions(&self) {
        let exempt: Vec<Enrolled> = self.pods.borrow().enrolled().filter(|p| p.record.exempted > 0).cloned().collect();
        for mut pod in exempt {
            let Some(netns) = &pod.netns else { continue };
            match netns.run(|| redirect::release_closed_exceptions(&pod.record.plan)) {
                Ok(Ok(remaining)) if remaining != pod.record.exempted => {
                    pod.record.exempted = remaining;
                    if let Err(e) = self.enrol(pod) {
                        tracing::warn!("{e}");
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::warn!(uid = pod.record.uid, "{}: {e}", e.code()),
                Err(e) => tracing::warn!(uid = pod.record.uid, "{e}"),
            }
        }
    }

    /// Counts how an ADD ended.
    pub(crate) fn count_enrolment(&self, outcome: &str) {
        self.metrics.enrolments.get_or_create(&Outcome { outcome: outcome.to_owned() }).inc();
    }

    fn save(&self) -> std::io::Result<()> {
        self.state.save(self.pods.borrow().enrolled().filter(|p| p.joined).map(|p| p.record.clone()).collect())
    }

    pub(crate) fn count_pods(&self) {
        let (pods, verifier) = (self.pods.borrow(), self.verifier.borrow());
        let set = |state, n: usize| {
            self.metrics.pods.get_or_create(&State { state }).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        let in_state = |state: &str| {
            pods.enrolled().filter(|p| verifier.of(&p.record.uid).is_some_and(|v| v.state() == state)).count()
        };
        set("enrolled", pods.enrolled().count());
        for state in ["verified", "drifted", "unverified"] {
            set(state, in_state(state));
        }
        set("skipped", pods.skipped().count());
    }
}

/// The namespace of a pod that was enrolled before this agent started, if its path still leads there.
fn find_again(record: &Record) -> Option<NetNs> {
    let netns = NetNs::open(record.netns_path.as_ref()?).ok()?;
    (netns.id().ino == record.netns_inode).then_some(netns)
}
