//! The Kubernetes API: etcd, the API server and the controllers, in a namespace of their own. No kubelet: nodes and pods are
//! objects, as far as nobody runs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use netns::NetNs;

use super::api::Api;
use super::binary;
use super::daemon::Daemon;
use super::fabric::{CONTROL_PLANE, Fabric, Families, host_ips};
use super::pki::Pki;

const ETCD: &str = "127.0.0.1:2379";
/// The first of each range of services is the API server's own.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
const API_SERVICES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1))];

/// Objects without a kubelet would be taken for dead and cleared away by these.
const UNDERTAKERS: &str =
    "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller";

/// A running API.
#[derive(Debug)]
pub struct Kubernetes {
    /// Its client with all rights.
    pub api: Api,
    /// The network that its hosts are in.
    pub fabric: Fabric,
    /// The namespace of the control plane.
    pub netns: NetNs,
    /// Keys, certificates and clients.
    pub pki: Pki,
    folder: PathBuf,
    daemons: Vec<Daemon>,
}

impl Kubernetes {
    /// Starts one in a folder, with more flags of the API server, and waits until it serves. Nobody runs its pods.
    pub fn start(folder: &Path, flags: &[&str]) -> Self {
        Self::start_with(folder, UNDERTAKERS, Families::Dual, flags)
    }

    /// The same for nodes that run pods: with a scheduler, and with every controller.
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
        let api = Api::new(&netns, SocketAddr::new(families.first(ips), 6443), pki.ca(), "admin");
        let mut etcd = start_etcd(&netns, folder);
        etcd.await_ready(|| netns.run(|| TcpStream::connect(ETCD)).unwrap().ok());
        let mut api_server = start_api_server(&netns, folder, &pki, families, flags);
        api_server.await_ready(|| api.get("/readyz").ok());
        let config = pki.kubeconfig("controller-manager", &server(families), "controller-manager");
        let controllers = start_controllers(&netns, folder, &pki, &config, controllers);
        Self { api, fabric, netns, pki, folder: folder.to_owned(), daemons: vec![controllers, api_server, etcd] }
    }

    /// Kills the API server, without a word to anybody.
    pub fn stop_api_server(&mut self) {
        self.daemons.retain(|daemon| !daemon.is("kube-apiserver"));
    }

    /// Starts it again, and waits until it serves.
    pub fn start_api_server(&mut self) {
        let mut api_server = start_api_server(&self.netns, &self.folder, &self.pki, self.fabric.families, &[]);
        api_server.await_ready(|| self.api.get("/readyz").ok());
        self.daemons.push(api_server);
    }

    /// Writes the kubeconfig of a client, and returns its path.
    pub fn kubeconfig(&self, name: &str, token: &str) -> String {
        self.pki.kubeconfig(name, &server(self.fabric.families), token)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Where programs of the cluster reach the API server.
fn server(families: Families) -> String {
    format!("https://{}", SocketAddr::new(families.first(host_ips(CONTROL_PLANE)), 6443))
}

fn start_etcd(netns: &NetNs, folder: &Path) -> Daemon {
    let data = folder.join("etcd");
    let data = format!("--data-dir={}", data.display());
    let urls = ["--listen-client-urls", "--advertise-client-urls"].map(|flag| format!("{flag}=http://{ETCD}"));
    let peers = "--listen-peer-urls=http://127.0.0.1:2380".to_owned();
    let [listen, advertise] = urls;
    // Nobody needs these data after a crash of the machine.
    let arguments = [data, listen, advertise, peers, "--unsafe-no-fsync".to_owned()];
    Daemon::start(&binary("etcd"), netns, folder, &arguments, &[])
}

fn start_api_server(netns: &NetNs, folder: &Path, pki: &Pki, families: Families, flags: &[&str]) -> Daemon {
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
        format!("--service-cluster-ip-range={}", families.of(SERVICES).join(",")),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        file("kubelet-certificate-authority", "ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--enable-aggregator-routing=true".to_owned(), // webhooks by the address of their pod: no service is reached here
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
    Daemon::start(&binary("kube-scheduler"), &kubernetes.netns, &kubernetes.folder, &arguments, &[])
}

fn start_controllers(netns: &NetNs, folder: &Path, pki: &Pki, config: &str, controllers: &str) -> Daemon {
    let arguments = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--service-account-private-key-file={}", pki.path("tokens.key")),
        format!("--root-ca-file={}", pki.path("ca.crt")),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--cluster-signing-cert-file={}", pki.path("ca.crt")),
        format!("--cluster-signing-key-file={}", pki.path("ca.key")),
        controllers.to_owned(),
    ];
    Daemon::start(&binary("kube-controller-manager"), netns, folder, &arguments, &[])
}
