//! What all parts of the agent share. Everything runs on one thread.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use agent_status::VerificationState;
use anyhow::Context;
use handoff::{Attachment, PodRef};
use mesh::enrol::Enrolment;
use mesh::{Decision, Mesh};
use netns::{NetNs, NetNsId};
use tokio::sync::Notify;
use zds::Request;

use crate::capture_choice::Choice;
use crate::facts::Facts;
use crate::host_probes::HostProbes;
use crate::install::Installation;
use crate::joining::Joining;
use crate::kubernetes::Events;
use crate::metrics::{Metrics, Outcome, State};
use crate::plan::PlanDefaults;
use crate::pods::{Enrolled, Pods, Skipped, find_again};
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
    pub(crate) facts: Facts,
    pub(crate) pods: RefCell<Pods>,
    pub(crate) proxies: Proxies,
    pub(crate) joining: Joining,
    pub(crate) metrics: Metrics,
    pub(crate) verifier: RefCell<Verifier>,
    /// How this node captures.
    pub(crate) capture: Choice,
    pub(crate) plans: PlanDefaults,
    pub(crate) host_probes: HostProbes,
    pub(crate) install: Installation,
    /// Who belongs to the mesh may have changed.
    pub(crate) membership: Notify,
    state: StateDir,
}

impl Agent {
    /// An agent that knows no pod yet.
    pub(crate) fn new(
        node: String,
        state_dir: &Path,
        facts: Facts,
        capture: Choice,
        plans: PlanDefaults,
        host_probes: HostProbes,
    ) -> anyhow::Result<Self> {
        let state = StateDir::open(state_dir)
            .with_context(|| format!("{}: {}", error_code::agent::STATE, state_dir.display()))?;
        Ok(Self {
            node,
            node_namespaces: sandbox_check::node_namespaces()?,
            facts,
            pods: RefCell::default(),
            proxies: Proxies::default(),
            joining: Joining::default(),
            metrics: Metrics::new(),
            verifier: RefCell::default(),
            capture,
            plans,
            host_probes,
            install: Installation::default(),
            membership: Notify::new(),
            state,
        })
    }

    /// Takes over the pods of an earlier agent.
    pub(crate) fn take_over(self: &Rc<Self>) {
        let (enrolled, outside) = self.state.load();
        for record in enrolled {
            let netns = find_again(record.netns_path.as_deref(), record.netns_inode).map(Rc::new);
            if netns.is_none() {
                tracing::warn!(uid = record.uid, "the pod's namespace is not found; proxies that have it keep it");
            }
            let (uid, leaving) = (record.uid.clone(), record.leaving);
            let leaving_since = leaving.then(Instant::now);
            self.pods.borrow_mut().enrol(Enrolled { record, netns, joined: true, leaving_since });
            if !leaving {
                verifier::look_after(self, &uid);
            }
        }
        outside.into_iter().for_each(|pod| self.pods.borrow_mut().skip(pod));
        self.pods_changed();
    }

    /// An enrolled pod.
    pub(crate) fn pod(&self, uid: &str) -> Option<Enrolled> {
        self.pods.borrow().enrolled().find(|p| p.record.uid == uid).cloned()
    }

    /// Whether a runtime, or the agent itself, has presented this pod.
    pub(crate) fn knows(&self, uid: &str) -> bool {
        let pods = self.pods.borrow();
        pods.enrolled().any(|p| p.record.uid == uid) || pods.skipped().any(|p| p.pod.uid.as_deref() == Some(uid))
    }

    /// The uids of all pods that were presented.
    pub(crate) fn known_uids(&self) -> HashSet<String> {
        let pods = self.pods.borrow();
        let enrolled = pods.enrolled().map(|p| p.record.uid.clone());
        enrolled.chain(pods.skipped().filter_map(|p| p.pod.uid.clone())).collect()
    }

    /// Of these, the ones whose namespace is where it was then.
    pub(crate) fn placed_uids(&self) -> HashSet<String> {
        let pods = self.pods.borrow();
        let enrolled = pods.enrolled().filter(|p| p.netns.is_some()).map(|p| p.record.uid.clone());
        let skipped = pods.skipped().filter(|p| p.netns_path.is_some()).filter_map(|p| p.pod.uid.clone());
        enrolled.chain(skipped).collect()
    }

    /// The namespace of an enrolled pod that was lost is here. Returns false when it is another one, or no such pod was lost.
    pub(crate) fn found_again(self: &Rc<Self>, uid: &str, path: &Path, inode: u64) -> bool {
        let lost = |p: &Enrolled| p.netns.is_none() && p.record.netns_inode == inode;
        let Some(mut pod) = self.pod(uid).filter(lost) else { return false };
        let Some(netns) = find_again(Some(path), inode).map(Rc::new) else { return false };
        pod.record.netns_path = Some(path.to_owned());
        pod.netns = Some(netns.clone());
        self.proxies.ask_all(&pod.request(), Some(&netns));
        if let Err(refusal) = self.enrol(pod) {
            tracing::warn!(uid, "{}", refusal.explained());
        }
        verifier::look_after(self, uid);
        true
    }

    /// Decides about a pod by what is known now.
    pub(crate) fn decide(&self, pod: &PodRef) -> Decision<Enrolment> {
        self.facts.decide(&self.node, pod)
    }

    /// A new mesh file: it decides about pods that start from now on, and about those that run.
    pub(crate) fn mesh_changed(&self, mesh: Mesh) {
        tracing::info!(workloads = mesh.workloads().count(), "the mesh file has changed");
        if let Facts::File(known) = &self.facts {
            *known.borrow_mut() = Arc::new(mesh);
        }
        self.membership.notify_one();
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
        self.pods_changed();
    }

    /// A pod has joined: remembered on disk before anybody relies on it.
    pub(crate) fn enrol(&self, pod: Enrolled) -> Result<(), Refusal> {
        self.pods.borrow_mut().enrol(pod);
        self.pods_changed();
        self.save().map_err(Refusal::State)
    }

    /// A pod is outside.
    pub(crate) fn skip(&self, skipped: Skipped) {
        self.pods.borrow_mut().skip(skipped);
        self.save_or_tell();
        self.pods_changed();
    }

    /// An attachment goes away, and the proxies forget the pod. Returns its namespace, if it is still there.
    pub(crate) fn remove(&self, attachment: &Attachment) -> Option<Rc<NetNs>> {
        let removed = self.pods.borrow_mut().remove(attachment);
        let netns = removed.as_ref().and_then(|p| p.netns.clone());
        if let Some(pod) = removed {
            self.verifier.borrow_mut().forget(&pod.record.uid);
            self.proxies.ask_all(&Request::Del { uid: pod.record.uid }, None);
        }
        self.save_or_tell();
        self.pods_changed();
        netns
    }

    /// Which pods are enrolled has changed, or may have.
    fn pods_changed(&self) {
        self.host_probes.follow(&self.probed_addresses(), &self.metrics);
        self.state_changed();
    }

    /// Pods, or what is known of whether they are verified, have changed.
    pub(crate) fn state_changed(&self) {
        self.count_pods();
        if let Some(cluster) = self.facts.cluster() {
            cluster.changed.notify_one();
        }
    }

    /// What happened to a pod, where somebody can be told.
    pub(crate) fn events(&self) -> Option<&Events> {
        self.facts.cluster().map(|c| &c.events)
    }

    /// The addresses of the pods that belong to the mesh.
    pub(crate) fn probed_addresses(&self) -> BTreeSet<IpAddr> {
        let pods = self.pods.borrow();
        pods.enrolled().filter(|p| !p.record.leaving).flat_map(|p| p.record.plan.addresses.clone()).collect()
    }

    /// Where nobody waits who could be told that the state is not on disk.
    fn save_or_tell(&self) {
        if let Err(e) = self.save() {
            tracing::error!("{}: {e}", error_code::agent::STATE);
        }
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
        let pods = self.pods.borrow();
        let joined = pods.enrolled().filter(|p| p.joined).map(|p| p.record.clone());
        self.state.save(joined.collect(), pods.skipped().cloned().collect())
    }

    fn count_pods(&self) {
        let (pods, verifier) = (self.pods.borrow(), self.verifier.borrow());
        let set = |state, n: usize| {
            self.metrics.pods.get_or_create(&State { state }).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        let in_state =
            |state| pods.enrolled().filter(|p| verifier.of(&p.record.uid).is_some_and(|v| v.state() == state)).count();
        set("enrolled", pods.enrolled().filter(|p| !p.record.leaving).count());
        set("leaving", pods.enrolled().filter(|p| p.record.leaving).count());
        for state in [VerificationState::Verified, VerificationState::Drifted, VerificationState::Unverified] {
            set(state.as_str(), in_state(state));
        }
        set("skipped", pods.skipped().count());
    }
}
