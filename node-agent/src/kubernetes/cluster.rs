//! The cluster state that the agent needs: this node's pods, all namespaces, and the node's taints.
//! It stays valid while the API server is unreachable.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use ::kubernetes::{Client, DaemonSet, EnablementSelectors, Labels, Namespace, Node, Pod};
use agent_status::ContainerCapabilities;
use handoff::PodRef;
use ipnet::IpNet;
use istio::annotation::{REDIRECTION, SIDECAR_STATUS};
use istio::label::DATAPLANE_MODE;
use mesh::enrol::{
    Enrolment, EnrolmentReason, belongs_by_selectors, belongs_to_mesh, decide_belonging,
};
use mesh::{Decision, Workload};
use tokio::sync::Notify;

use super::capabilities;
use super::events::EventRecorder;
use super::late_starts::LateStarts;
use super::search::PodSearch;
use crate::args::ClusterArgs;

/// Value of the redirection annotation of a pod in the mesh.
pub(super) const ENABLED: &str = "enabled";
/// Label of the mesh's proxies, pods of the agent's namespace, as in Istio. They cannot be
/// enrolled: a proxy would wait for itself.
const PROXY_LABEL: (&str, &str) = ("app", "ztunnel");

/// The cluster, as seen by the agent of one node.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(super) host_proc: PathBuf,
    pub(super) own_namespace: Option<String>,
    excluded: BTreeSet<String>,
    pods: RefCell<BTreeMap<PodName, KnownPod>>,
    /// Selectors of the pods that join, instead of the dataplane mode label.
    selectors: Option<EnablementSelectors>,
    /// Keys of the labels that decide: the dataplane mode, or those of the selectors.
    label_keys: BTreeSet<String>,
    /// The labels of each namespace that decide.
    namespaces: RefCell<BTreeMap<String, Labels>>,
    pub(super) listed: Cell<ReceivedLists>,
    /// This node's object; `None` if it does not exist or is unknown.
    pub(super) node_object: RefCell<Option<Node>>,
    /// The agents' DaemonSet.
    pub(super) daemon_set: RefCell<WatchedSet>,
    /// Whether the agent's own namespace is being deleted.
    pub(super) namespace_ends: Cell<bool>,
    /// Notified when annotations of pods may have to be updated.
    pub(crate) changed: Notify,
    /// Notified when pods may have to be searched for, or released.
    pub(crate) unsettled: Rc<Notify>,
    /// Notified when the node's taints may have changed.
    pub(super) node_changed: Notify,
    pub(crate) events: Rc<EventRecorder>,
    pub(crate) search: PodSearch,
    pub(crate) late_starts: LateStarts,
}

/// The agents' DaemonSet, as reported by its watch.
#[derive(Debug, Clone, Default)]
pub(super) enum WatchedSet {
    /// It is not watched, or was not received yet.
    #[default]
    Unknown,
    /// It exists; it may be being deleted.
    Exists(Box<DaemonSet>),
    Deleted,
}

/// Which initial lists were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ReceivedLists {
    pub(super) pods: bool,
    pub(super) namespaces: bool,
    pub(super) node: bool,
}

/// Namespace and name of a pod.
type PodName = (String, String);

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct KnownPod {
    /// The data that decides about enrolment; its uid is the one that the runtime knows.
    pub(super) workload: Arc<Workload>,
    /// The uid at the API server; a static pod's differs.
    pub(super) api_uid: String,
    pub(super) runtime_class: Option<String>,
    pub(super) finished: bool,
    /// Current value of the redirection annotation.
    pub(super) redirection: Option<String>,
    pub(super) is_proxy: bool,
    /// When the kubelet accepted it.
    pub(super) started: Option<SystemTime>,
    /// What its containers may do to their capture.
    pub(super) capabilities: Vec<ContainerCapabilities>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Creates an empty cluster.
    pub(crate) fn new(client: Client, node: &str, args: &ClusterArgs) -> Self {
        Self {
            client,
            node: node.to_owned(),
            host_proc: args.host_proc.clone(),
            own_namespace: args.pod_namespace.clone(),
            excluded: args
                .exclude_namespaces
                .iter()
                .filter(|n| !n.is_empty())
                .cloned()
                .collect(),
            pods: RefCell::default(),
            label_keys: match &args.enablement_selectors {
                Some(selectors) => selectors.keys(),
                None => [DATAPLANE_MODE.to_owned()].into(),
            },
            selectors: args.enablement_selectors.clone(),
            namespaces: RefCell::default(),
            listed: Cell::default(),
            node_object: RefCell::default(),
            daemon_set: RefCell::default(),
            namespace_ends: Cell::default(),
            changed: Notify::new(),
            unsettled: Rc::default(),
            node_changed: Notify::new(),
            events: Rc::new(EventRecorder::new(node)),
            search: PodSearch::default(),
            late_starts: LateStarts::default(),
        }
    }

    /// The uid of a pod, for runtimes that do not pass it.
    pub(crate) fn uid_of(&self, pod: &PodRef) -> Option<String> {
        self.pod(pod).map(|known| known.workload.uid.to_string())
    }

    /// The runtime class of a pod that runs in a virtual machine of its own, as far as its name
    /// shows.
    pub(crate) fn vm_runtime_class(&self, pod: &PodRef) -> Option<String> {
        let class = self.pod(pod)?.runtime_class?;
        is_vm_runtime(&class).then_some(class)
    }

    /// The networks of this node's pods; empty if the cluster does not record them.
    pub(crate) fn pod_networks(&self) -> Vec<IpNet> {
        let node = self.node_object.borrow();
        let cidrs = node.iter().flat_map(|node| &node.spec.pod_cidrs);
        cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
    }

    /// What the containers of a pod may do to their capture.
    pub(crate) fn capabilities_of(&self, pod: &PodRef) -> Vec<ContainerCapabilities> {
        let known = self.pod(pod);
        known
            .map(|known| known.capabilities.clone())
            .unwrap_or_default()
    }

    /// Whether all initial lists were received.
    pub(crate) fn is_synced(&self) -> bool {
        let listed = self.listed.get();
        listed.pods && listed.namespaces && listed.node
    }

    /// Decides whether a pod of this node belongs to the mesh, from current data.
    pub(crate) fn decide(&self, pod: &PodRef) -> Decision<Enrolment> {
        let PodRef {
            namespace,
            name,
            uid,
        } = pod;
        if self.excluded.contains(namespace) {
            return Decision::new(
                Enrolment::Skip,
                format!("namespace {namespace} is excluded (--exclude-namespaces)"),
            )
            .with_code(EnrolmentReason::NamespaceExcluded);
        }
        let Some(known) = self.pod(pod) else {
            let uid = uid.as_deref().unwrap_or("any uid");
            let reason = format!("pod {namespace}/{name} ({uid}) is unknown on this node");
            return Decision::new(Enrolment::Unknown, reason).with_code(EnrolmentReason::Unknown);
        };
        if known.finished {
            return Decision::new(Enrolment::Skip, "the pod has finished")
                .with_code(EnrolmentReason::Finished);
        }
        if known.is_proxy {
            return Decision::new(Enrolment::Skip, "the pod is a proxy of the mesh")
                .with_code(EnrolmentReason::MeshProxy);
        }
        let Workload {
            labels,
            annotations,
            host_network,
            ..
        } = &*known.workload;
        let namespaces = self.namespaces.borrow();
        let of_namespace = namespaces.get(namespace);
        let needs_namespace = match self.selectors {
            Some(_) => true,
            None => !labels.contains_key(DATAPLANE_MODE),
        };
        let is_ineligible = *host_network || annotations.contains_key(SIDECAR_STATUS);
        if of_namespace.is_none() && needs_namespace && !is_ineligible {
            return Decision::new(
                Enrolment::Unknown,
                format!("namespace {namespace} is unknown"),
            )
            .with_code(EnrolmentReason::Unknown);
        }
        let belongs = match &self.selectors {
            Some(selectors) => {
                let selected = of_namespace.and_then(|of| selectors.first_match(labels, of));
                belongs_by_selectors(selected, annotations, *host_network)
            }
            None => belongs_to_mesh(of_namespace, labels, annotations, *host_network),
        };
        decide_belonging(belongs, &known.workload, &self.node)
    }

    /// Returns a pod, if it is known and has that uid.
    pub(super) fn pod(&self, pod: &PodRef) -> Option<KnownPod> {
        let pods = self.pods.borrow();
        let known = pods.get(&(pod.namespace.clone(), pod.name.clone()))?;
        pod.uid
            .as_ref()
            .is_none_or(|uid| known.workload.uid == **uid)
            .then(|| known.clone())
    }

    /// All pods of this node.
    pub(super) fn pods(&self) -> Vec<KnownPod> {
        self.pods.borrow().values().cloned().collect()
    }

    /// Replaces all pods of this node.
    pub(super) fn set_pods(&self, pods: Vec<Pod>) {
        let known = pods
            .into_iter()
            .map(|pod| (name(&pod), self.known_pod(pod)));
        *self.pods.borrow_mut() = known.collect();
        self.listed.set(ReceivedLists {
            pods: true,
            ..self.listed.get()
        });
    }

    /// Adds or updates a pod of this node; returns whether any relevant field changed.
    pub(super) fn put_pod(&self, pod: Pod) -> bool {
        let (name, known) = (name(&pod), self.known_pod(pod));
        let mut pods = self.pods.borrow_mut();
        if pods.get(&name) == Some(&known) {
            return false;
        }
        pods.insert(name, known);
        true
    }

    /// Removes a deleted pod, unless another one of the same name has replaced it.
    pub(super) fn remove_pod(&self, pod: &Pod) {
        let mut pods = self.pods.borrow_mut();
        if pods
            .get(&name(pod))
            .is_some_and(|known| known.api_uid == pod.uid())
        {
            pods.remove(&name(pod));
        }
    }

    /// Records a written annotation, which the watch has not reported yet.
    pub(super) fn set_redirection(&self, pod: &PodRef, value: Option<&str>) {
        if let Some(known) = self
            .pods
            .borrow_mut()
            .get_mut(&(pod.namespace.clone(), pod.name.clone()))
            && pod
                .uid
                .as_ref()
                .is_none_or(|uid| known.workload.uid == **uid)
        {
            known.redirection = value.map(str::to_owned);
        }
    }

    /// Replaces all namespaces.
    pub(super) fn set_namespaces(&self, namespaces: &[Namespace]) {
        let labels = namespaces.iter().filter_map(|n| self.labels_of(n));
        *self.namespaces.borrow_mut() = labels.collect();
        namespaces.iter().for_each(|n| self.check_own_namespace(n));
        self.listed.set(ReceivedLists {
            namespaces: true,
            ..self.listed.get()
        });
    }

    /// Adds or updates a namespace; returns whether a label that decides changed.
    pub(super) fn put_namespace(&self, namespace: &Namespace) -> bool {
        self.check_own_namespace(namespace);
        let Some((name, labels)) = self.labels_of(namespace) else {
            return false;
        };
        let mut namespaces = self.namespaces.borrow_mut();
        namespaces.insert(name, labels.clone()) != Some(labels)
    }

    /// Removes a deleted namespace; its pods were deleted before.
    pub(super) fn remove_namespace(&self, namespace: &Namespace) {
        if let Some(name) = &namespace.metadata.name {
            self.namespaces.borrow_mut().remove(name);
        }
    }

    /// Name of a namespace, and its labels that decide.
    fn labels_of(&self, namespace: &Namespace) -> Option<(String, Labels)> {
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        let name = namespace.metadata.name.clone()?;
        Some((name, self.relevant(labels)))
    }

    /// The labels that decide.
    fn relevant(&self, mut labels: Labels) -> Labels {
        labels.retain(|key, _| self.label_keys.contains(key));
        labels
    }

    /// Records whether the agent's own namespace is being deleted.
    fn check_own_namespace(&self, namespace: &Namespace) {
        if namespace.metadata.name == self.own_namespace && self.own_namespace.is_some() {
            let ends = namespace.metadata.deletion_timestamp.is_some();
            self.namespace_ends.set(ends);
        }
    }

    fn known_pod(&self, pod: Pod) -> KnownPod {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let is_proxy = self.own_namespace.as_deref() == Some(pod.namespace())
            && labels
                .get(PROXY_LABEL.0)
                .is_some_and(|v| v == PROXY_LABEL.1);
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let redirection = annotations.get(REDIRECTION).cloned();
        let workload = Workload {
            uid: pod.runtime_uid().into(),
            name: pod.name().into(),
            namespace: pod.namespace().into(),
            workload_ips: pod
                .status
                .pod_ips
                .iter()
                .map(|a| a.ip)
                .collect::<Vec<IpAddr>>(),
            service_account: match pod.spec.service_account_name.as_str() {
                "" => "default".into(),
                account => account.into(),
            },
            node: pod.spec.node_name.as_str().into(),
            labels: self.relevant(labels),
            annotations: annotations
                .into_iter()
                .filter(|(key, _)| is_relevant(key))
                .collect(),
            host_network: pod.spec.host_network,
            ..Workload::default()
        };
        KnownPod {
            workload: Arc::new(workload),
            api_uid: pod.uid().to_owned(),
            runtime_class: pod.spec.runtime_class_name.clone(),
            finished: pod.has_finished(),
            redirection,
            is_proxy,
            started: pod.started(),
            capabilities: capabilities::of(&pod.spec),
        }
    }
}

impl KnownPod {
    /// Namespace, name and uid of the pod.
    pub(super) fn reference(&self) -> PodRef {
        let Workload {
            namespace,
            name,
            uid,
            ..
        } = &*self.workload;
        PodRef {
            namespace: namespace.to_string(),
            name: name.to_string(),
            uid: Some(uid.to_string()),
        }
    }
}

/// Whether a runtime class has the name of a runtime that starts a virtual machine for each pod:
/// Kata Containers and what builds on it, and Azure's and Firecracker's names for it.
fn is_vm_runtime(class: &str) -> bool {
    let class = class.to_ascii_lowercase();
    let mut words = class.split(['-', '.', '_']);
    words.any(|w| matches!(w, "kata" | "katacontainers" | "firecracker" | "fc" | "vm"))
}

/// Whether the agent reads an annotation.
fn is_relevant(key: &str) -> bool {
    key == SIDECAR_STATUS || redirect::ANNOTATIONS.contains(&key)
}

fn name(pod: &Pod) -> PodName {
    (pod.namespace().to_owned(), pod.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_classes_of_virtual_machines_are_known_by_name() {
        for class in [
            "kata",
            "kata-qemu",
            "kata-clh",
            "kata-mshv-vm-isolation",
            "kata-cc-isolation",
            "kata-fc",
            "katacontainers.io",
        ] {
            assert!(is_vm_runtime(class), "{class}");
        }
        for class in ["runc", "crun", "gvisor", "nvidia", "wasmtime", "katana"] {
            assert!(!is_vm_runtime(class), "{class}");
        }
    }
}
