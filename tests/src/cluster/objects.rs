//! Nodes and pods of a cluster: an object that istiod sees, and a network namespace for their
//! processes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use istio::annotation::REDIRECTION;
use netns::NetNs;
use serde_json::{Value, json};

use super::Cluster;
use super::fabric::{self, NODES, host_ips};
use super::istiod::NAMESPACE;

/// The service account of nodes' proxies.
const PROXY: &str = "ztunnel";

/// A node of the cluster.
#[derive(Debug)]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// The network namespace of its proxy.
    pub netns: NetNs,
    /// Its addresses, IPv4 first.
    pub ips: [IpAddr; 2],
    /// The pod object of its proxy.
    pub proxy: ProxyPod,
    number: u8,
}

/// The pod of a node's proxy. It is only an object: the test starts the proxy's process.
#[derive(Debug)]
pub struct ProxyPod {
    /// Its name, in `istio-system`.
    pub name: String,
    uid: String,
}

/// A pod: an object and a network namespace.
#[derive(Debug)]
pub struct ClusterPod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account, which is its identity.
    pub account: String,
    /// Its uid, assigned by the API server.
    pub uid: String,
    /// Its network namespace.
    pub netns: NetNs,
    /// Its addresses, IPv4 first.
    pub ips: [IpAddr; 2],
}

impl Cluster {
    /// Creates a ready node with a proxy pod object.
    pub fn node(&self, name: &str) -> ClusterNode {
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
        self.apply_with_status(
            &node,
            &json!({ "addresses": addresses, "conditions": [ready()] }),
        );
        let proxy = format!("ztunnel-{name}");
        let labels = json!({ "app": "ztunnel" });
        let object = self.apply_pod([NAMESPACE, &proxy, PROXY, name], &labels, ips, ips);
        let uid = text(&object["metadata"]["uid"]);
        let netns = self.kubernetes.fabric.host(number);
        ClusterNode {
            name: name.to_owned(),
            netns,
            ips,
            proxy: ProxyPod { name: proxy, uid },
            number,
        }
    }

    /// Creates a Kubernetes namespace with these labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: serde_json::Map<_, _> = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), json!(v)))
            .collect();
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        }));
    }

    /// Creates a running, ready pod with the label `app` and a service account of its name. It is
    /// not enrolled.
    pub fn pod(&self, node: &ClusterNode, namespace: &str, name: &str) -> ClusterPod {
        self.pod_of(node, namespace, name, name)
    }

    /// Creates such a pod with the label and the service account of another name.
    pub fn pod_of(&self, node: &ClusterNode, namespace: &str, app: &str, name: &str) -> ClusterPod {
        let metadata = json!({ "name": app, "namespace": namespace });
        self.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
        let (netns, ips) = fabric::pod(&node.netns, node.number);
        let object = self.apply_pod(
            [namespace, name, app, &node.name],
            &json!({ "app": app }),
            ips,
            node.ips,
        );
        let uid = text(&object["metadata"]["uid"]);
        let [namespace, name, account] = [namespace, name, app].map(str::to_owned);
        ClusterPod {
            namespace,
            name,
            account,
            uid,
            netns,
            ips,
        }
    }

    /// Creates the mirror pod of a static pod; the uid of the pod is that of the runtime, a digest.
    pub fn static_pod(&self, node: &ClusterNode, namespace: &str, name: &str) -> ClusterPod {
        let (netns, ips) = fabric::pod(&node.netns, node.number);
        let uid = format!("{:032x}", u128::from(node.number) << 64 | 0x5a);
        let digests = ["config.hash", "config.mirror"];
        let annotations: serde_json::Map<String, Value> = digests
            .map(|key| (format!("kubernetes.io/{key}"), json!(uid)))
            .into_iter()
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "annotations": annotations },
            "spec": {
                "nodeName": node.name,
                "containers": [{ "name": "main", "image": "none" }],
            },
        });
        let created = self.apply_with_status(&object, &running(ips, node.ips));
        assert_ne!(created["metadata"]["uid"], uid);
        let [namespace, name, account] = [namespace, name, "default"].map(str::to_owned);
        ClusterPod {
            namespace,
            name,
            account,
            uid,
            netns,
            ips,
        }
    }

    /// Sets or removes the annotation of an enrolled pod, like a node's agent.
    pub fn announce(&self, pod: &ClusterPod, enrolled: bool) {
        let value = enrolled.then_some("enabled");
        let change = json!({ "metadata": { "annotations": { REDIRECTION: value } } });
        self.kubernetes.api.patch(&pod.path(), &change).unwrap();
    }

    /// Creates a dual-stack service for the pods of this name; returns its addresses.
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

    /// Creates a policy: `AuthorizationPolicy` or `PeerAuthentication`.
    pub fn policy(&self, kind: &str, namespace: &str, name: &str, spec: &Value) {
        let metadata = json!({ "name": name, "namespace": namespace });
        self.apply(&json!({
            "apiVersion": "security.istio.io/v1",
            "kind": kind,
            "metadata": metadata,
            "spec": spec,
        }));
    }

    /// The token with which a node's proxy authenticates to istiod.
    pub fn proxy_token(&self, node: &ClusterNode) -> String {
        let pod = (node.proxy.name.as_str(), node.proxy.uid.as_str());
        self.kubernetes
            .api
            .token(NAMESPACE, PROXY, Some("istio-ca"), Some(pod))
            .unwrap()
    }

    /// Deletes a pod's object; its network namespace lives as long as the value.
    pub fn delete(&self, pod: &ClusterPod) {
        self.kubernetes.api.delete(&pod.path()).unwrap();
    }

    /// Creates or updates an object.
    pub fn apply(&self, object: &Value) -> Value {
        self.kubernetes.api.apply(object).unwrap()
    }

    fn apply_pod(
        &self,
        names: [&str; 4],
        labels: &Value,
        ips: [IpAddr; 2],
        host_ips: [IpAddr; 2],
    ) -> Value {
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
        self.apply_with_status(&object, &running(ips, host_ips))
    }

    fn apply_with_status(&self, object: &Value, status: &Value) -> Value {
        self.apply(object);
        let path = format!("{}/status", super::api::path(object));
        self.kubernetes
            .api
            .patch(&path, &json!({ "status": status }))
            .unwrap()
    }
}

impl ClusterPod {
    /// The uid that istiod gives to its workload.
    pub fn workload_uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }
}

/// The status of a running pod with these addresses.
fn running(ips: [IpAddr; 2], host_ips: [IpAddr; 2]) -> Value {
    let list = |ips: [IpAddr; 2]| ips.map(|ip| json!({ "ip": ip }));
    json!({
        "phase": "Running",
        "podIP": ips[0],
        "podIPs": list(ips),
        "hostIP": host_ips[0],
        "hostIPs": list(host_ips),
        "conditions": [ready()],
    })
}

fn ready() -> Value {
    json!({ "type": "Ready", "status": "True" })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
