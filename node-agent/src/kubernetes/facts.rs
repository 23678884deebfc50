//! What the API server has said of this node's pods and of namespaces. It stays in force while the server is away.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ::kubernetes::{Client, Namespace, Pod, Taint};
use handoff::PodRef;
use mesh::enrol::{DATAPLANE_MODE, Enrolment, REDIRECTION, SIDECAR_STATUS, decide_known};
use mesh::{Decision, Workload};
use tokio::sync::Notify;

use super::events::Events;
use super::newcomers::Search;
use crate::args::ClusterArgs;

/// Its value then.
pub(super) const ENABLED: &str = "enabled";
/// Proxies are pods of the agent's namespace with this label, as Istio's are. One that joined would wait for itself.
const PROXY_LABEL: (&str, &str) = ("app", "ztunnel");

/// The part of a cluster that a node's agent knows.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(super) host_proc: PathBuf,
    pub(super) own_namespace: Option<String>,
    excluded: BTreeSet<String>,
    pods: RefCell<BTreeMap<Name, KnownPod>>,
    /// Their mode, by their label.
    namespaces: RefCell<BTreeMap<String, Option<String>>>,
    /// Which lists were told in full: pods, namespaces, the node.
    pub(super) listed: Cell<[bool; 3]>,
    /// This node's taints, with the version of the object that has them.
    pub(super) taints: RefCell<(Vec<Taint>, Option<String>)>,
    /// Something about pods or the node has changed that is to be told to the API server.
    pub(crate) changed: Notify,
    /// Its taints may have changed.
    pub(super) node_changed: Notify,
    pub(crate) events: Events,
    pub(crate) search: Search,
}

/// Namespace and name.
type Name = (String, String);

/// A pod of this node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KnownPod {
    /// What decisions are made from; its uid is the pod's.
    pub(super) workload: Arc<Workload>,
    pub(super) finished: bool,
    /// What the pod's annotation says now.
    pub(super) redirection: Option<String>,
    is_proxy: bool,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Cluster {
    /// One of which nothing is known yet.
    pub(crate) fn new(client: Client, node: &str, args: &ClusterArgs) -> Self {
        Self {
            client,
            node: node.to_owned(),
            host_proc: args.host_proc.clone(),
            own_namespace: args.pod_namespace.clone(),
            excluded: args.exclude_namespaces.iter().filter(|n| !n.is_empty()).cloned().collect(),
            pods: RefCell::default(),
            namespaces: RefCell::default(),
            listed: Cell::default(),
            taints: RefCell::default(),
            changed: Notify::new(),
            node_changed: Notify::new(),
            events: Events::new(node),
            search: Search::default(),
        }
    }

    /// The uid of a pod, where a runtime does not say it.
    pub(crate) fn uid_of(&self, pod: &PodRef) -> Option<String> {
        self.pod(pod).map(|known| known.workload.uid.to_string())
    }

    /// Whether everything has been told once.
    pub(crate) fn is_synced(&self) -> bool {
        self.listed.get() == [true; 3]
    }

    /// Decides about a pod of this node by what is known now.
    pub(crate) fn decide(&self, pod: &PodRef) -> Decision<Enrolment> {
        let PodRef { namespace, name, uid } = pod;
        if self.excluded.contains(namespace) {
            return Decision::new(Enrolment::Skip, format!("namespace {namespace} is excluded (--exclude-namespaces)"));
        }
        let Some(known) = self.pod(pod) else {
            let uid = uid.as_deref().unwrap_or("any uid");
            let reason = format!("pod {namespace}/{name} ({uid}) is not known on this node");
            return Decision::new(Enrolment::Unknown, reason);
        };
        if known.finished {
            return Decision::new(Enrolment::Skip, "the pod has finished");
        }
        if known.is_proxy {
            return Decision::new(Enrolment::Skip, "the pod is a proxy of the mesh");
        }
        let namespaces = self.namespaces.borrow();
        let labels = namespaces
            .get(namespace)
            .map(|mode| mode.iter().map(|m| (DATAPLANE_MODE.to_owned(), m.clone())).collect::<BTreeMap<_, _>>());
        let decision = decide_known(labels.as_ref(), &known.workload, &self.node);
        let by_itself = || known.workload.host_network || known.workload.annotations.contains_key(SIDECAR_STATUS);
        if labels.is_none() && !known.workload.labels.contains_key(DATAPLANE_MODE) && !by_itself() {
            return Decision::new(Enrolment::Unknown, format!("namespace {namespace} is not known"));
        }
        decision
    }

    /// The pod, if it is known under that uid.
    pub(super) fn pod(&self, pod: &PodRef) -> Option<KnownPod> {
        let pods = self.pods.borrow();
        let known = pods.get(&(pod.namespace.clone(), pod.name.clone()))?;
        pod.uid.as_ref().is_none_or(|uid| known.workload.uid == **uid).then(|| known.clone())
    }

    /// All pods of this node.
    pub(super) fn pods(&self) -> Vec<KnownPod> {
        self.pods.borrow().values().cloned().collect()
    }

    /// These are all pods of this node.
    pub(super) fn all_pods(&self, pods: Vec<Pod>) {
        let known = pods.into_iter().map(|pod| (name(&pod), self.known(pod)));
        *self.pods.borrow_mut() = known.collect();
        let [_, namespaces, node] = self.listed.get();
        self.listed.set([true, namespaces, node]);
    }

    /// A pod of this node is there, or has changed; returns whether anything that is looked at has.
    pub(super) fn put_pod(&self, pod: Pod) -> bool {
        let (name, known) = (name(&pod), self.known(pod));
        let mut pods = self.pods.borrow_mut();
        if pods.get(&name) == Some(&known) {
            return false;
        }
        pods.insert(name, known);
        true
    }

    /// A pod has gone.
    pub(super) fn pod_is_gone(&self, pod: &Pod) {
        let mut pods = self.pods.borrow_mut();
        if pods.get(&name(pod)).is_some_and(|known| known.workload.uid == *pod.uid()) {
            pods.remove(&name(pod));
        }
    }

    /// The annotation of a pod was written, and its watch has not told so yet.
    pub(super) fn wrote_redirection(&self, pod: &PodRef, value: Option<&str>) {
        if let Some(known) = self.pods.borrow_mut().get_mut(&(pod.namespace.clone(), pod.name.clone()))
            && pod.uid.as_ref().is_none_or(|uid| known.workload.uid == **uid)
        {
            known.redirection = value.map(str::to_owned);
        }
    }

    /// These are all namespaces.
    pub(super) fn all_namespaces(&self, namespaces: &[Namespace]) {
        *self.namespaces.borrow_mut() = namespaces.iter().filter_map(mode).collect();
        let [pods, _, node] = self.listed.get();
        self.listed.set([pods, true, node]);
    }

    /// A namespace is there, or has changed; returns whether that can change a decision.
    pub(super) fn put_namespace(&self, namespace: &Namespace) -> bool {
        let Some((name, mode)) = mode(namespace) else { return false };
        self.namespaces.borrow_mut().insert(name, mode.clone()) != Some(mode)
    }

    /// A namespace has gone; its pods went before.
    pub(super) fn namespace_is_gone(&self, namespace: &Namespace) {
        if let Some((name, _)) = mode(namespace) {
            self.namespaces.borrow_mut().remove(&name);
        }
    }

    fn known(&self, pod: Pod) -> KnownPod {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let is_proxy = self.own_namespace.as_deref() == Some(pod.namespace())
            && labels.get(PROXY_LABEL.0).is_some_and(|v| v == PROXY_LABEL.1);
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let redirection = annotations.get(REDIRECTION).cloned();
        let workload = Workload {
            uid: pod.uid().into(),
            name: pod.name().into(),
            namespace: pod.namespace().into(),
            workload_ips: pod.status.pod_ips.iter().map(|a| a.ip).collect::<Vec<IpAddr>>(),
            service_account: match pod.spec.service_account_name.as_str() {
                "" => "default".into(),
                account => account.into(),
            },
            node: pod.spec.node_name.as_str().into(),
            labels: labels.into_iter().filter(|(key, _)| key == DATAPLANE_MODE).collect(),
            annotations: annotations.into_iter().filter(|(key, _)| decides(key)).collect(),
            host_network: pod.spec.host_network,
            ..Workload::default()
        };
        KnownPod { workload: Arc::new(workload), finished: pod.has_finished(), redirection, is_proxy }
    }
}

impl KnownPod {
    /// As a runtime names it.
    pub(super) fn reference(&self) -> PodRef {
        let Workload { namespace, name, uid, .. } = &*self.workload;
        PodRef { namespace: namespace.to_string(), name: name.to_string(), uid: Some(uid.to_string()) }
    }
}

/// Whether an annotation is looked at.
fn decides(key: &str) -> bool {
    key == SIDECAR_STATUS || redirect::ANNOTATIONS.contains(&key)
}

fn name(pod: &Pod) -> Name {
    (pod.namespace().to_owned(), pod.name().to_owned())
}

/// Name and mode of a namespace.
fn mode(namespace: &Namespace) -> Option<(String, Option<String>)> {
    let labels = namespace.metadata.labels.as_ref();
    Some((namespace.metadata.name.clone()?, labels.and_then(|l| l.get(DATAPLANE_MODE)).cloned()))
}
