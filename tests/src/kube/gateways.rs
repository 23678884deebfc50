//! Envoy as waypoint, ingress gateway and sidecar. istiod creates the pods of the first two, and
//! injects the third.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::{Kube, condition, images, istio, until};
use crate::binaries::control_plane_files;
use crate::cluster::istiod::NAMESPACE;

/// What this machine lacks for Envoy on a cluster.
pub fn missing() -> Option<String> {
    let parts = ["bin/envoy", "bin/pilot-agent", "bin/envoy_bootstrap.json"];
    let iptables = std::path::Path::new("/usr/sbin/xtables-nft-multi");
    let no_iptables = || (!iptables.exists()).then(|| "iptables is missing".to_owned());
    super::missing()
        .or_else(|| control_plane_files(parts).err())
        .or_else(no_iptables)
}

/// What the connections of a waypoint are addressed to (`istio.io/waypoint-for`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaypointFor {
    /// Services.
    Service,
    /// Workloads, by their own addresses.
    Workload,
}

impl Kube {
    /// Imports the image of waypoints, gateways and sidecars on every node, once.
    pub fn import_envoy(&self) {
        static IMPORTED: Mutex<Vec<u32>> = Mutex::new(Vec::new());
        let mut imported = IMPORTED.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.nodes[0].init();
        if !imported.contains(&first) {
            let archive = images::proxyv2(&self.folder());
            std::thread::scope(|scope| {
                for node in &self.nodes {
                    scope.spawn(|| node.import(&archive));
                }
            });
            imported.push(first);
        }
    }

    /// Creates a waypoint, which all namespaces may use.
    pub fn create_waypoint(&self, namespace: &str, name: &str, of: WaypointFor) {
        let of = match of {
            WaypointFor::Service => "service",
            WaypointFor::Workload => "workload",
        };
        let metadata = json!({
            "name": name, "namespace": namespace, "labels": { "istio.io/waypoint-for": of },
        });
        let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE" });
        self.create_gateway(&metadata, "istio-waypoint", listener);
    }

    /// Creates an ingress gateway that accepts HTTP and routes of all namespaces. Its service is
    /// reached within the cluster only.
    pub fn create_ingress(&self, namespace: &str, name: &str) {
        let metadata = json!({
            "name": name, "namespace": namespace,
            "annotations": { "networking.istio.io/service-type": "ClusterIP" },
        });
        let listener = json!({ "name": "http", "port": 80, "protocol": "HTTP" });
        self.create_gateway(&metadata, "istio", listener);
    }

    /// Creates a Gateway with one listener, for routes of all namespaces.
    fn create_gateway(&self, metadata: &Value, class: &str, mut listener: Value) {
        listener["allowedRoutes"] = json!({ "namespaces": { "from": "All" } });
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": metadata,
            "spec": { "gatewayClassName": class, "listeners": [listener] },
        });
        self.apply(&gateway.to_string());
    }

    /// Waits until the pod of a waypoint or gateway is ready; returns its name.
    #[track_caller]
    pub fn await_gateway(&self, namespace: &str, name: &str) -> String {
        let pod = until(
            &format!("the pod of gateway {namespace}/{name} exists"),
            || self.gateway_pods(namespace, name).into_iter().next(),
        );
        self.await_pod(namespace, &pod);
        pod
    }

    /// The pods of a waypoint or gateway that are not terminating.
    pub fn gateway_pods(&self, namespace: &str, name: &str) -> Vec<String> {
        let selector = format!("gateway.networking.k8s.io%2Fgateway-name%3D{name}");
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
        let list = self.get(&path).unwrap_or_default();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
        pods.iter().filter(running).map(name).collect()
    }

    /// Lets istiod inject sidecars, whose init container installs their redirection.
    pub fn enable_sidecars(&self) {
        let hooks = istio::objects().into_iter();
        self.apply_all(hooks.filter(|o| o["kind"] == "MutatingWebhookConfiguration"));
        // The profile `ambient` leaves the redirection of sidecars to Istio's CNI plugin.
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/istio-sidecar-injector");
        let config = self.get(&path).unwrap();
        let mut values: Value =
            serde_json::from_str(config["data"]["values"].as_str().unwrap()).unwrap();
        values["pilot"]["cni"]["enabled"] = json!(false);
        let patch = json!({ "data": { "values": values.to_string() } }).to_string();
        let map = "configmap/istio-sidecar-injector";
        self.kubectl(&["patch", "-n", NAMESPACE, map, "--type=merge", "-p", &patch]);
        until("istiod accepts calls of the webhooks", || {
            let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/\
                        istio-sidecar-injector";
            let hooks = self.get(path)?;
            let bundle = hooks["webhooks"][0]["clientConfig"]["caBundle"].as_str()?;
            (!bundle.is_empty()).then_some(())
        });
    }

    /// Makes every Envoy log its connections and requests.
    pub fn log_envoys_access(&self) {
        self.apply(
            &json!({
                "apiVersion": "telemetry.istio.io/v1",
                "kind": "Telemetry",
                "metadata": { "name": "access-log", "namespace": NAMESPACE },
                "spec": { "accessLogging": [{ "providers": [{ "name": "envoy" }] }] },
            })
            .to_string(),
        );
    }

    /// Whether a Gateway is programmed: istiod has deployed it and knows its address.
    pub fn is_programmed(&self, namespace: &str, name: &str) -> bool {
        let path =
            format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/{name}");
        self.get(&path)
            .is_some_and(|gateway| condition(&gateway, "Programmed"))
    }
}
