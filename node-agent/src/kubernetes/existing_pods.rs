//! Finds pods that started before Underpass was installed, which no plugin presented, by their
//! processes. They are then enrolled like any running pod.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use handoff::{Attachment, PodRef};
use mesh::enrol::Enrolment;
use netns::NetNsId;
use pod_life::{LateStart, Life, Refusal, Sandbox};

use super::cluster::{Cluster, KnownPod};
use super::departures::release_departed;
use super::late_starts::StartTimes;
use super::processes::{self, PodLocation, find_pods};
use crate::inbox::{Inbox, Message};
use crate::install::Installation;
use crate::pods_view::PodsView;
use crate::reporter::Reporter;

/// Delay before asking again about departed pods while the API server does not answer.
const RELEASE_RETRY: Duration = Duration::from_secs(1);
/// The pod interface's name, which is the same in every runtime that serves a kubelet.
const INTERFACE: &str = "eth0";

/// Searches for pods that no plugin presented, and releases those that have departed.
#[derive(Debug)]
pub(crate) struct PodSearcher {
    pub(crate) cluster: Rc<Cluster>,
    pub(crate) pods: PodsView,
    pub(crate) reporter: Rc<Reporter>,
    pub(crate) node_namespaces: Arc<[NetNsId]>,
    pub(crate) install: Installation,
    pub(crate) inbox: Inbox,
}

impl PodSearcher {
    /// Searches after changes, and at intervals while pods are missing, forever.
    pub(super) async fn run(self) {
        loop {
            let settled = release_departed(&self.pods, &self.cluster, &self.inbox).await;
            self.search().await;
            let next = self
                .cluster
                .search
                .next()
                .map(tokio::time::Instant::from_std);
            tokio::select! {
                () = self.cluster.unsettled.notified() => {}
                () = tokio::time::sleep(RELEASE_RETRY), if !settled => {}
                () = tokio::time::sleep_until(next.unwrap_or_else(tokio::time::Instant::now)),
                    if next.is_some() => {}
            }
        }
    }

    /// Reports every pod that should join and was not presented by a plugin, and those whose
    /// network namespace is no longer at its recorded path.
    async fn search(&self) {
        let cluster = &self.cluster;
        if !cluster.is_synced() {
            return;
        }
        let candidates: Vec<KnownPod> = cluster
            .pods()
            .into_iter()
            .filter(|pod| self.is_wanted(pod))
            .collect();
        let uids = candidates
            .iter()
            .map(|p| p.workload.uid.to_string())
            .collect();
        if !cluster.search.is_due(&uids, Instant::now()) {
            return;
        }
        if candidates.is_empty() {
            cluster.search.record(&uids, Instant::now());
            return;
        }
        let wanted: HashMap<_, _> = candidates
            .iter()
            .map(|p| (p.workload.uid.to_string(), p.workload.workload_ips.clone()))
            .collect();
        let (processes, node) = (cluster.host_proc.clone(), self.node_namespaces.clone());
        // Off the agent's thread: a node has thousands of processes.
        let search =
            tokio::task::spawn_blocking(move || find_pods(&processes, &wanted, &node)).await;
        let mut found = search.unwrap_or_default();
        let mut missing = BTreeMap::new();
        for pod in candidates {
            // An ADD may have arrived in the meantime.
            if !self.is_wanted(&pod) {
                continue;
            }
            let (reference, uid) = (pod.reference(), pod.workload.uid.to_string());
            match found.remove(&uid) {
                Some(location) => self.report(&pod, reference, location),
                None => {
                    missing.insert(uid, reference);
                }
            }
        }
        let lost = cluster
            .search
            .record(&missing.keys().cloned().collect(), Instant::now());
        for (uid, pod) in missing {
            // For pods that the agent has, their lives report the problem.
            let is_known = |life: &Life| life.uid() == Some(&uid);
            if lost.contains(&uid) && self.pods.read().find(is_known).is_empty() {
                let processes = cluster.host_proc.display();
                let why = format!("found no process of the pod in {processes}");
                let code = &error_code::agent::NOT_FOUND;
                self.reporter.not_found(&pod, &Refusal::new(code, why));
            }
        }
    }

    fn report(&self, pod: &KnownPod, reference: PodRef, location: PodLocation) {
        let (
            uid,
            PodRef {
                namespace, name, ..
            },
        ) = (&*pod.workload.uid, &reference);
        let event = "pod_found_by_processes";
        tracing::info!(
            event,
            uid,
            namespace,
            name,
            "found a running pod by its processes"
        );
        let late = self.late_start(pod, location.start_time);
        let container_id = location.container.unwrap_or_else(|| format!("pod-{uid}"));
        let sandbox = Sandbox {
            attachment: Attachment {
                container_id,
                ifname: INTERFACE.to_owned(),
            },
            further: Vec::new(),
            synthesised: true,
            pod: reference,
            addresses: pod.workload.workload_ips.clone(),
            annotations: BTreeMap::new(),
            netns_inode: location.inode,
            netns_path: Some(location.netns),
        };
        self.inbox.send(Message::Found(sandbox, late));
    }

    /// The late start of a pod, by the start time of its oldest process in clock ticks.
    fn late_start(&self, pod: &KnownPod, start_time: u64) -> Option<LateStart> {
        let cluster = &self.cluster;
        let times = StartTimes {
            process: processes::instant(&cluster.host_proc, start_time)?,
            reported: pod.started,
        };
        let (uid, now) = (&pod.workload.uid, (Instant::now(), SystemTime::now()));
        let chained = self.install.chained_at();
        cluster.late_starts.classify(uid, times, chained, now)
    }

    /// Whether a pod runs and should join, and its namespace is not known.
    fn is_wanted(&self, pod: &KnownPod) -> bool {
        let is_placed = |life: &Life| {
            let inode = life.sandbox.netns_inode;
            life.uid() == Some(&*pod.workload.uid) && life.accepts_namespace(inode) == Some(false)
        };
        let is_running = !pod.finished && !pod.workload.workload_ips.is_empty();
        let belongs = || {
            matches!(
                self.cluster.decide(&pod.reference()).outcome,
                Enrolment::Enrol(_)
            )
        };
        is_running && self.pods.read().find(is_placed).is_empty() && belongs()
    }
}
