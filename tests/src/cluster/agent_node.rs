//! A node whose agent knows its pods from the API server, with the rights that it needs and no others.

use std::fs;
use std::net::IpAddr;
use std::process::Output;

use serde_json::{Value, json};

use super::Cluster;
use super::istiod::NAMESPACE;
use super::mesh_node::{project_root, start_proxy};
use super::objects::{Node, Pod};
use crate::cni::{Call, config, path_of};
use crate::iptables::run;
use crate::node;
use crate::sandbox::until;

/// The agent's service account, and its role.
const ACCOUNT: &str = "underpass-agent";

/// A node with an agent, and with a proxy under istiod. What runs there is started by the test.
#[derive(Debug)]
pub struct AgentNode {
    /// Its place in the cluster.
    pub place: Node,
    /// Its processes.
    pub processes: node::Node,
    kubeconfig: String,
}

impl AgentNode {
    /// Nothing runs yet.
    pub fn new(cluster: &Cluster, name: &str) -> Self {
        let place = cluster.node(name);
        let processes = node::Node::within(name, "{}", place.netns.try_clone().unwrap());
        grant(cluster);
        let token = cluster.kubernetes.api.token(NAMESPACE, ACCOUNT, None, None).unwrap();
        let kubeconfig = cluster.kubernetes.kubeconfig(&format!("agent-{name}"), &token);
        fs::write(processes.file("token"), cluster.proxy_token(&place)).unwrap();
        project_root(cluster, &processes);
        Self { place, processes, kubeconfig }
    }

    /// With its agent and its proxy, ready for pods.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        let mut node = Self::new(cluster, name);
        node.start_agent(&[]);
        node.start_proxy();
        node.await_ready();
        node
    }

    /// Starts the agent, which serves then and may not be ready; returns its process id.
    pub fn start_agent(&mut self, arguments: &[&str]) -> u32 {
        let own = ["--exclude-namespaces", "kube-system,excluded"];
        let arguments: Vec<&str> = own.iter().chain(arguments).copied().collect();
        self.processes.start_agent_of_cluster(&self.place.name, &self.kubeconfig, &arguments)
    }

    /// Starts the proxy and waits until it is ready; returns its process id.
    pub fn start_proxy(&mut self) -> u32 {
        start_proxy(&mut self.processes, &self.place)
    }

    /// Waits until the agent says that it is ready.
    #[track_caller]
    pub fn await_ready(&self) {
        until("the agent is ready", || (self.readiness().0 == 200).then_some(()));
    }

    /// What the agent says of its readiness.
    pub fn readiness(&self) -> (u16, String) {
        self.processes.get("127.0.0.1:15014", "/readyz").unwrap()
    }

    /// An ADD of a pod, as the runtime makes it.
    pub fn add(&self, pod: &Pod) -> Output {
        self.call("ADD", pod).run()
    }

    /// A DEL.
    pub fn del(&self, pod: &Pod) -> Output {
        self.call("DEL", pod).run()
    }

    /// What the agent says of a pod.
    pub fn status(&self, pod: &Pod) -> Option<Value> {
        self.processes.pods().into_iter().find(|p| p["uid"] == *pod.uid)
    }

    /// Waits until that holds.
    #[track_caller]
    pub fn await_status(&self, what: &str, pod: &Pod, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.status(pod).filter(&holds))
    }

    /// Waits until the pod is in the mesh, as measured.
    #[track_caller]
    pub fn await_verified(&self, pod: &Pod) -> Value {
        self.await_status("the pod is verified", pod, |p| p["verification"]["state"] == "verified")
    }

    /// Cuts the way to the API server, in both directions and without a word, or mends it.
    pub fn cut_off(&self, cut: bool) {
        let filter = "table inet cut {
            chain input { type filter hook input priority 0; ip saddr 10.200.0.10 tcp sport 6443 drop; }
            chain output { type filter hook output priority 0; ip daddr 10.200.0.10 tcp dport 6443 drop; }
        }";
        run(&self.place.netns, "nft", "-f -", if cut { filter } else { "delete table inet cut" });
    }

    /// A call of the plugin for a pod.
    pub fn call(&self, verb: &str, pod: &Pod) -> Call {
        let with_length = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        let [v4, v6] = pod.ips.each_ref().map(with_length);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.uid
        );
        Call::new(verb, &path_of(&pod.netns), &config(&self.processes.agent_socket(), &[&v4, &v6]))
            .with("CNI_ARGS", Some(&args))
            .with("CNI_CONTAINERID", Some(&container_of(pod)))
    }
}

/// The id of a pod's sandbox.
pub fn container_of(pod: &Pod) -> String {
    pod.uid.replace('-', "").repeat(2)
}

/// Exactly what docs/kubernetes.md says that the agent needs.
fn grant(cluster: &Cluster) {
    let rule =
        |resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [""], "resources": resources, "verbs": verbs });
    let role = "rbac.authorization.k8s.io/v1";
    let metadata = json!({ "name": ACCOUNT });
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": ACCOUNT, "namespace": NAMESPACE },
    }));
    cluster.apply(&json!({
        "apiVersion": role, "kind": "ClusterRole", "metadata": metadata,
        "rules": [
            rule(&["pods", "namespaces"], &["get", "list", "watch"]),
            rule(&["nodes"], &["list", "watch", "patch"]),
            rule(&["pods/status"], &["patch"]),
            rule(&["events"], &["create", "patch"]),
        ],
    }));
    cluster.apply(&json!({
        "apiVersion": role, "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT },
        "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE }],
    }));
}
