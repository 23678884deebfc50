//! Worker threads. Each has its own runtime, tunnels and connections; relaying bytes touches no
//! shared state.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use error_code::proxy::PANICKED;
use hbone::Pool;
use mesh::Mesh;
use telemetry::{Metrics, Recorder};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::accept::{self, Incoming, ListenerKind};
use super::budget::NodeBudget;
use super::dns_client::DnsClient;
use super::endpoint_health::EndpointHealth;
use super::error::ConnectionError;
use super::join::Joins;
use super::options::Options;
use super::policy_enforcer::PolicyEnforcer;
use crate::inpod::Pod;
use crate::memory;

/// Upper bound of the interval between evictions of idle tunnels.
const LONGEST_EVICTION_INTERVAL: Duration = Duration::from_secs(30);
/// Lower bound of the interval between evictions of idle tunnels.
const SHORTEST_EVICTION_INTERVAL: Duration = Duration::from_secs(1);

/// Lifecycle of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// Accepts connections.
    Serving,
    /// Accepts no new connections; open ones may finish.
    Draining,
    /// Closes the connections that are idle between a request and the next one, until then.
    ClosingIdle(Instant),
    /// Closes the connections that are still open.
    Terminating,
}

/// State shared by the control thread and all workers.
pub(crate) struct ProxyState {
    pub(crate) mesh: ArcSwap<Mesh>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifecycle: watch::Receiver<Lifecycle>,
    /// Settings of the data path.
    pub(crate) options: Options,
    /// What the pods may take from each other.
    pub(crate) budget: Arc<NodeBudget>,
    /// DNS settings; `None` if the proxy does not serve DNS.
    pub(crate) dns: Option<dns::Settings>,
    /// The memory of the DNS caches of all pods.
    pub(crate) dns_budget: Arc<dns::CacheBudget>,
    /// On-demand lookup of mesh addresses; `None` if the proxy subscribes to all of them.
    pub(crate) demand: Option<Arc<discovery::Demand>>,
    /// Whether policies may arrive later than the workloads that refer to them.
    pub(crate) policies_follow: bool,
    /// The name servers that resolve the names of workloads without an address.
    pub(crate) lookup_servers: Vec<SocketAddr>,
    /// Number of listening sockets in pods whose connections are accepted.
    pub(crate) listeners: AtomicUsize,
    /// Number of open connections and tunnel streams.
    pub(crate) connections: AtomicUsize,
    /// Offers to join connections within this process.
    pub(crate) joins: Arc<Joins>,
    /// Number of tunnels to peers that have not closed.
    pub(crate) tunnels: AtomicUsize,
    /// Whether the mesh state is older than the configured maximum. New connections are then
    /// rejected in both directions.
    pub(crate) is_too_old: AtomicBool,
}

/// A command to a worker.
pub(crate) enum WorkerCommand {
    /// Accept connections on this socket and distribute them among the workers.
    Listen(Arc<Pod>, ListenerKind, std::net::TcpListener),
    /// Answer DNS queries on this UDP socket.
    ServeDns(Arc<Pod>, dns::UdpListener),
    /// Serve this connection, which another worker accepted.
    Serve(Incoming<std::net::TcpStream>, OpenGuard),
    /// Apply the new mesh.
    MeshChanged,
    /// Release the resources of a pod that left, given its uid.
    PodLeft(String),
    /// Close the tunnels to peers once their streams have ended.
    CloseTunnels,
    /// Answer, as proof that the worker makes progress.
    Ping(oneshot::Sender<()>),
}

/// The control thread's handle to all workers.
pub(crate) struct Workers {
    proxy: Arc<ProxyState>,
    commands: Vec<UnboundedSender<WorkerCommand>>,
    next_home: usize,
}

impl Workers {
    /// Starts `count` worker threads, at least one.
    pub(crate) fn start(count: usize, proxy: Arc<ProxyState>) -> io::Result<Self> {
        let (commands, receivers): (Vec<_>, Vec<_>) =
            (0..count.max(1)).map(|_| unbounded_channel()).unzip();
        for (index, receiver) in receivers.into_iter().enumerate() {
            start_thread(index, proxy.clone(), commands.clone(), receiver)?;
        }
        Ok(Self {
            proxy,
            commands,
            next_home: 0,
        })
    }

    /// Starts serving a pod on its sockets, which are already listening.
    pub(crate) fn serve(
        &mut self,
        pod: &Arc<Pod>,
        listeners: Vec<(ListenerKind, std::net::TcpListener)>,
        dns_sockets: Vec<dns::UdpListener>,
    ) {
        let home = &self.commands[self.next_home % self.commands.len()];
        self.next_home += 1;
        for (kind, socket) in listeners {
            // Sending cannot fail, because workers live as long as the process.
            let _ = home.send(WorkerCommand::Listen(pod.clone(), kind, socket));
        }
        for socket in dns_sockets {
            let _ = home.send(WorkerCommand::ServeDns(pod.clone(), socket)); // as above
        }
    }

    /// Applies a new mesh, including to open connections.
    pub(crate) fn mesh_changed(&self, mesh: Arc<Mesh>) {
        self.proxy.mesh.store(mesh);
        self.broadcast(|| WorkerCommand::MeshChanged);
    }

    /// Releases the resources of a pod that left.
    pub(crate) fn pod_left(&self, uid: &str) {
        self.broadcast(|| WorkerCommand::PodLeft(uid.to_owned()));
    }

    /// Closes the tunnels to peers once their streams have ended.
    pub(crate) fn close_tunnels(&self) {
        self.broadcast(|| WorkerCommand::CloseTunnels);
    }

    /// Completes once every worker has handled a command. A worker that never does hangs: none
    /// waits for a connection.
    pub(crate) fn ping(&self) -> impl Future<Output = ()> + use<> {
        let ping = |commands: &UnboundedSender<WorkerCommand>| {
            let (done, handled) = oneshot::channel();
            let _ = commands.send(WorkerCommand::Ping(done)); // workers live as long as the process
            handled
        };
        let pings: Vec<_> = self.commands.iter().map(ping).collect();
        async {
            for ping in pings {
                let _ = ping.await; // as above
            }
        }
    }

    fn broadcast(&self, command: impl Fn() -> WorkerCommand) {
        for commands in &self.commands {
            let _ = commands.send(command()); // workers live as long as the process
        }
    }
}

/// Starts a worker thread. Returns once it runs.
fn start_thread(
    index: usize,
    proxy: Arc<ProxyState>,
    all: Vec<UnboundedSender<WorkerCommand>>,
    commands: UnboundedReceiver<WorkerCommand>,
) -> io::Result<()> {
    let (built, is_built) = mpsc::channel();
    let thread = thread::Builder::new().name(format!("worker-{index}"));
    thread.spawn(move || {
        // A runtime of local tasks belongs to the thread that builds it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(e) => return drop(built.send(Err(e))),
        };
        let worker = Rc::new(Worker::new(index, proxy, all));
        process::survive_panics();
        runtime.block_on(process::essential(&PANICKED, async {
            worker.proxy.metrics.threads.add_current();
            let _ = built.send(Ok(())); // the receiver waits
            worker.run(commands).await;
        }));
    })?;
    is_built.recv().unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// One worker thread.
pub(crate) struct Worker {
    pub(crate) proxy: Arc<ProxyState>,
    pub(super) index: usize,
    all: Vec<UnboundedSender<WorkerCommand>>,
    next: std::cell::Cell<usize>,
    pub(super) pool: Pool<ConnectionError>,
    pub(super) policy: Rc<PolicyEnforcer>,
    pub(super) endpoint_health: RefCell<EndpointHealth>,
    pub(super) recorder: Rc<Recorder>,
    /// Notified after this worker has applied a new mesh.
    pub(super) mesh_changed: Notify,
    /// The mesh that open connections were last evaluated against.
    applied_mesh: RefCell<Arc<Mesh>>,
}

impl Worker {
    fn new(index: usize, proxy: Arc<ProxyState>, all: Vec<UnboundedSender<WorkerCommand>>) -> Self {
        let info_logging = proxy.options.authz_policy_info_logging;
        Self {
            mesh_changed: Notify::new(),
            applied_mesh: RefCell::new(proxy.mesh.load_full()),
            index,
            all,
            next: Default::default(),
            pool: Pool::new(proxy.options.pool_unused_release),
            policy: Rc::new(PolicyEnforcer::new(info_logging)),
            endpoint_health: RefCell::default(),
            recorder: Recorder::new(proxy.metrics.clone()),
            proxy,
        }
    }

    async fn run(self: Rc<Self>, mut commands: UnboundedReceiver<WorkerCommand>) {
        let idle = self.proxy.options.pool_unused_release;
        let interval = (idle / 2).clamp(SHORTEST_EVICTION_INTERVAL, LONGEST_EVICTION_INTERVAL);
        let mut eviction = tokio::time::interval(interval);
        let mut tidying = tokio::time::interval(memory::INTERVAL);
        tidying.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.clone().handle(command),
                    None => return,
                },
                _ = tidying.tick() => {
                    self.recorder.forget_ended();
                    byte_relay::close_spare_pipes();
                    memory::empty_thread_cache();
                }
                now = eviction.tick() => {
                    self.pool.evict_idle(now.into_std());
                    self.endpoint_health.borrow_mut().forget(now.into_std());
                }
            }
        }
    }

    fn handle(self: Rc<Self>, command: WorkerCommand) {
        match command {
            WorkerCommand::Listen(pod, kind, socket) => {
                let accept = accept::accept(self, pod, kind, socket);
                tokio::task::spawn_local(process::essential(&PANICKED, accept));
            }
            WorkerCommand::ServeDns(pod, socket) => {
                let client = DnsClient { worker: self, pod };
                let serve = dns::serve_udp(client, socket);
                tokio::task::spawn_local(process::essential(&PANICKED, serve));
            }
            WorkerCommand::Serve(incoming, _counted) => accept::receive(self, incoming),
            WorkerCommand::MeshChanged => self.apply_mesh(),
            WorkerCommand::PodLeft(uid) => self.pool.remove_pod(&uid),
            WorkerCommand::CloseTunnels => self.pool.clear(),
            WorkerCommand::Ping(done) => {
                let _ = done.send(()); // the client may no longer wait
            }
        }
    }

    /// Closes connections that the mesh no longer allows. After several changes in a row, the first
    /// command already applies the latest mesh, and the others do nothing.
    fn apply_mesh(&self) {
        let mesh = self.proxy.mesh.load_full();
        if !Arc::ptr_eq(&mesh, &self.applied_mesh.replace(mesh.clone())) {
            self.policy.reevaluate(&mesh);
            self.mesh_changed.notify_waiters();
        }
    }

    /// The worker that serves the next connection, in turn; `None` for this one.
    pub(super) fn next_worker(&self) -> Option<&UnboundedSender<WorkerCommand>> {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        let target = (self.index + turn) % self.all.len();
        (target != self.index).then(|| &self.all[target])
    }

    /// Counts a connection as open until the guard is dropped.
    pub(super) fn count_open(&self) -> OpenGuard {
        self.proxy.connections.fetch_add(1, Ordering::Relaxed);
        OpenGuard(self.proxy.clone())
    }

    /// Spawns the task of a connection, which counts as open until the task completes.
    pub(crate) fn track(self: Rc<Self>, connection: impl Future<Output = ()> + 'static) {
        let guard = self.count_open();
        tokio::task::spawn_local(async move {
            connection.await;
            drop(guard);
        });
    }
}

/// Counts a tunnel to a peer as open for as long as it lives.
pub(super) struct OpenTunnel(Arc<ProxyState>);

impl OpenTunnel {
    pub(super) fn count(proxy: Arc<ProxyState>) -> Self {
        proxy.tunnels.fetch_add(1, Ordering::Relaxed);
        Self(proxy)
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a connection as open for as long as it lives.
pub(crate) struct OpenGuard(Arc<ProxyState>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
