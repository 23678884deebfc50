//! A node whose agent learns its pods from the API server, with only the rights that it needs.

use std::fs;
use std::net::IpAddr;
use std::process::Output;

use agent_status::{PodStatus, UnreadyReason, VerificationState};
use serde_json::json;

use super::Cluster;
use super::istiod::NAMESPACE;
use super::mesh_node::{project_root, start_proxy};
use super::objects::{ClusterNode, ClusterPod};
use crate::cni::{Call, config, path_of};
use crate::iptables::run;
use crate::node;
use crate::sandbox::until;

/// The name of the agent's service account and role.
const ACCOUNT: &str = "underpass-agent";

/// A node with an agent, and with a proxy under istiod. The test starts both.
#[derive(Debug)]
pub struct AgentNode {
    /// The node's object and network namespace.
    pub cluster_node: ClusterNode,
    /// The agent and the proxy.
    pub processes: node::TestNode,
    kubeconfig: String,
}

impl AgentNode {
    /// A node without processes.
    pub fn new(cluster: &Cluster, name: &str) -> Self {
        let cluster_node = cluster.node(name);
        let processes = node::TestNode::within(name, "{}", cluster_node.netns.try_clone().unwrap());
        Self::grant(cluster);
        let token = cluster
            .kubernetes
            .api
            .token(NAMESPACE, ACCOUNT, None, None)
            .unwrap();
        let kubeconfig = cluster
            .kubernetes
            .kubeconfig(&format!("agent-{name}"), &token);
        fs::write(processes.file("token"), cluster.proxy_token(&cluster_node)).unwrap();
        project_root(cluster, &processes);
        Self {
            cluster_node,
            processes,
            kubeconfig,
        }
    }

    /// A node with a running agent and proxy, ready for pods.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        let mut node = Self::new(cluster, name);
        node.start_agent(&[]);
        node.start_proxy();
        node.await_ready();
        node
    }

    /// Starts the agent and waits until it serves, ready or not; returns its process id.
    pub fn start_agent(&mut self, arguments: &[&str]) -> u32 {
        let own = ["--exclude-namespaces", "kube-system,excluded"];
        let arguments: Vec<&str> = own.iter().chain(arguments).copied().collect();
        self.processes
            .start_agent_of_cluster(&self.cluster_node.name, &self.kubeconfig, &arguments)
    }

    /// Starts the proxy and waits until it is ready; returns its process id.
    pub fn start_proxy(&mut self) -> u32 {
        start_proxy(&mut self.processes, &self.cluster_node)
    }

    /// Waits until the agent reports that it is ready.
    #[track_caller]
    pub fn await_ready(&self) {
        until("the agent is ready", || {
            (self.readiness().0 == 200).then_some(())
        });
    }

    /// The agent's readiness: the status of `/readyz`, and the reason why it is not ready.
    pub fn readiness(&self) -> (u16, Option<UnreadyReason>) {
        let status = self.processes.get("127.0.0.1:15014", "/readyz").unwrap().0;
        (status, self.processes.status().unready_code)
    }

    /// Runs ADD for a pod, like the runtime.
    pub fn add(&self, pod: &ClusterPod) -> Output {
        self.call("ADD", pod).run()
    }

    /// Runs ADD for a pod, with a deadline that is meant to pass.
    pub fn add_within(&self, pod: &ClusterPod, milliseconds: u64) -> Output {
        self.call("ADD", pod).with_deadline(milliseconds).run()
    }

    /// Runs DEL for a pod.
    pub fn del(&self, pod: &ClusterPod) -> Output {
        self.call("DEL", pod).run()
    }

    /// The pod in the agent's `/status`.
    pub fn status(&self, pod: &ClusterPod) -> Option<PodStatus> {
        self.processes
            .pods()
            .into_iter()
            .find(|p| p.uid.as_ref() == Some(&pod.uid))
    }

    /// Waits until the pod's status satisfies a condition.
    #[track_caller]
    pub fn await_status(
        &self,
        what: &str,
        pod: &ClusterPod,
        holds: impl Fn(&PodStatus) -> bool,
    ) -> PodStatus {
        until(what, || self.status(pod).filter(&holds))
    }

    /// Waits until the pod is verified.
    #[track_caller]
    pub fn await_verified(&self, pod: &ClusterPod) -> PodStatus {
        self.await_status("the pod is verified", pod, |p| {
            p.verification
                .as_ref()
                .is_some_and(|v| v.state == VerificationState::Verified)
        })
    }

    /// Drops all packets to and from the API server, or no longer does.
    pub fn block_api_server(&self, block: bool) {
        let filter = "table inet blocked {
            chain input { type filter hook input priority 0; ip saddr 10.200.0.10 tcp sport 6443 \
                      drop; }
            chain output { type filter hook output priority 0; ip daddr 10.200.0.10 tcp dport 6443 \
                      drop; }
        }";
        run(
            &self.cluster_node.netns,
            "nft",
            "-f -",
            if block {
                filter
            } else {
                "delete table inet blocked"
            },
        );
    }

    /// Grants exactly the rights that docs/kubernetes.md lists.
    pub fn grant(cluster: &Cluster) {
        let rule = |resources: &[&str], verbs: &[&str]| {
            json!({
                "apiGroups": [""],
                "resources": resources,
                "verbs": verbs,
            })
        };
        let role = "rbac.authorization.k8s.io/v1";
        let metadata = json!({ "name": ACCOUNT });
        cluster.apply(&json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "name": ACCOUNT, "namespace": NAMESPACE },
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
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": ACCOUNT,
            },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE }],
        }));
    }

    /// Revokes the rights that are not limited to the agent's namespace.
    pub fn revoke(cluster: &Cluster) {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{ACCOUNT}");
        cluster.kubernetes.api.delete(&path).unwrap();
    }

    /// A plugin call for a pod.
    pub fn call(&self, verb: &str, pod: &ClusterPod) -> Call {
        let with_length = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        let [v4, v6] = pod.ips.each_ref().map(with_length);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.uid
        );
        Call::new(
            verb,
            &path_of(&pod.netns),
            &config(&self.processes.agent_socket(), &[&v4, &v6]),
        )
        .with("CNI_ARGS", Some(&args))
        .with("CNI_CONTAINERID", Some(&container_of(pod)))
    }
}

/// The container id of a pod's sandbox.
pub fn container_of(pod: &ClusterPod) -> String {
    pod.uid.replace('-', "").repeat(2)
}
