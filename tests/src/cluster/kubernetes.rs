//! The Kubernetes API: etcd, the API server and the controllers, in their own network namespace.
//! Without kubelets, nodes and pods are only objects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use netns::NetNs;

use super::api::Api;
use super::binary;
use super::daemon::Daemon;
use super::fabric::{CONTROL_PLANE, Fabric, Families, host_ips};
use super::pki::Pki;

const ETCD: &str = "127.0.0.1:2379";
/// The service ranges; the first address of each is the API server's.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
const API_SERVICES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1)),
];

/// Without the controllers that would remove nodes and pods that have no kubelet.
const WITHOUT_CLEANUP: &str = "--controllers=*,-node-lifecycle-controller,\
                               -taint-eviction-controller,-pod-garbage-collector-controller";

/// A running Kubernetes API.
#[derive(Debug)]
pub struct Kubernetes {
    /// A client with all rights.
    pub api: Api,
    /// The network of its hosts.
    pub fabric: Fabric,
    /// The namespace of the control plane.
    pub netns: NetNs,
    /// Keys, certificates and clients.
    pub pki: Pki,
    folder: PathBuf,
    daemons: Vec<Daemon>,
}

impl Kubernetes {
    /// Starts an API without kubelets in a folder, with additional API server flags, and waits
    /// until it serves.
    pub fn start(folder: &Path, flags: &[&str]) -> Self {
        Self::start_with(folder, WITHOUT_CLEANUP, Families::Dual, flags)
    }

    /// Starts an API for nodes that run pods: with a scheduler and all controllers.
    pub fn start_for_nodes(folder: &Path, families: Families) -> Self {
        let mut kubernetes = Self::start_with(folder, "--controllers=*", families, &[]);
        let scheduler = start_scheduler(&kubernetes);
        kubernetes.daemons.push(scheduler);
        kubernetes
    }

    fn start_with(folder: &Path, controllers: &str, families: Families, flags: &[&str]) -> Self {
        let fabric = Fabric::new(families);
        let netns = fabric.host(CONTROL_PLANE);
        let ips = host_ips(CONTROL_PLANE);
        let names = [ips.as_slice(), &API_SERVICES, &[Ipv4Addr::LOCALHOST.into()]].concat();
        let pki = Pki::create(&folder.join("pki"), &names);
        let api = Api::new(
            &netns,
            SocketAddr::new(families.first(ips), 6443),
            pki.ca(),
            "admin",
        );
        let mut etcd = start_etcd(&netns, folder);
        etcd.await_ready(|| netns.run(|| TcpStream::connect(ETCD)).unwrap().ok());
        let mut api_server = start_api_server(&netns, folder, &pki, families, flags);
        api_server.await_ready(|| api.get("/readyz").ok());
        let config = pki.kubeconfig(
            "controller-manager",
            &server(families),
            "controller-manager",
        );
        let controllers = start_controllers(&netns, folder, &pki, &config, controllers);
        Self {
            api,
            fabric,
            netns,
            pki,
            folder: folder.to_owned(),
            daemons: vec![controllers, api_server, etcd],
        }
    }

    /// Kills the API server.
    pub fn stop_api_server(&mut self) {
        self.daemons.retain(|daemon| !daemon.is("kube-apiserver"));
    }

    /// Starts the API server again and waits until it serves.
    pub fn start_api_server(&mut self) {
        let mut api_server = start_api_server(
            &self.netns,
            &self.folder,
            &self.pki,
            self.fabric.families,
            &[],
        );
        api_server.await_ready(|| self.api.get("/readyz").ok());
        self.daemons.push(api_server);
    }

    /// Writes the kubeconfig of a client, and returns its path.
    pub fn kubeconfig(&self, name: &str, token: &str) -> String {
        self.pki
            .kubeconfig(name, &server(self.fabric.families), token)
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The URL of the API server for programs of the cluster.
fn server(families: Families) -> String {
    format!(
        "https://{}",
        SocketAddr::new(families.first(host_ips(CONTROL_PLANE)), 6443)
    )
}

fn start_etcd(netns: &NetNs, folder: &Path) -> Daemon {
    let data = folder.join("etcd");
    let data = format!("--data-dir={}", data.display());
    let urls = ["--listen-client-urls", "--advertise-client-urls"]
        .map(|flag| format!("{flag}=http://{ETCD}"));
    let peers = "--listen-peer-urls=http://127.0.0.1:2380".to_owned();
    let [listen, advertise] = urls;
    // The data need not survive a crash of the machine.
    let arguments = [
        data,
        listen,
        advertise,
        peers,
        "--unsafe-no-fsync".to_owned(),
    ];
    Daemon::start(&binary("etcd"), netns, folder, &arguments, &[])
}

fn start_api_server(
    netns: &NetNs,
    folder: &Path,
    pki: &Pki,
    families: Families,
    flags: &[&str],
) -> Daemon {
    let address = families.first(host_ips(CONTROL_PLANE));
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.path(name));
    let mut arguments = vec![
        format!("--etcd-servers=http://{ETCD}"),
        "--bind-address=::".to_owned(),
        format!("--advertise-address={address}"),
        "--secure-port=6443".to_owned(),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("token-auth-file", "clients.csv"),
        file("service-account-key-file", "tokens.pub"),
        file("service-account-signing-key-file", "tokens.key"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        format!(
            "--service-cluster-ip-range={}",
            families.of(SERVICES).join(",")
        ),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        file("kubelet-certificate-authority", "ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Webhooks are called at their pod's address, as services are not reachable here.
        "--enable-aggregator-routing=true".to_owned(),
    ];
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    Daemon::start(&binary("kube-apiserver"), netns, folder, &arguments, &[])
}

fn start_scheduler(kubernetes: &Kubernetes) -> Daemon {
    let config = kubernetes.kubeconfig("scheduler", "scheduler");
    let arguments = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ];
    Daemon::start(
        &binary("kube-scheduler"),
        &kubernetes.netns,
        &kubernetes.folder,
        &arguments,
        &[],
    )
}

fn start_controllers(
    netns: &NetNs,
    folder: &Path,
    pki: &Pki,
    config: &str,
    controllers: &str,
) -> Daemon {
    let arguments = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            pki.path("tokens.key")
        ),
        format!("--root-ca-file={}", pki.path("ca.crt")),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--cluster-signing-cert-file={}", pki.path("ca.crt")),
        format!("--cluster-signing-key-file={}", pki.path("ca.key")),
        controllers.to_owned(),
    ];
    Daemon::start(
        &binary("kube-controller-manager"),
        netns,
        folder,
        &arguments,
        &[],
    )
}
