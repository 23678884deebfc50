//! A node of a cluster on which the built agent and proxy run, the proxy under istiod.

use std::fs;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::istiod::{NAME, NAMESPACE, address};
use super::objects::{Node, Pod};
use super::{Cluster, root};
use crate::cni::{Call, config, path_of};
use crate::node;
use crate::sandbox::{happens, until};

/// Writes the root that istiod has put into the proxy's namespace.
pub(super) fn project_root(cluster: &Cluster, processes: &node::Node) {
    let root = until("the proxy's namespace has the root", || root(cluster, NAMESPACE));
    let staged = processes.file("root.staged");
    fs::write(&staged, root).unwrap();
    fs::rename(staged, processes.file("root-cert.pem")).unwrap();
}

/// Starts the proxy of a node and waits until it is ready.
pub(super) fn start_proxy(processes: &mut node::Node, place: &Node) -> u32 {
    let server = format!("https://{}", address());
    let [token, root] = ["token", "root-cert.pem"].map(|f| processes.file(f).to_str().unwrap().to_owned());
    let ip = place.ips[0].to_string();
    let proxy = processes.start_controlled_proxy(&[
        ("NODE_NAME", &place.name),
        ("POD_NAME", &place.proxy.name),
        ("POD_NAMESPACE", NAMESPACE),
        ("INSTANCE_IP", &ip),
        ("XDS_ADDRESS", &server),
        ("CA_ADDRESS", &server),
        ("ALT_XDS_HOSTNAME", NAME), // there is no DNS here
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

/// A node with an agent and a proxy. Its pods live in one Kubernetes namespace, which is in the mesh.
#[derive(Debug)]
pub struct MeshNode {
    /// Its place in the cluster.
    pub place: Node,
    /// Its processes.
    pub processes: node::Node,
    /// The proxy's process id.
    pub proxy: u32,
    namespace: String,
    /// What the agent knows.
    pods: Vec<Value>,
}

impl MeshNode {
    /// Makes the node, and starts its agent and its proxy.
    pub fn start(cluster: &Cluster, name: &str, namespace: &str) -> Self {
        let place = cluster.node(name);
        let processes = node::Node::within(name, "{}", place.netns.try_clone().unwrap());
        let mut node = Self { place, processes, proxy: 0, namespace: namespace.to_owned(), pods: Vec::new() };
        node.tell_agent();
        node.processes.start_agent();
        fs::write(node.processes.file("token"), cluster.proxy_token(&node.place)).unwrap();
        node.project_root(cluster);
        node.start_proxy();
        node
    }

    /// Writes the root that istiod has put into the proxy's namespace, as a kubelet keeps it in the proxy's pod.
    pub fn project_root(&self, cluster: &Cluster) {
        project_root(cluster, &self.processes);
    }

    /// Starts the proxy and waits until it is ready.
    pub fn start_proxy(&mut self) {
        self.proxy = start_proxy(&mut self.processes, &self.place);
    }

    /// Makes a pod and joins it to the mesh, which istiod then knows.
    pub fn pod(&mut self, cluster: &Cluster, name: &str) -> Pod {
        let pod = cluster.pod(&self.place, &self.namespace, name);
        self.enrol(&pod);
        cluster.announce(&pod, true);
        pod
    }

    /// Joins a pod to the mesh by a CNI ADD.
    pub fn enrol(&mut self, pod: &Pod) {
        self.pods.push(json!({
            "name": pod.name,
            "namespace": pod.namespace,
            "serviceAccount": pod.account,
            "node": "node",
            "workloadIps": pod.ips,
        }));
        self.tell_agent();
        // The agent reads its file again a moment later, and until then it does not know the pod.
        let mut said = String::new();
        let enrolled = happens(|| {
            let output = self.call("ADD", pod).run();
            said = String::from_utf8_lossy(&output.stdout).into_owned();
            let known = self.processes.pods().iter().any(|p| p["name"] == *pod.name);
            (output.status.success() && known).then_some(())
        });
        assert!(enrolled.is_some(), "the pod was not enrolled: {said}");
    }

    /// A pod leaves the mesh by a CNI DEL.
    pub fn release(&mut self, pod: &Pod) {
        assert!(self.call("DEL", pod).run().status.success());
        self.pods.retain(|p| p["name"] != *pod.name);
        self.tell_agent();
    }

    /// Waits for a line with all of these words in the proxy's log.
    #[track_caller]
    pub fn log_with(&self, words: &[&str]) -> String {
        until(&format!("a line with {words:?} in the log of the proxy on {}", self.place.name), || {
            let log = self.processes.log("proxy");
            log.lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned)
        })
    }

    /// How the proxy says that it stands with istiod.
    pub fn line(&self) -> String {
        self.status()["controlPlane"]["line"].as_str().unwrap().to_owned()
    }

    /// What the proxy says of itself.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.processes.get("127.0.0.1:15000", "/status").unwrap().1).unwrap()
    }

    /// The agent has its pods from a file: it does not know Kubernetes.
    fn tell_agent(&self) {
        let labels = json!({ "istio.io/dataplane-mode": "ambient" });
        let namespace = json!({ "name": self.namespace, "labels": labels });
        let mesh = json!({ "namespaces": [namespace], "workloads": self.pods }); // JSON is YAML
        let staged = self.processes.file("mesh.staged");
        fs::write(&staged, mesh.to_string()).unwrap();
        fs::rename(staged, self.processes.file("mesh.yaml")).unwrap();
    }

    fn call(&self, verb: &str, pod: &Pod) -> Call {
        let with_length = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        let [v4, v6] = pod.ips.each_ref().map(with_length);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.uid
        );
        Call::new(verb, &path_of(&pod.netns), &config(&self.processes.agent_socket(), &[&v4, &v6]))
            .with("CNI_ARGS", Some(&args))
            .with("CNI_CONTAINERID", Some(&pod.uid.replace('-', "")))
    }
}
