//! The sandbox of a soak: pods that stay, pods that are deleted and created again, pods outside the
//! mesh, and pods whose proxies are played by faulty peers.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Mutex;

use netns::NetNs;
use serde_json::Value;

use crate::applications::Applications;
use crate::sandbox::until;
pub use crate::two_nodes::{NODES, addresses, name};
use crate::two_nodes::{TwoNodes, node, workload};

use super::service::Service;

/// Number of pods.
pub const PODS: usize = 14;
/// Pods of the mesh that stay, and are the endpoints of the service.
pub const STEADY: Range<usize> = 0..6;
/// Pods of the mesh that are deleted and created again.
pub const CHURNED: Range<usize> = 6..10;
/// All pods of the mesh.
pub const MESH: Range<usize> = 0..10;
/// Pods outside the mesh.
pub const OUTSIDE: Range<usize> = 10..12;
/// Pods whose proxies are faulty peers.
pub const FAULTY: Range<usize> = 12..14;
/// The addresses of the service.
pub const VIPS: [&str; 2] = ["10.96.0.20", "fd96::20"];
/// The namespace of a pod of [`FAULTY`], as in its identity.
const FAULTY_NAMESPACE: &str = "faulty";
/// Far longer than an ADD takes on an overloaded machine.
const ADD_DEADLINE_MS: u64 = 60_000;

/// A running sandbox with its applications.
#[derive(Debug)]
pub struct Scene {
    /// The nodes and pods.
    pub nodes: TwoNodes,
    /// Which pods' applications run.
    pub applications: Applications,
    changing: Mutex<Changing>,
}

/// What changes in the mesh.
#[derive(Debug, Clone)]
pub struct Changing {
    /// The service account of each pod has a number.
    pub accounts: [usize; PODS],
    /// Whether a policy denies [`Service::Cut`].
    pub is_cut: bool,
    /// Policies that match no connection, by the number in their clients' names.
    pub policies: Vec<u32>,
}

impl Scene {
    /// Starts the sandbox and waits until every pod of the mesh is verified.
    pub fn up() -> Self {
        let changing = Changing {
            accounts: [0; PODS],
            is_cut: false,
            policies: Vec::new(),
        };
        // What is kept for a while after its last use is kept for seconds.
        let environment = [
            ("POOL_UNUSED_RELEASE_TIMEOUT", "5s"),
            ("UNDERPASS_METRICS_EXPIRY", "5s"),
            // Renewed about ten seconds after each was issued: one is valid from a minute before.
            ("SECRET_TTL", "80s"),
        ];
        let mesh = changing.mesh();
        let scene = Self {
            nodes: TwoNodes::up("soak", PODS, &mesh, &environment, ADD_DEADLINE_MS),
            applications: Applications::new(PODS),
            changing: Mutex::new(changing),
        };
        scene.await_verified();
        scene
    }

    /// Waits until every pod of the mesh is verified.
    pub fn await_verified(&self) {
        until("all pods of the mesh are verified", || {
            self.nodes.unverified(MESH).is_empty().then_some(())
        });
    }

    /// The network namespace of a pod.
    pub fn pod(&self, pod: usize) -> &NetNs {
        self.nodes.pod(pod)
    }

    /// The identity of a pod of [`FAULTY`].
    pub fn faulty_identity(pod: usize) -> String {
        let account = account(pod, 0);
        format!("spiffe://cluster.local/ns/{FAULTY_NAMESPACE}/sa/{account}")
    }

    /// Changes the mesh.
    pub fn change(&self, change: impl FnOnce(&mut Changing)) {
        let mut changing = self.changing.lock().unwrap();
        change(&mut changing);
        self.nodes.sandbox.set_mesh(&changing.mesh());
    }

    /// Gives a pod of the mesh a service account that no pod had before.
    pub fn rename_account(&self, pod: usize) {
        self.change(|mesh| mesh.accounts[pod] += 1);
    }

    /// The present service account of a pod.
    fn account(&self, pod: usize) -> String {
        account(pod, self.changing.lock().unwrap().accounts[pod])
    }

    /// Whether the proxy of a pod knows it by its present service account.
    pub fn has_present_identity(&self, pod: usize) -> bool {
        let status = self.proxy_status(node(pod));
        let served = status["pods"].as_array().unwrap().iter();
        let mut served = served.filter(|p| p["name"] == name(pod));
        served.any(|p| p["identity"] == self.identity(pod))
    }

    /// Waits until the proxy of a pod has the certificate of its present service account, and both
    /// proxies have the account in their mesh.
    pub fn await_certificate(&self, pod: usize) {
        let identity = self.identity(pod);
        until(&format!("a certificate of {identity}"), || {
            let status = self.proxy_status(node(pod));
            let mut certificates = status["certificates"].as_array().unwrap().iter();
            let mut found =
                certificates.any(|c| c["identity"] == *identity && c["state"] == "Available");
            for node in NODES {
                let sandbox = &self.nodes.sandbox;
                let (_, dump) = sandbox.get(node, "127.0.0.1:15000", "/config_dump");
                found &= dump.contains(&format!("\"{}\"", self.account(pod)));
            }
            found.then_some(())
        });
    }

    /// The present identity of a pod of the mesh.
    fn identity(&self, pod: usize) -> String {
        format!("spiffe://cluster.local/ns/mesh/sa/{}", self.account(pod))
    }

    /// The status of a node's proxy.
    pub fn proxy_status(&self, node: usize) -> Value {
        let sandbox = &self.nodes.sandbox;
        let (_, status) = sandbox.get(NODES[node], "127.0.0.1:15000", "/status");
        serde_json::from_str(&status).unwrap()
    }

    /// The address of a pod's service.
    pub fn address(pod: usize, family: usize, service: Service) -> SocketAddr {
        SocketAddr::new(addresses(pod)[family], service.port())
    }

    /// An address of the service whose endpoints echo.
    pub fn vip(family: usize) -> SocketAddr {
        let ip: IpAddr = VIPS[family].parse().unwrap();
        SocketAddr::new(ip, 80)
    }
}

/// The service account of a pod.
fn account(pod: usize, number: usize) -> String {
    format!("{}-{number}", name(pod))
}

impl Changing {
    /// The mesh file.
    fn mesh(&self) -> String {
        let mut text = format!(
            "namespaces:
  - {{ name: mesh, labels: {{ istio.io/dataplane-mode: ambient }} }}
  - {{ name: outside }}
  - {{ name: {FAULTY_NAMESPACE} }}
services:
  - {{ name: echo, namespace: mesh, vips: [/{}, \"/{}\"], ports: {{ 80: {} }} }}
workloads:
",
            VIPS[0],
            VIPS[1],
            Service::Echo.port()
        );
        let endpoint = format!(
            ", services: {{ mesh/echo.mesh.svc.cluster.local: {{ 80: {} }} }}",
            Service::Echo.port()
        );
        for pod in 0..PODS {
            let (namespace, more) = match pod {
                _ if STEADY.contains(&pod) => ("mesh", endpoint.as_str()),
                _ if CHURNED.contains(&pod) => ("mesh", ""),
                _ if OUTSIDE.contains(&pod) => ("outside", ""),
                _ => (FAULTY_NAMESPACE, ", protocol: HBONE"),
            };
            text += &workload(pod, namespace, &account(pod, self.accounts[pod]), more);
        }
        text += "policies:\n";
        text += &deny(
            "denied",
            &format!("destinationPorts: [{}]", Service::Denied.port()),
        );
        if self.is_cut {
            text += &deny(
                "cut",
                &format!("destinationPorts: [{}]", Service::Cut.port()),
            );
        }
        for number in &self.policies {
            let principal = format!("cluster.local/ns/other/sa/{number}");
            let condition = format!("principals: [{{ Exact: {principal} }}]");
            text += &deny(&format!("other-{number}"), &condition);
        }
        text
    }
}

/// A policy of the mesh file.
fn deny(name: &str, condition: &str) -> String {
    format!(
        "  - {{ name: {name}, namespace: mesh, scope: Namespace, action: Deny, rules: \
         [[[{{ {condition} }}]]] }}\n"
    )
}
