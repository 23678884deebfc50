//! Applications in a cluster: pods that serve and send requests.

#![allow(clippy::disallowed_types)] // requests are sent by kubectl exec

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::images::APP;
use super::{Kube, condition};
use crate::sandbox::PATIENCE;

/// The port on which applications serve.
pub const PORT: u16 = 8080;

/// A pod to create.
#[derive(Debug, Clone)]
pub struct App<'a> {
    /// Its Kubernetes namespace.
    pub namespace: &'a str,
    /// Its name, its label `app` and its service account.
    pub name: &'a str,
    /// Its node; chosen by the scheduler if `None`.
    pub node: Option<&'a str>,
    /// Labels besides `app`.
    pub labels: Value,
}

impl App<'_> {
    /// The pod's object.
    pub fn object(&self) -> Value {
        let mut labels = json!({ "app": self.name });
        if let Some(more) = self.labels.as_object() {
            labels.as_object_mut().unwrap().extend(more.clone());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": labels },
            "spec": spec(self.node, Some(self.name)),
        })
    }
}

/// The spec of an application's pod.
pub fn spec(node: Option<&str>, account: Option<&str>) -> Value {
    json!({
        "nodeName": node,
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 2,
        "containers": [{
            "name": "app",
            "image": APP,
            "imagePullPolicy": "Never",
            "args": ["serve", PORT.to_string()],
            "readinessProbe": { "httpGet": { "port": PORT }, "periodSeconds": 1 },
        }],
    })
}

impl Kube {
    /// Creates or updates a Kubernetes namespace, in the mesh or not.
    pub fn namespace(&self, name: &str, mesh: bool) {
        let mode = if mesh { "ambient" } else { "none" };
        let labels = json!({ "istio.io/dataplane-mode": mode });
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
        });
        self.apply(&object.to_string());
    }

    /// Creates applications with their service accounts and waits until they are ready.
    #[track_caller]
    pub fn launch(&self, apps: &[App<'_>]) {
        let account = |app: &App<'_>| {
            let metadata = json!({ "name": app.name, "namespace": app.namespace });
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })
        };
        self.apply_all(apps.iter().map(account).chain(apps.iter().map(App::object)));
        apps.iter()
            .for_each(|app| self.await_pod(app.namespace, app.name));
    }

    /// Creates or updates objects.
    #[track_caller]
    pub fn apply_all(&self, objects: impl Iterator<Item = Value>) {
        self.apply(&objects.map(|o| format!("---\n{o}\n")).collect::<String>());
    }

    /// A pod's object.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub fn await_pod(&self, namespace: &str, name: &str) {
        let begun = std::time::Instant::now();
        while !self
            .pod(namespace, name)
            .is_some_and(|p| condition(&p, "Ready"))
        {
            assert!(
                begun.elapsed().as_secs() < 90,
                "{namespace}/{name} is not ready: {}",
                self.diagnostics_of(namespace, name)
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Nodes, events and logs that explain why a pod does not become ready.
    fn diagnostics_of(&self, namespace: &str, pod: &str) -> String {
        let kubectl = |arguments: &[&str]| {
            let output = self.command("kubectl").args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut text = kubectl(&["get", "nodes,pods", "-A", "-o", "wide"]);
        text += &kubectl(&[
            "get",
            "events",
            "-n",
            namespace,
            "--field-selector",
            &format!("involvedObject.name={pod}"),
        ]);
        for label in ["k8s-app=underpass-cni-node", "app=ztunnel"] {
            text += &kubectl(&[
                "logs",
                "-n",
                "istio-system",
                "-l",
                label,
                "--prefix",
                "--tail=25",
            ]);
        }
        text
    }

    /// Sends a request from a pod to each destination; returns whether all answered, and the
    /// output.
    pub fn ask(&self, namespace: &str, pod: &str, destinations: &[&str]) -> (bool, String) {
        let mut command = self.command("kubectl");
        command
            .args(["exec", "-n", namespace, pod, "--", "underpass-app", "get"])
            .args(destinations);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Sends requests until all destinations answer; returns the output.
    ///
    /// # Panics
    /// When they do not answer within ten seconds.
    #[track_caller]
    pub fn await_answer(&self, namespace: &str, pod: &str, destinations: &[&str]) -> String {
        let start = std::time::Instant::now();
        loop {
            let (answered, output) = self.ask(namespace, pod, destinations);
            if answered {
                return output;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{namespace}/{pod} gets no response: {output}\n{}",
                self.proxy_errors_of(namespace, pod)
            );
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
    }

    /// The last errors and certificate lines in the log of the pod's proxy.
    fn proxy_errors_of(&self, namespace: &str, pod: &str) -> String {
        let node = self
            .pod(namespace, pod)
            .and_then(|p| Some(p["spec"]["nodeName"].as_str()?.to_owned()));
        let log = node.map(|node| self.proxy_log(&node)).unwrap_or_default();
        let lines = log
            .lines()
            .rev()
            .filter(|l| l.contains("error=") || l.contains("certificate"));
        lines.take(8).collect::<Vec<_>>().join("\n")
    }

    /// The addresses of a pod, IPv4 first.
    pub fn addresses(&self, namespace: &str, pod: &str) -> Vec<String> {
        let pod = self.pod(namespace, pod).unwrap();
        let list = pod["status"]["podIPs"].as_array().unwrap();
        list.iter()
            .map(|a| a["ip"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Creates a dual-stack service for an application; returns its addresses with the port.
    pub fn service(&self, namespace: &str, app: &str) -> [String; 2] {
        self.service_of_families(namespace, app).try_into().unwrap()
    }

    /// Creates a service for an application in the cluster's families; returns its addresses with
    /// the port.
    pub fn service_of_families(&self, namespace: &str, app: &str) -> Vec<String> {
        self.apply(
            &json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": app, "namespace": namespace },
                "spec": {
                    "selector": { "app": app },
                    "ipFamilyPolicy": "PreferDualStack",
                    "ports": [{ "name": "tcp", "port": 80, "targetPort": PORT }],
                },
            })
            .to_string(),
        );
        self.service_addresses(namespace, app)
    }

    /// The addresses of a service, with port 80.
    pub fn service_addresses(&self, namespace: &str, name: &str) -> Vec<String> {
        let service = self
            .get(&format!("/api/v1/namespaces/{namespace}/services/{name}"))
            .unwrap();
        let ips = service["spec"]["clusterIPs"].as_array().unwrap();
        let ips = ips
            .iter()
            .map(|ip| ip.as_str().unwrap().parse::<IpAddr>().unwrap());
        ips.map(|ip| SocketAddr::new(ip, 80).to_string()).collect()
    }
}
