//! A namespace with two clients, and two versions of an application behind services.

use std::io;
use std::sync::RwLockReadGuard;

use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::kube::app::{App, PORT};
use underpass_tests::kube::gateways::{WaypointFor, missing};
use underpass_tests::kube::http::{self, Request, Response};
use underpass_tests::kube::{Kube, await_within};
use underpass_tests::skip::skip;

/// How long a change of routes and policies may take to reach Envoys and proxies. Only detects a
/// hang.
pub const PATIENCE: u64 = 60;

/// A namespace of the mesh.
pub struct Shop {
    pub kube: RwLockReadGuard<'static, Kube>,
    pub namespace: &'static str,
}

/// The shared cluster with Underpass and the image of Envoy; `None`, after reporting it, if this
/// machine lacks something.
pub fn cluster() -> Option<RwLockReadGuard<'static, Kube>> {
    if let Some(why) = missing() {
        skip(&why);
        return None;
    }
    let kube = Kube::mesh();
    kube.import_envoy();
    Some(kube)
}

impl Shop {
    /// Creates clients `client` and `other`, and pods `web-v1` and `web-v2` on two nodes, behind
    /// service `web` and one for each version.
    pub fn open(namespace: &'static str) -> Option<Self> {
        let kube = cluster()?;
        kube.namespace(namespace, true);
        let app = |name, node| App {
            namespace,
            name,
            node: Some(node),
            labels: Value::Null,
        };
        let web = |name, node, version: &str| App {
            labels: json!({ "app": "web", "version": version }),
            ..app(name, node)
        };
        kube.launch(&[
            app("client", "node-1"),
            app("other", "node-2"),
            web("web-v1", "node-2", "v1"),
            web("web-v2", "node-1", "v2"),
        ]);
        let shop = Self { kube, namespace };
        shop.create_service("web", &json!({ "app": "web" }));
        shop.create_service("web-v1", &json!({ "app": "web", "version": "v1" }));
        shop.create_service("web-v2", &json!({ "app": "web", "version": "v2" }));
        for pod in ["client", "other", "web-v1", "web-v2"] {
            shop.kube.await_enrolled(namespace, pod, true);
        }
        Some(shop)
    }

    fn create_service(&self, name: &str, selector: &Value) {
        let ports = [json!({
            "name": "http", "port": 80, "targetPort": PORT, "appProtocol": "http",
        })];
        self.apply(
            "v1",
            "Service",
            name,
            &json!({
                "selector": selector, "ipFamilyPolicy": "PreferDualStack", "ports": ports,
            }),
        );
    }

    /// Creates an object with this spec.
    pub fn apply(&self, version: &str, kind: &str, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": spec,
        });
        self.kube.apply(&object.to_string());
    }

    /// Sets a label.
    pub fn label(&self, object: &str, label: &str) {
        let namespace = self.namespace;
        self.kube
            .kubectl(&["label", "--overwrite", "-n", namespace, object, label]);
    }

    /// Creates a waypoint and waits until it is ready.
    pub fn waypoint(&self, name: &str, of: WaypointFor) {
        self.kube.create_waypoint(self.namespace, name, of);
        self.kube.await_gateway(self.namespace, name);
    }

    /// The addresses of a service with its port.
    pub fn addresses_of(&self, service: &str) -> [String; 2] {
        let addresses = self.kube.service_addresses(self.namespace, service);
        addresses.try_into().unwrap()
    }

    /// The addresses of a pod with its port.
    pub fn addresses_of_pod(&self, pod: &str) -> [String; 2] {
        let ips = self.kube.addresses(self.namespace, pod);
        [format!("{}:{PORT}", ips[0]), format!("[{}]:{PORT}", ips[1])]
    }

    /// The network namespace of a pod.
    pub fn netns(&self, pod: &str) -> NetNs {
        self.kube.netns_of(self.namespace, pod)
    }

    /// The identity of a service account of this namespace, as policies name it.
    pub fn principal(&self, account: &str) -> String {
        format!("cluster.local/ns/{}/sa/{account}", self.namespace)
    }

    /// Waits until requests to each of the addresses get such a response.
    #[track_caller]
    pub fn await_response(
        &self,
        what: &str,
        from: &NetNs,
        addresses: &[String],
        request: &Request<'_>,
        expected: impl Fn(&io::Result<Response>) -> bool,
    ) {
        for to in addresses {
            let mut last = String::new();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(PATIENCE);
            loop {
                let response = http::request(from, to, request);
                if expected(&response) {
                    break;
                }
                last.clear();
                last += &format!("{response:?}");
                assert!(
                    std::time::Instant::now() < deadline,
                    "{what}: {to} answers {last}\n{}",
                    self.diagnostics()
                );
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        }
    }

    /// Asserts that a request to each of the addresses gets such a response at once.
    #[track_caller]
    pub fn assert_response(
        &self,
        what: &str,
        from: &NetNs,
        addresses: &[String],
        request: &Request<'_>,
        expected: impl Fn(&io::Result<Response>) -> bool,
    ) {
        for to in addresses {
            let response = http::request(from, to, request);
            assert!(
                expected(&response),
                "{what}: {to} answers {response:?}\n{}",
                self.diagnostics()
            );
        }
    }

    /// Waits until a proxy's log has a line with these words; returns it.
    #[track_caller]
    pub fn await_line(&self, node: &str, words: &[&str]) -> String {
        await_within(PATIENCE, &format!("{node} logs {words:?}"), || {
            let log = self.kube.proxy_log(node);
            let line = log.lines().rfind(|l| words.iter().all(|w| l.contains(w)));
            line.map(str::to_owned)
        })
    }

    /// Waits until a node's proxy has an open connection to a pod of the shop from the workload
    /// with this identity. Envoy keeps connections, which are logged only when they close.
    #[track_caller]
    pub fn await_connection(&self, node: &str, pod: &str, principal: &str) {
        let (pod, peer) = (
            format!("{}/{pod} ", self.namespace),
            format!("spiffe://{principal} "),
        );
        let what = format!("a connection of {peer} to {pod}");
        await_within(PATIENCE, &what, || {
            let (_, list) = self.kube.underpass(node, &["conns"]);
            let is_it =
                |l: &str| l.starts_with(&pod) && l.contains(" inbound ") && l.contains(&peer);
            list.lines().any(is_it).then_some(())
        });
    }

    fn diagnostics(&self) -> String {
        let run = |arguments: &[&str]| {
            let output = self
                .kube
                .command("kubectl")
                .args(arguments)
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let namespace = self.namespace;
        let mut text = run(&[
            "get",
            "pods,svc,gateways,httproutes",
            "-n",
            namespace,
            "-o",
            "wide",
        ]);
        let label = "gateway.networking.k8s.io/gateway-name";
        text += &run(&["logs", "-n", namespace, "-l", label, "--tail=30"]);
        for node in ["node-1", "node-2"] {
            let log = self.kube.proxy_log(node);
            let lines = log.lines().rev().filter(|l| l.contains(namespace)).take(6);
            text += &lines.map(|l| format!("{node}: {l}\n")).collect::<String>();
        }
        text
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let namespace = self.namespace;
            self.kube
                .kubectl(&["delete", "namespace", namespace, "--wait=false"]);
        }
    }
}

/// Whether a response has this status.
pub fn status(expected: u16) -> impl Fn(&io::Result<Response>) -> bool {
    move |response| response.as_ref().is_ok_and(|r| r.status == expected)
}

/// Whether the response is that of a pod, by way of Envoy.
pub fn through_envoy_from(pod: &str) -> impl Fn(&io::Result<Response>) -> bool {
    move |response| {
        let is_expected = |r: &Response| r.is_envoys() && r.body.starts_with(pod);
        response.as_ref().is_ok_and(is_expected)
    }
}

/// Whether the response is that of a pod, without an Envoy between.
pub fn straight_from(pod: &str) -> impl Fn(&io::Result<Response>) -> bool {
    move |response| {
        let is_expected = |r: &Response| !r.is_envoys() && r.body.starts_with(pod);
        response.as_ref().is_ok_and(is_expected)
    }
}
