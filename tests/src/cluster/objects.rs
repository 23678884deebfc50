//! Nodes and pods as a cluster has them: an object that istiod sees, and a network namespace for what runs there.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use netns::NetNs;
use serde_json::{Value, json};

use super::Cluster;
use super::fabric::{self, NODES, host_ips};
use super::istiod::NAMESPACE;

/// The annotation that tells istiod that a pod has been enrolled.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The service account of nodes' proxies.
const PROXY: &str = "ztunnel";

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where its proxy runs.
    pub netns: NetNs,
    /// Its addresses, IPv4 first.
    pub ips: [IpAddr; 2],
    /// The pod that its proxy is, for istiod.
    pub proxy: ProxyPod,
    number: u8,
}

/// The pod of a node's proxy: an object, for the proxy's process is started by the test.
#[derive(Debug)]
pub struct ProxyPod {
    /// Its name, in `istio-system`.
    pub name: String,
    uid: String,
}

/// A pod with a namespace of its own. Its object is deleted with it.
#[derive(Debug)]
pub struct Pod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account, which is its identity.
    pub account: String,
    /// As the API server has given it.
    pub uid: String,
    /// Where it runs.
    pub netns: NetNs,
    /// Its addresses, IPv4 first.
    pub ips: [IpAddr; 2],
}

impl Cluster {
    /// Makes a node that is ready, with the object of a proxy on it.
    pub fn node(&self, name: &str) -> Node {
        static HOSTS: AtomicU8 = AtomicU8::new(1);
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        assert!(number <= NODES, "too many nodes");
        let ips = host_ips(number);
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/hostname": name,
                    "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/region": "region",
                    "topology.kubernetes.io/zone": format!("zone-{number}"),
                },
            },
        });
        let addresses = ips.map(|ip| json!({ "type": "InternalIP", "address": ip }));
        self.apply_with_status(&node, &json!({ "addresses": addresses, "conditions": [ready()] }));
        let proxy = format!("ztunnel-{name}");
        let labels = json!({ "app": "ztunnel" });
        let object = self.apply_pod([NAMESPACE, &proxy, PROXY, name], &labels, ips, ips);
        let uid = text(&object["metadata"]["uid"]);
        let netns = self.kubernetes.fabric.host(number);
        Node { name: name.to_owned(), netns, ips, proxy: ProxyPod { name: proxy, uid }, number }
    }

    /// Makes a Kubernetes namespace with these labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: serde_json::Map<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        self.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }));
    }

    /// Makes a pod that runs and is ready, with the label `app` and a service account of its name. It is not enrolled.
    pub fn pod(&self, node: &Node, namespace: &str, name: &str) -> Pod {
        self.pod_of(node, namespace, name, name)
    }

    /// The same with the label and the service account of an application that may have more pods.
    pub fn pod_of(&self, node: &Node, namespace: &str, app: &str, name: &str) -> Pod {
        let metadata = json!({ "name": app, "namespace": namespace });
        self.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
        let (netns, ips) = fabric::pod(&node.netns, node.number);
        let object = self.apply_pod([namespace, name, app, &node.name], &json!({ "app": app }), ips, node.ips);
        let uid = text(&object["metadata"]["uid"]);
        let [namespace, name, account] = [namespace, name, app].map(str::to_owned);
        Pod { namespace, name, account, uid, netns, ips }
    }

    /// Says of a pod that it has been enrolled, as a node's agent does; or no longer.
    pub fn announce(&self, pod: &Pod, enrolled: bool) {
        let value = enrolled.then_some("enabled");
        let change = json!({ "metadata": { "annotations": { REDIRECTION: value } } });
        self.kubernetes.api.patch(&pod.path(), &change).unwrap();
    }

    /// Makes a service with two addresses for the pods of this name.
    pub fn service(&self, namespace: &str, app: &str, port: u16, target: u16) -> [IpAddr; 2] {
        let service = self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": app, "namespace": namespace },
            "spec": {
                "selector": { "app": app },
                "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{ "name": "tcp", "port": port, "targetPort": target }],
            },
        }));
        [0, 1].map(|i| text(&service["spec"]["clusterIPs"][i]).parse().unwrap())
    }

    /// Makes a policy: `AuthorizationPolicy` or `PeerAuthentication`.
    pub fn policy(&self, kind: &str, namespace: &str, name: &str, spec: &Value) {
        let metadata = json!({ "name": name, "namespace": namespace });
        self.apply(&json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec }));
    }

    /// The token by which a node's proxy is known to istiod.
    pub fn proxy_token(&self, node: &Node) -> String {
        let pod = (node.proxy.name.as_str(), node.proxy.uid.as_str());
        self.kubernetes.api.token(NAMESPACE, PROXY, Some("istio-ca"), Some(pod)).unwrap()
    }

    /// Deletes a pod's object; its namespace stays as long as the value is held.
    pub fn delete(&self, pod: &Pod) {
        self.kubernetes.api.delete(&pod.path()).unwrap();
    }

    /// Makes an object as it is told.
    pub fn apply(&self, object: &Value) -> Value {
        self.kubernetes.api.apply(object).unwrap()
    }

    fn apply_pod(&self, names: [&str; 4], labels: &Value, ips: [IpAddr; 2], host_ips: [IpAddr; 2]) -> Value {
        let [namespace, name, account, node] = names;
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "hostNetwork": ips == host_ips,
                "containers": [{ "name": "main", "image": "none" }],
            },
        });
        let list = |ips: [IpAddr; 2]| ips.map(|ip| json!({ "ip": ip }));
        let status = json!({
            "phase": "Running",
            "podIP": ips[0],
            "podIPs": list(ips),
            "hostIP": host_ips[0],
            "hostIPs": list(host_ips),
            "conditions": [ready()],
        });
        self.apply_with_status(&object, &status)
    }

    fn apply_with_status(&self, object: &Value, status: &Value) -> Value {
        self.apply(object);
        let path = format!("{}/status", super::api::path(object));
        self.kubernetes.api.patch(&path, &json!({ "status": status })).unwrap()
    }
}

impl Pod {
    /// The uid that istiod gives to its workload.
    pub fn workload_uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }
}

fn ready() -> Value {
    json!({ "type": "Ready", "status": "True" })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
