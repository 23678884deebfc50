//! Worker threads: each has its own runtime, tunnels and connections, and shares nothing on the path of a byte.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh::Mesh;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use super::connection::Accepted;
use super::error::ConnectionError;
use super::options::Options;
use super::policed::Policed;
use super::{inbound, outbound, passthrough, probe, sockets};
use crate::dns;
use crate::hbone::Pool;
use crate::inpod::Pod;
use crate::telemetry::Metrics;

/// How often idle tunnels are looked for.
const TIDIED_AT_LEAST: Duration = Duration::from_secs(30);
const TIDIED_AT_MOST: Duration = Duration::from_secs(1);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What the whole process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connections are accepted.
    Serving,
    /// No more connections; those that are open may finish.
    Draining,
    /// What is still open is cut.
    Ended,
}

/// What all workers share.
pub(crate) struct Node {
    pub(crate) mesh: ArcSwap<Mesh>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// What may be set of the data path.
    pub(crate) options: Options,
    /// How names are answered; `None` leaves DNS alone.
    pub(crate) dns: Option<dns::Settings>,
    /// Where addresses of the mesh are asked for one by one.
    pub(crate) demand: Option<Arc<crate::control::Demand>>,
    /// Looks up names of workloads that have no address.
    pub(crate) resolver: Arc<dns::Resolver>,
    /// Connections that are open now, and streams of tunnels.
    pub(crate) connections: AtomicUsize,
    /// Whether the mesh was not confirmed for longer than it may: then nothing new is let out or in.
    pub(crate) is_too_old: AtomicBool,
}

/// What a listening socket in a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Connections that the pod opens.
    Outbound,
    /// Plaintext connections to the pod.
    Inbound,
    /// Tunnels to the pod.
    Hbone,
    /// What the pod asks of name servers over TCP.
    Dns,
}

/// What a worker is told.
pub(crate) enum Job {
    /// Accept connections on this socket, and share them out.
    Listen(Arc<Pod>, Listener, std::net::TcpListener),
    /// Answer what is asked of name servers on this socket.
    Resolve(Arc<Pod>, dns::UdpListener),
    /// Serve this connection.
    Serve(Arc<Pod>, Listener, std::net::TcpStream, SocketAddr, Instant),
    /// The mesh has changed.
    MeshChanged,
    /// A pod has left.
    PodGone(String),
}

/// All workers, as the control thread sees them.
pub(crate) struct Workers {
    node: Arc<Node>,
    jobs: Vec<UnboundedSender<Job>>,
    next_home: usize,
}

impl Workers {
    /// Starts `count` threads.
    pub(crate) fn start(count: usize, node: Arc<Node>) -> io::Result<Self> {
        let (jobs, receivers): (Vec<_>, Vec<_>) = (0..count.max(1)).map(|_| unbounded_channel()).unzip();
        for (index, receiver) in receivers.into_iter().enumerate() {
            let (node, all) = (node.clone(), jobs.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let worker = Rc::new(Worker {
                    mesh_changed: Notify::new(),
                    seen: RefCell::new(node.mesh.load_full()),
                    index,
                    all,
                    next: Default::default(),
                    pool: Pool::new(node.options.pool_unused_release),
                    policed: Rc::new(Policed::new(node.options.authz_policy_info_logging)),
                    node,
                });
                let _entered = runtime.enter();
                worker.node.metrics.threads.add_this();
                tokio::task::LocalSet::new().block_on(&runtime, worker.run(receiver));
            })?;
        }
        Ok(Self { node, jobs, next_home: 0 })
    }

    /// Begins to serve a pod; its sockets are listening already.
    pub(crate) fn serve(
        &mut self,
        pod: &Arc<Pod>,
        listeners: Vec<(Listener, std::net::TcpListener)>,
        datagrams: Vec<dns::UdpListener>,
    ) {
        let home = &self.jobs[self.next_home % self.jobs.len()];
        self.next_home += 1;
        for (kind, socket) in listeners {
            let _ = home.send(Job::Listen(pod.clone(), kind, socket)); // a worker ends with the process only
        }
        for socket in datagrams {
            let _ = home.send(Job::Resolve(pod.clone(), socket)); // a worker ends with the process only
        }
    }

    /// Puts a new mesh in force, also for connections that are open.
    pub(crate) fn mesh_changed(&self, mesh: Arc<Mesh>) {
        self.node.mesh.store(mesh);
        self.tell_all(|| Job::MeshChanged);
    }

    /// A pod has left.
    pub(crate) fn pod_gone(&self, uid: &str) {
        self.tell_all(|| Job::PodGone(uid.to_owned()));
    }

    fn tell_all(&self, job: impl Fn() -> Job) {
        for jobs in &self.jobs {
            let _ = jobs.send(job()); // a worker ends with the process only
        }
    }
}

/// One worker.
pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    index: usize,
    all: Vec<UnboundedSender<Job>>,
    next: std::cell::Cell<usize>,
    pub(super) pool: Pool<ConnectionError>,
    pub(super) policed: Rc<Policed>,
    /// Notified when this worker has seen a new mesh.
    pub(super) mesh_changed: Notify,
    /// The mesh that connections were judged by last.
    seen: RefCell<Arc<Mesh>>,
}

impl Worker {
    async fn run(self: Rc<Self>, mut jobs: UnboundedReceiver<Job>) {
        let idle = self.node.options.pool_unused_release;
        let mut tidy = tokio::time::interval((idle / 2).clamp(TIDIED_AT_MOST, TIDIED_AT_LEAST));
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => self.clone().take(job),
                    None => return,
                },
                now = tidy.tick() => self.pool.tidy(now.into_std()),
            }
        }
    }

    fn take(self: Rc<Self>, job: Job) {
        match job {
            Job::Listen(pod, kind, socket) => {
                tokio::task::spawn_local(self.accept(pod, kind, socket));
            }
            Job::Resolve(pod, socket) => {
                tokio::task::spawn_local(dns::serve_udp(self, pod, socket));
            }
            Job::Serve(pod, kind, stream, peer, started) => match TcpStream::from_std(stream) {
                Ok(stream) => self.serve(kind, pod, stream, peer, started),
                Err(e) => tracing::error!("a connection cannot be served: {e}"),
            },
            Job::MeshChanged => self.look_at_mesh(),
            Job::PodGone(uid) => self.pool.forget_pod(&uid),
        }
    }

    /// Cuts what the mesh does not allow any more. Of many changes in a row, the first to be told sees the last.
    fn look_at_mesh(&self) {
        let mesh = self.node.mesh.load_full();
        if !Arc::ptr_eq(&mesh, &self.seen.replace(mesh.clone())) {
            self.policed.reconsider(&mesh);
            self.mesh_changed.notify_waiters();
        }
    }

    /// Accepts until the pod leaves or the proxy stops accepting.
    async fn accept(self: Rc<Self>, pod: Arc<Pod>, kind: Listener, socket: std::net::TcpListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(e) => return tracing::error!(pod = pod.uid, "a listener cannot be served: {e}"),
        };
        let (mut gone, mut phase) = (pod.gone.clone(), self.node.phase.clone());
        let over = async {
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => {}
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
            }
        };
        tokio::pin!(over);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut over => return,
            };
            match accepted {
                Ok((stream, peer)) => self.share(&pod, kind, stream, peer),
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    tracing::error!(pod = pod.uid, "cannot accept: {e}");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    /// Every worker gets its share.
    fn share(self: &Rc<Self>, pod: &Arc<Pod>, kind: Listener, stream: TcpStream, peer: SocketAddr) {
        let started = Instant::now();
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        sockets::tune(&stream, &pod.tcp);
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        let whose = (self.index + turn) % self.all.len();
        if whose == self.index {
            return self.clone().serve(kind, pod.clone(), stream, peer, started);
        }
        match stream.into_std() {
            Ok(stream) => {
                let _ = self.all[whose].send(Job::Serve(pod.clone(), kind, stream, peer, started));
            }
            Err(e) => tracing::error!("a connection cannot be handed over: {e}"),
        }
    }

    fn serve(self: Rc<Self>, kind: Listener, pod: Arc<Pod>, stream: TcpStream, peer: SocketAddr, started: Instant) {
        if probe::is_direct(&stream, peer) {
            return self.track(async move { probe::answer(stream, &pod).await });
        }
        let accepted = Accepted { worker: self.clone(), pod, stream, peer, started };
        match kind {
            Listener::Outbound => self.track(outbound::serve(accepted)),
            Listener::Inbound => self.track(passthrough::serve(accepted)),
            Listener::Hbone => self.track(inbound::serve(accepted)),
            Listener::Dns => self.track(dns::serve_tcp(accepted)),
        }
    }

    /// Runs a connection, counted as open until it ends.
    pub(crate) fn track(self: Rc<Self>, connection: impl Future<Output = ()> + 'static) {
        struct Open(Arc<Node>);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.node.connections.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.node.clone());
        tokio::task::spawn_local(async move {
            connection.await;
            drop(open);
        });
    }
}
