//! istiod as a program beside the API server, with the service account and the rights that Istio's
//! installation gives it.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use netns::NetNs;
use serde_json::{Value, json};

use super::api::{connect_tls, trusting};
use super::binary;
use super::daemon::Daemon;
use super::fabric::{CONTROL_PLANE, host_ips};
use super::http::exchange;
use super::kubernetes::Kubernetes;
use super::roots::Roots;

/// The namespace in which Istio is installed.
pub const NAMESPACE: &str = "istio-system";
/// The name in istiod's certificate.
pub const NAME: &str = "istiod.istio-system.svc";
/// The port of ADS and CA, under TLS.
pub const PORT: u16 = 15012;

/// The kinds of Istio's installation that are applied; the rest are pods, which nothing runs here.
const KINDS: [&str; 8] = [
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Service",
];

/// Settings that differ from istiod's defaults.
const ENVIRONMENT: [(&str, &str); 11] = [
    ("POD_NAMESPACE", NAMESPACE),
    ("POD_NAME", "istiod-0"),
    ("SERVICE_ACCOUNT", "istiod"),
    ("REVISION", "default"),
    ("CLUSTER_ID", "Kubernetes"),
    ("PILOT_CERT_PROVIDER", "istiod"),
    ("PILOT_ENABLE_AMBIENT", "true"),
    // Without it, a node's proxy gets no certificates of pods.
    ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
    ("ISTIO_MULTIROOT_MESH", "true"), // without it, the roots of a running istiod cannot change
    ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
    ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
];

/// An istiod that can be stopped and started.
#[derive(Debug)]
pub struct Istiod {
    /// Its certificate authority.
    pub roots: Roots,
    folder: PathBuf,
    kubeconfig: String,
    daemon: Option<Daemon>,
}

impl Istiod {
    /// Installs Istio in a cluster, starts istiod, and waits until it is ready.
    pub fn install(kubernetes: &Kubernetes) -> Self {
        let folder = kubernetes.folder().join("istiod");
        let roots = Roots::create(&folder.join("etc/cacerts"));
        install(kubernetes);
        let token = kubernetes
            .api
            .token(NAMESPACE, "istiod", None, None)
            .unwrap();
        let kubeconfig = kubernetes.kubeconfig("istiod", &token);
        let mut istiod = Self {
            roots,
            folder,
            kubeconfig,
            daemon: None,
        };
        istiod.start(kubernetes);
        istiod
    }

    /// Starts it, and waits until it is ready.
    pub fn start(&mut self, kubernetes: &Kubernetes) {
        let arguments = [
            "discovery".to_owned(),
            format!("--kubeconfig={}", self.kubeconfig),
        ];
        let program = binary("pilot-discovery");
        let mut daemon = Daemon::start(
            &program,
            &kubernetes.netns,
            &self.folder,
            &arguments,
            &ENVIRONMENT,
        );
        daemon.await_ready(|| {
            self.get(kubernetes, 8080, "/ready")
                .filter(|(status, _)| *status == 200)
        });
        self.daemon = Some(daemon);
    }

    /// Stops it with SIGTERM, like a kubelet, and waits until it has exited.
    pub fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    /// A page below `/debug`; `null` when istiod does not answer.
    pub fn debug(&self, kubernetes: &Kubernetes, page: &str) -> Value {
        let answer = self.get(kubernetes, 8080, &format!("/debug/{page}"));
        answer
            .and_then(|(_, body)| serde_json::from_str(&body).ok())
            .unwrap_or_default()
    }

    /// A GET from its own host, which may read everything; `None` without an answer.
    fn get(&self, kubernetes: &Kubernetes, port: u16, path: &str) -> Option<(u16, String)> {
        let mut stream = kubernetes
            .netns
            .run(|| TcpStream::connect(("127.0.0.1", port)))
            .ok()?
            .ok()?;
        exchange(
            &mut stream,
            &format!("GET {path}"),
            &["Host: localhost".to_owned()],
            "",
        )
        .ok()
    }

    /// istiod's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("pilot-discovery.log")).unwrap_or_default()
    }
}

/// The address at which nodes reach istiod.
pub fn address() -> SocketAddr {
    SocketAddr::new(ip(), PORT)
}

/// Connects to istiod under TLS as a client with these roots.
///
/// # Errors
/// When istiod is unreachable or not trusted by these roots.
pub fn shake_hands(from: &NetNs, roots: &str) -> std::io::Result<()> {
    let tls = Arc::new(trusting(roots));
    connect_tls(
        from,
        address(),
        &tls,
        NAME.try_into().map_err(std::io::Error::other)?,
    )
    .map(drop)
}

fn ip() -> IpAddr {
    host_ips(CONTROL_PLANE)[0]
}

/// Applies Istio's resource definitions, roles and configuration, and those of the Gateway API, as
/// `istioctl` renders them for the ambient profile.
fn install(kubernetes: &Kubernetes) {
    let apply = |object: &Value| kubernetes.api.apply(object).unwrap();
    apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }));
    for file in ["ambient.yaml", "gateway-api.yaml"] {
        let text = fs::read_to_string(binary("manifests").join(file)).unwrap();
        let objects = text.split("\n---\n").filter(|d| d.contains("kind:"));
        let objects = objects.map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
        objects
            .filter(|o| KINDS.iter().any(|k| o["kind"] == *k))
            .for_each(|o| drop(apply(&o)));
    }
    // istiod is not a pod, so no controller creates the endpoints of its service.
    let ports = [
        ("grpc-xds", 15010),
        ("https-dns", PORT),
        ("https-webhook", 15017),
        ("http-monitoring", 15014),
    ];
    apply(&json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "istiod-by-hand",
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": "istiod",
                "endpointslice.kubernetes.io/managed-by": "tests",
            },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [ip()], "conditions": { "ready": true, "serving": true } }],
        "ports": ports.map(|(name, port)| json!({ "name": name, "port": port })),
    }));
}
