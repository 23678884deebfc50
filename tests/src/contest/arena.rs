//! The contestants: pods of the same kind on the nodes of one cluster, whose control plane is
//! played.

use std::net::IpAddr;
use std::path::PathBuf;

use istio::port;
use netns::NetNs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Options;
use super::floor::{Copying, Floor};
use super::held::most_files;
use super::load::Server;
use crate::binaries::binary;
use crate::cluster::fabric::{CONTROL_PLANE, Fabric, Families, host_ips, pod};
use crate::cni::{Call, config, path_of};
use crate::control_plane::resources::{pod as workload, workload_resource};
use crate::control_plane::{ControlPlane, NAME};
use crate::folder::folder;
use crate::node::TestNode;
use crate::sandbox::until;

/// Plain TCP.
pub(super) const DIRECT: &str = "direct";
/// The better kind of the floor.
pub(super) const FLOOR: &str = "floor";

/// The network with all contestants.
#[derive(Debug)]
pub(super) struct Arena {
    contestants: Vec<Contestant>,
    folder: PathBuf,
    /// Ends with the contestants.
    _plane: ControlPlane,
    _fabric: Fabric,
}

/// What is measured: a way from a client to its servers.
#[derive(Debug)]
pub(super) struct Contestant {
    name: String,
    kind: Kind,
    /// Its pods: `client` and `neighbour` are on one node, `server` and `bystander`, which is
    /// outside the mesh, on the other.
    pub(super) client: NetNs,
    pub(super) server: Server,
    pub(super) neighbour: Server,
    pub(super) bystander: Server,
}

#[derive(Debug)]
enum Kind {
    /// No process on the way.
    Direct,
    /// Two processes that copy.
    Floor(Floor),
    /// A proxy on each node.
    Mesh(Box<Mesh>),
}

/// The proxies of a contestant.
#[derive(Debug)]
struct Mesh {
    nodes: [TestNode; 2],
    proxy: Proxy,
    proxies: [u32; 2],
}

/// A pod before its contestant exists.
struct Pod {
    name: String,
    netns: NetNs,
    ips: [IpAddr; 2],
}

impl Arena {
    /// Starts all contestants: direct, both kinds of the floor, and the proxies.
    pub(super) fn new(options: &Options) -> Self {
        allow_many_files(options.held);
        let fabric = Fabric::new(Families::Dual);
        let folder = folder("contest");
        let address = (host_ips(CONTROL_PLANE)[0], 15012).into();
        let plane = ControlPlane::start(&fabric.host(CONTROL_PLANE), address, &folder);
        std::fs::write(folder.join("token"), "token").unwrap();
        let mut contestants = Vec::new();
        for (index, mut proxy) in proxies(options).into_iter().enumerate() {
            let numbers = [2 * index as u8 + 1, 2 * index as u8 + 2];
            let hosts = numbers.map(|number| fabric.host(number));
            if index == 0 {
                let floor = options.program();
                contestants.push(Contestant::outside(DIRECT, &hosts, numbers, |_, _| {
                    Kind::Direct
                }));
                for copying in Copying::ALL {
                    let start = |client: &Pod, server: &Pod| {
                        let ips = [client.ips, server.ips];
                        let pods = [&client.netns, &server.netns];
                        Kind::Floor(Floor::start(&floor, copying, pods, ips))
                    };
                    let name = copying.contestant();
                    contestants.push(Contestant::outside(name, &hosts, numbers, start));
                }
            }
            proxy
                .environment
                .splice(0..0, environment_of(&plane, &folder));
            let mesh = Mesh::start(proxy, &plane, hosts, numbers);
            contestants.push(mesh);
        }
        Self {
            contestants,
            folder,
            _plane: plane,
            _fabric: fabric,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.contestants.len()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.contestants.iter().map(|c| c.name.clone()).collect()
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.contestants[index].name
    }

    pub(super) fn contestant(&mut self, index: usize) -> &mut Contestant {
        &mut self.contestants[index]
    }

    /// A file for a short time.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A proxy to start.
#[derive(Debug)]
struct Proxy {
    name: String,
    program: PathBuf,
    environment: Vec<(String, String)>,
}

fn proxies(options: &Options) -> Vec<Proxy> {
    let proxy = |name: &str, program, environment| Proxy {
        name: name.to_owned(),
        program,
        environment,
    };
    let own = || binary("underpass-proxy");
    let engine = |name: &str| {
        let variable = ("UNDERPASS_TUNNEL_ENGINE".to_owned(), name.to_owned());
        proxy(name, own(), vec![variable])
    };
    let variants = options.variant.iter();
    let variants = variants.map(|v| proxy(&v.name, own(), v.environment.clone()));
    let peers = options.peer.iter();
    let peers = peers.map(|p| proxy(&p.name, p.program.clone(), Vec::new()));
    let engines = ["h2", "own"].map(engine).into_iter();
    let mut all: Vec<_> = engines.chain(variants).chain(peers).collect();
    for proxy in &mut all {
        if options.held > 60_000 {
            // Underpass's default is below this; other proxies ignore it.
            let name = "UNDERPASS_POD_MAX_CONNECTIONS".to_owned();
            proxy.environment.push((name, "300000".to_owned()));
        }
    }
    all
}

/// The environment of a proxy, as in a DaemonSet of ztunnel.
fn environment_of(plane: &ControlPlane, folder: &std::path::Path) -> Vec<(String, String)> {
    let address = format!("https://{}:15012", host_ips(CONTROL_PLANE)[0]);
    let root = plane.root_file().display().to_string();
    let token = folder.join("token").display().to_string();
    let all = [
        ("XDS_ADDRESS", address.as_str()),
        ("CA_ADDRESS", &address),
        ("XDS_ROOT_CA", &root),
        ("CA_ROOT_CA", &root),
        ("ALT_XDS_HOSTNAME", NAME),
        ("ALT_CA_HOSTNAME", NAME),
        ("AUTH_TOKEN", &token),
        ("POD_NAME", "proxy"),
        ("POD_NAMESPACE", "istio-system"),
        ("INSTANCE_IP", "10.200.0.11"),
        ("CLUSTER_ID", "Kubernetes"),
        ("PROXY_MODE", "shared"),
        ("IPV6_ENABLED", "true"),
        ("ISTIO_META_DNS_CAPTURE", "false"),
        ("ZTUNNEL_WORKER_THREADS", "2"),
    ];
    all.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

impl Contestant {
    /// One whose pods are outside the mesh.
    fn outside(
        name: &str,
        hosts: &[NetNs; 2],
        numbers: [u8; 2],
        start: impl FnOnce(&Pod, &Pod) -> Kind,
    ) -> Self {
        let pods = Pod::create(name, hosts, numbers);
        let kind = start(&pods[0], &pods[2]);
        Self::of(name, kind, pods)
    }

    fn of(name: &str, kind: Kind, pods: [Pod; 4]) -> Self {
        let serve = |pod: &Pod| Server::start(&pod.netns, pod.ips[0]);
        let [client, neighbour, server, bystander] = pods;
        Self {
            name: name.to_owned(),
            kind,
            server: serve(&server),
            neighbour: serve(&neighbour),
            bystander: serve(&bystander),
            client: client.netns,
        }
    }

    /// Whether there is a proxy on each node.
    pub(super) fn is_mesh(&self) -> bool {
        matches!(self.kind, Kind::Mesh(_))
    }

    /// Whether its processes can have this many connections at once.
    pub(super) fn can_hold(&self, connections: usize) -> bool {
        let files = match &self.kind {
            Kind::Direct => 0,
            // Twice as many threads would be needed.
            Kind::Floor(_) if self.name == Copying::Threads.contestant() => return false,
            Kind::Floor(_) => 2 * connections,
            // The connections of a tunnel share a socket.
            Kind::Mesh(_) => connections + connections / 50,
        };
        files + 500 < most_files()
    }

    /// The processes on the way.
    pub(super) fn pids(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Direct => Vec::new(),
            Kind::Floor(floor) => floor.pids().into(),
            Kind::Mesh(mesh) => mesh.proxies.into(),
        }
    }

    /// Starts the proxies again, with additional environment variables.
    pub(super) fn restart(&mut self, environment: &[(&str, &str)]) {
        if let Kind::Mesh(mesh) = &mut self.kind {
            mesh.restart(environment);
        }
    }
}

impl Pod {
    /// The pods of a contestant: client and neighbour, server and bystander.
    fn create(contestant: &str, hosts: &[NetNs; 2], numbers: [u8; 2]) -> [Self; 4] {
        let names = [
            ("client", 0),
            ("neighbour", 0),
            ("server", 1),
            ("bystander", 1),
        ];
        names.map(|(name, node)| {
            let (netns, ips) = pod(&hosts[node], numbers[node]);
            for (setting, value) in [
                ("tcp_congestion_control", "reno"),
                // None of those that proxies use in the name of a client.
                ("ip_local_port_range", "32768 65535"),
            ] {
                let path = format!("/proc/sys/net/ipv4/{setting}");
                netns.run(|| std::fs::write(path, value)).unwrap().unwrap();
            }
            let name = format!("{contestant}-{name}");
            Self { name, netns, ips }
        })
    }
}

impl Mesh {
    fn start(
        proxy: Proxy,
        plane: &ControlPlane,
        hosts: [NetNs; 2],
        numbers: [u8; 2],
    ) -> Contestant {
        let name = &proxy.name;
        let pods = Pod::create(name, &hosts, numbers);
        let members = [(0, &pods[0]), (0, &pods[1]), (1, &pods[2])];
        let resources = members.map(|(node, pod)| {
            let mut workload = workload(&pod.name, &pod.ips);
            workload.node = format!("{name}-{node}");
            workload_resource(workload)
        });
        plane.discovery.set(api::ADDRESS, resources);
        let mut index = 0;
        let nodes = hosts.map(|host| {
            let of_node = members.iter().filter(|(node, _)| *node == index);
            let mesh = mesh_file(of_node.map(|(_, pod)| *pod));
            let mut node = TestNode::within(&format!("contest-{name}-{index}"), &mesh, host);
            node.start_agent();
            index += 1;
            node
        });
        let mut mesh = Self {
            nodes,
            proxies: [0; 2],
            proxy,
        };
        mesh.start_proxies(&[]);
        for (node, pod) in members {
            mesh.enrol(node, pod);
        }
        let name = mesh.proxy.name.clone();
        Contestant::of(&name, Kind::Mesh(Box::new(mesh)), pods)
    }

    fn start_proxies(&mut self, environment: &[(&str, &str)]) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let name = format!("{}-{index}", self.proxy.name);
            let own = self
                .proxy
                .environment
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()));
            let all: Vec<_> = own
                .chain(environment.iter().copied())
                .chain([("NODE_NAME", name.as_str())])
                .collect();
            self.proxies[index] = node.start_proxy_program(&self.proxy.program, &all);
        }
        for node in &self.nodes {
            let ready = format!("127.0.0.1:{}", port::READINESS);
            until("the proxy is ready", || {
                let answer = node.get(&ready, "/healthz/ready");
                answer.ok().filter(|(status, _)| *status == 200)
            });
        }
    }

    fn restart(&mut self, environment: &[(&str, &str)]) {
        for (node, proxy) in self.nodes.iter_mut().zip(self.proxies) {
            node.kill(proxy);
        }
        self.start_proxies(environment);
    }

    fn enrol(&self, node: usize, pod: &Pod) {
        let addresses = [format!("{}/32", pod.ips[0]), format!("{}/128", pod.ips[1])];
        let addresses = [addresses[0].as_str(), &addresses[1]];
        let config = config(&self.nodes[node].agent_socket(), &addresses);
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={0};K8S_POD_UID=uid-{0}",
            pod.name
        );
        let id: String = pod.name.bytes().map(|b| format!("{b:02x}")).collect();
        let call = Call::new("ADD", &path_of(&pod.netns), &config)
            .with("CNI_ARGS", Some(&arguments))
            .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")));
        let output = call.run();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}");
    }
}

/// The agent's mesh file: its node's pods are in the mesh.
fn mesh_file<'a>(pods: impl Iterator<Item = &'a Pod>) -> String {
    let mut text = "namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } \
                    }]\nworkloads:\n"
        .to_owned();
    for Pod { name, ips, .. } in pods {
        text += &format!(
            "  - {{ name: {name}, namespace: default, serviceAccount: {name}, node: node, \
             workloadIps: [{}, \"{}\"] }}\n",
            ips[0], ips[1]
        );
    }
    text
}

/// Allows this process and those that it starts as many open files as held connections need.
fn allow_many_files(held: u32) {
    let wanted = u64::from(held) * 4 + 4096;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = wanted.max(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, most.max(soft), most).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
}
