//! A cluster node with the built agent, which reads a mesh file, and the built proxy under istiod.

use std::fs;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::istiod::{NAME, NAMESPACE, address};
use super::objects::{ClusterNode, ClusterPod};
use super::{Cluster, root};
use crate::cni::{Call, config, path_of};
use crate::control_plane::is_in_sync;
use crate::node;
use crate::sandbox::{eventually, until};

/// Writes the root that istiod has written into the proxy's namespace.
pub(super) fn project_root(cluster: &Cluster, processes: &node::TestNode) {
    let root = until("the proxy's namespace has the root", || {
        root(cluster, NAMESPACE)
    });
    let staged = processes.file("root.staged");
    fs::write(&staged, root).unwrap();
    fs::rename(staged, processes.file("root-cert.pem")).unwrap();
}

/// Starts the proxy of a node and waits until it is ready.
pub(super) fn start_proxy(processes: &mut node::TestNode, cluster_node: &ClusterNode) -> u32 {
    let server = format!("https://{}", address());
    let [token, root] =
        ["token", "root-cert.pem"].map(|f| processes.file(f).to_str().unwrap().to_owned());
    let ip = cluster_node.ips[0].to_string();
    let proxy = processes.start_controlled_proxy(&[
        ("NODE_NAME", &cluster_node.name),
        ("POD_NAME", &cluster_node.proxy.name),
        ("POD_NAMESPACE", NAMESPACE),
        ("INSTANCE_IP", &ip),
        ("XDS_ADDRESS", &server),
        ("CA_ADDRESS", &server),
        ("ALT_XDS_HOSTNAME", NAME), // without DNS here
        ("ALT_CA_HOSTNAME", NAME),
        ("XDS_ROOT_CA", &root),
        ("CA_ROOT_CA", &root),
        ("AUTH_TOKEN", &token),
    ]);
    until("the proxy is ready", || {
        let readiness = processes.get("127.0.0.1:15021", "/healthz/ready");
        readiness.ok().filter(|(status, _)| *status == 200)
    });
    proxy
}

/// A node with an agent and a proxy. Its pods are in one Kubernetes namespace, which is in the
/// mesh.
#[derive(Debug)]
pub struct MeshNode {
    /// The node's object and network namespace.
    pub cluster_node: ClusterNode,
    /// The agent and the proxy.
    pub processes: node::TestNode,
    /// The proxy's process id.
    pub proxy: u32,
    namespace: String,
    /// The pods in the agent's mesh file.
    pods: Vec<Value>,
}

impl MeshNode {
    /// Creates the node and starts its agent and proxy.
    pub fn start(cluster: &Cluster, name: &str, namespace: &str) -> Self {
        let cluster_node = cluster.node(name);
        let processes = node::TestNode::within(name, "{}", cluster_node.netns.try_clone().unwrap());
        let mut node = Self {
            cluster_node,
            processes,
            proxy: 0,
            namespace: namespace.to_owned(),
            pods: Vec::new(),
        };
        node.write_mesh_file();
        node.processes.start_agent();
        fs::write(
            node.processes.file("token"),
            cluster.proxy_token(&node.cluster_node),
        )
        .unwrap();
        node.project_root(cluster);
        node.start_proxy();
        node
    }

    /// Writes the root that istiod has written into the proxy's namespace, as a kubelet mounts it
    /// in the proxy's pod.
    pub fn project_root(&self, cluster: &Cluster) {
        project_root(cluster, &self.processes);
    }

    /// Starts the proxy and waits until it is ready.
    pub fn start_proxy(&mut self) {
        self.proxy = start_proxy(&mut self.processes, &self.cluster_node);
    }

    /// Creates a pod, enrols it, and announces that to istiod.
    pub fn pod(&mut self, cluster: &Cluster, name: &str) -> ClusterPod {
        let pod = cluster.pod(&self.cluster_node, &self.namespace, name);
        self.enrol(&pod);
        cluster.announce(&pod, true);
        pod
    }

    /// Enrols a pod by a CNI ADD.
    pub fn enrol(&mut self, pod: &ClusterPod) {
        self.pods.push(json!({
            "name": pod.name,
            "namespace": pod.namespace,
            "serviceAccount": pod.account,
            "node": "node",
            "workloadIps": pod.ips,
        }));
        self.write_mesh_file();
        // The agent does not know the pod until it has reloaded its mesh file.
        let mut output = String::new();
        let enrolled = eventually(|| {
            let add = self.call("ADD", pod).run();
            output = String::from_utf8_lossy(&add.stdout).into_owned();
            let known = self.processes.pods().iter().any(|p| p.name == pod.name);
            (add.status.success() && known).then_some(())
        });
        assert!(enrolled.is_some(), "the pod was not enrolled: {output}");
    }

    /// Removes a pod by a CNI DEL.
    pub fn release(&mut self, pod: &ClusterPod) {
        assert!(self.call("DEL", pod).run().status.success());
        self.pods.retain(|p| p["name"] != *pod.name);
        self.write_mesh_file();
    }

    /// Waits for a line of the proxy's log that contains all of these parts.
    #[track_caller]
    pub fn log_with(&self, words: &[&str]) -> String {
        until(
            &format!(
                "a line with {words:?} in the log of the proxy on {}",
                self.cluster_node.name
            ),
            || {
                let log = self.processes.log("proxy");
                log.lines()
                    .find(|l| words.iter().all(|w| l.contains(w)))
                    .map(str::to_owned)
            },
        )
    }

    /// Whether the proxy is connected to istiod and has received everything on this connection.
    pub fn is_in_sync(&self) -> bool {
        is_in_sync(&self.status()["controlPlane"])
    }

    /// Whether the proxy is connected to istiod.
    pub fn is_connected(&self) -> bool {
        self.status()["controlPlane"]["connected"] == true
    }

    /// The proxy's `/status`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.processes.get("127.0.0.1:15000", "/status").unwrap().1).unwrap()
    }

    /// Writes the agent's mesh file: this agent does not use Kubernetes.
    fn write_mesh_file(&self) {
        let labels = json!({ "istio.io/dataplane-mode": "ambient" });
        let namespace = json!({ "name": self.namespace, "labels": labels });
        let mesh = json!({ "namespaces": [namespace], "workloads": self.pods }); // JSON is YAML
        let staged = self.processes.file("mesh.staged");
        fs::write(&staged, mesh.to_string()).unwrap();
        fs::rename(staged, self.processes.file("mesh.yaml")).unwrap();
    }

    fn call(&self, verb: &str, pod: &ClusterPod) -> Call {
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
        .with("CNI_CONTAINERID", Some(&pod.uid.replace('-', "")))
    }
}
