//! A thousand agents and one API server: how many requests and bytes their watches cost.
//!
//! The API server is played: it counts, and ends each watch after a sixtieth of the requested time,
//! so that a minute of the benchmark is an hour. The agents are the product's watches.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kubernetes::{Api, DaemonSet, Namespace, Node, Pod, Selector, WatchEvent, watch};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{Sender, channel};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::node::TestNode;

const AGENTS: usize = 1000;
/// Pods of a node, and namespaces of the cluster.
const PODS: usize = 30;
const NAMESPACES: usize = 100;
/// Watches of an agent.
const WATCHES: usize = 4;
/// How much shorter watches are than requested.
const SPEEDUP: u32 = 60;
/// How long undisturbed watches are counted, and how long the API server is down.
const UNDISTURBED: Duration = Duration::from_secs(30);
const DOWN: Duration = Duration::from_secs(10);
/// Text of objects that agents do not decode, such as `managedFields`; sizes in bytes of pods in
/// clusters are 5 to 10 KB.
const PADDING: usize = 4000;

/// Runs the benchmark in a namespace of its own.
pub fn run() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let node = TestNode::new("bench-watches", "{}");
    let path = node.file("kubeconfig");
    std::fs::write(&path, kubeconfig()).unwrap();
    for streams in [true, false] {
        let all = async {
            let server = Rc::new(ApiServer::new(streams));
            let restarts = server.generation.clone();
            let serving = spawn_local(server.clone().serve());
            let begun = Instant::now();
            for agent in 0..AGENTS {
                let client = kubernetes::connect(Some(&path)).await.unwrap();
                spawn_agent(client, agent, &server);
            }
            let how = if streams { "streamed" } else { "unstreamed" };
            server.await_lists(AGENTS * WATCHES).await;
            server.report(&format!("initial {how} lists"), begun.elapsed());
            if !streams {
                return;
            }
            server.started.send_replace(true);
            sleep(UNDISTURBED).await;
            server.report("watches that end and restart", UNDISTURBED * SPEEDUP);
            // The history is lost with the server, so that every watch begins with a list.
            serving.abort();
            restarts.send_modify(|generation| *generation += 1);
            sleep(DOWN).await;
            server.counts.take();
            let begun = Instant::now();
            spawn_local(server.clone().serve());
            server.await_lists(2 * AGENTS * WATCHES).await;
            let what = format!("lists after the API server was down for {DOWN:?}");
            server.report(&what, begun.elapsed());
        };
        node.netns
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                LocalSet::new().block_on(&runtime, all);
            })
            .unwrap();
    }
}

/// Starts the watches of an agent.
fn spawn_agent(client: kubernetes::Client, agent: usize, server: &Rc<ApiServer>) {
    fn listed<K>(server: &Rc<ApiServer>) -> impl FnMut(WatchEvent<K>) + use<K> {
        let server = server.clone();
        move |event| {
            if let WatchEvent::Listed(_) = event {
                server.lists.set(server.lists.get() + 1);
            }
        }
    }
    let fields = |fields: String| Selector {
        fields,
        ..Selector::default()
    };
    let (c, s) = (client, server);
    let pods = (Api::<Pod>::all(c.clone()), listed(s));
    let namespaces = (Api::<Namespace>::all(c.clone()), listed(s));
    let nodes = (Api::<Node>::all(c.clone()), listed(s));
    let sets = (Api::<DaemonSet>::namespaced(c, "istio-system"), listed(s));
    spawn_local(async move {
        let of_node = fields(format!("spec.nodeName=n{agent}"));
        watch(pods.0, &of_node, pods.1).await;
    });
    spawn_local(async move { watch(namespaces.0, &Selector::default(), namespaces.1).await });
    spawn_local(async move {
        let node = fields(format!("metadata.name=n{agent}"));
        watch(nodes.0, &node, nodes.1).await;
    });
    spawn_local(async move {
        let agents = fields("metadata.name=underpass-cni-node".to_owned());
        watch(sets.0, &agents, sets.1).await;
    });
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    rejected: u64,
    bytes: u64,
    /// Requests of each second.
    seconds: Vec<u64>,
    since: Option<Instant>,
}

/// The played API server.
struct ApiServer {
    streams: bool,
    counts: RefCell<Counts>,
    /// Complete lists that agents have received.
    lists: Cell<usize>,
    /// Increments when all connections end.
    generation: Sender<u32>,
    /// Set when all agents have started; watches end only then.
    started: Sender<bool>,
    objects: [(&'static str, Vec<Value>); WATCHES],
}

impl ApiServer {
    fn new(streams: bool) -> Self {
        let many = |kind: &str, count| (0..count).map(|i| object(kind, i)).collect();
        Self {
            streams,
            counts: RefCell::default(),
            lists: Cell::default(),
            generation: channel(0).0,
            started: channel(false).0,
            objects: [
                ("pods", many("Pod", PODS)),
                ("namespaces", many("Namespace", NAMESPACES)),
                ("nodes", many("Node", 1)),
                ("daemonsets", many("DaemonSet", 1)),
            ],
        }
    }

    async fn serve(self: Rc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:8080").await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = self.clone();
            spawn_local(async move {
                let mut generation = server.generation.subscribe();
                tokio::select! {
                    _ = server.connection(stream) => {}
                    _ = generation.changed() => {}
                }
            });
        }
    }

    /// Serves requests until the agent closes the connection.
    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut received = Vec::new();
        loop {
            while !received.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut received).await? == 0 {
                    return Ok(());
                }
            }
            let text = String::from_utf8_lossy(&received).into_owned();
            received.clear();
            self.answer(&text, &mut stream).await?;
        }
    }

    async fn answer(&self, request: &str, stream: &mut TcpStream) -> std::io::Result<()> {
        self.count(|counts| counts.requests += 1);
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let resource = path.rsplit('/').next().unwrap_or_default();
        let (_, objects) = self.objects.iter().find(|o| o.0 == resource).unwrap();
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        if parameter("watch").is_none() {
            let list = json!({
                "kind": "List",
                "apiVersion": "v1",
                "metadata": { "resourceVersion": self.version() },
                "items": objects,
            });
            return self.send(stream, 200, &list.to_string()).await;
        }
        let lists = parameter("sendInitialEvents") == Some("true");
        if lists && !self.streams {
            self.count(|counts| counts.rejected += 1);
            let status = json!({ "kind": "Status", "code": 422, "reason": "Invalid" });
            return self.send(stream, 422, &status.to_string()).await;
        }
        self.write(
            stream,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await?;
        if lists {
            let added = objects
                .iter()
                .map(|o| json!({ "type": "ADDED", "object": o }));
            let end = json!({
                "type": "BOOKMARK",
                "object": {
                    "kind": objects[0]["kind"],
                    "apiVersion": objects[0]["apiVersion"],
                    "metadata": {
                        "resourceVersion": self.version(),
                        "annotations": { "k8s.io/initial-events-end": "true" },
                    },
                },
            });
            let text: String = added.chain([end]).map(|e| format!("{e}\n")).collect();
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            self.write(stream, chunk.as_bytes()).await?;
        }
        if lists || parameter("resourceVersion") == Some(&*self.version()) {
            let mut started = self.started.subscribe();
            let _ = started.wait_for(|started| *started).await;
            let seconds = parameter("timeoutSeconds").and_then(|s| s.parse().ok());
            sleep(Duration::from_secs(seconds.unwrap_or(300)) / SPEEDUP).await;
        } else {
            self.count(|counts| counts.rejected += 1);
            let status = json!({ "kind": "Status", "code": 410, "reason": "Expired" });
            let text = format!("{}\n", json!({ "type": "ERROR", "object": status }));
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            self.write(stream, chunk.as_bytes()).await?;
        }
        self.write(stream, b"0\r\n\r\n").await
    }

    /// The version of all objects; another one after a restart.
    fn version(&self) -> String {
        (100 + *self.generation.borrow()).to_string()
    }

    async fn send(&self, stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             \r\n"
        );
        self.write(stream, head.as_bytes()).await?;
        self.write(stream, body.as_bytes()).await
    }

    async fn write(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        self.count(|counts| counts.bytes += bytes.len() as u64);
        stream.write_all(bytes).await
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let counts = &mut *self.counts.borrow_mut();
        let before = counts.requests;
        change(counts);
        let since = *counts.since.get_or_insert_with(Instant::now);
        let second = usize::try_from(since.elapsed().as_secs()).unwrap();
        counts
            .seconds
            .resize(counts.seconds.len().max(second + 1), 0);
        counts.seconds[second] += counts.requests - before;
    }

    /// Waits until the agents have received this many lists since the start.
    async fn await_lists(&self, count: usize) {
        let complete = async {
            while self.lists.get() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let complete = timeout(Duration::from_secs(300), complete).await;
        assert!(complete.is_ok(), "{} of {count} lists", self.lists.get());
    }

    /// Prints and resets the counts of this time.
    fn report(&self, what: &str, time: Duration) {
        let (counts, seconds) = (self.counts.take(), time.as_secs_f64());
        let rate = |n: u64| format!("{:.1}", n as f64 / seconds);
        let (requests, rejected) = (counts.requests, counts.rejected);
        let peak = counts.seconds.iter().max().copied().unwrap_or_default();
        println!(
            "agent   {AGENTS} agents, {what}, {seconds:.0} s: {requests} requests ({}/s; most in \
             a second of the benchmark {peak}; rejected {rejected}), {:.1} MiB ({} KiB/s)",
            rate(requests),
            counts.bytes as f64 / f64::from(1 << 20),
            rate(counts.bytes / 1024),
        );
    }
}

fn kubeconfig() -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": "http://127.0.0.1:8080" } }],
        "users": [{ "name": "u", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "c",
    })
    .to_string()
}

/// An object of realistic size.
fn object(kind: &str, i: usize) -> Value {
    let version = match kind {
        "DaemonSet" => "apps/v1",
        _ => "v1",
    };
    let padding = if kind == "Namespace" { 500 } else { PADDING };
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": format!("object-{i}"),
            "namespace": "default",
            "uid": format!("00000000-0000-0000-0000-{i:012}"),
            "resourceVersion": "100",
            "labels": { "app": format!("app-{i}") },
            "managedFields": [{ "fieldsV1": { "f:x": "x".repeat(padding) } }],
        },
        "spec": {
            "nodeName": "n",
            "serviceAccountName": "default",
            "containers": [{ "name": "main", "image": "registry.example.com/team/application" }],
            "selector": {},
            "template": { "spec": {} },
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{ "ip": "10.0.0.1" }],
            "startTime": "2026-01-01T00:00:00Z",
        },
    })
}
