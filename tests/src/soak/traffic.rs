//! Connections of all kinds between the pods.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

use super::connection::Kind;
use super::scene::{FAULTY, MESH, OUTSIDE, PODS, Scene, name};
use super::service::Service;
use super::tally::Tally;
use crate::sandbox::until;

/// Clients, each with one connection at a time.
const CLIENTS: usize = 48;
/// Longest pause between two connections of a client, in milliseconds.
const PAUSE: u64 = 60;

/// The clients and servers.
#[derive(Debug)]
pub struct Traffic {
    scene: Arc<Scene>,
    has_ended: Arc<AtomicBool>,
    clients: JoinHandle<()>,
    servers: Background,
}

/// Tasks on a thread of their own, which end with this value.
#[derive(Debug)]
pub struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where a connection goes.
struct Path {
    from: usize,
    /// The pod; `None` for the service, whose endpoints stay.
    to: Option<usize>,
    at: SocketAddr,
}

impl Traffic {
    /// Starts all clients and servers.
    pub fn start(scene: Arc<Scene>, tally: Arc<Tally>, mut rng: Rng) -> Self {
        let (for_servers, counts) = (scene.clone(), tally.clone());
        let servers = Background::start(move || Service::start_all(&for_servers, &counts));
        let has_ended = Arc::new(AtomicBool::new(false));
        let (ended, shared) = (has_ended.clone(), scene.clone());
        let clients = std::thread::spawn(move || {
            let mut clients = JoinSet::new();
            let tasks = LocalSet::new();
            for _ in 0..CLIENTS {
                let client = Client {
                    scene: shared.clone(),
                    tally: tally.clone(),
                    has_ended: ended.clone(),
                };
                clients.spawn_local_on(client.run(rng.fork()), &tasks);
            }
            tasks.block_on(&runtime(), async {
                while let Some(ended) = clients.join_next().await {
                    ended.unwrap();
                }
            });
        });
        Self {
            scene,
            has_ended,
            clients,
            servers,
        }
    }

    /// Ends the clients, waits until the servers' connections have ended, and ends the servers.
    pub fn end(self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.clients.join().unwrap();
        until("all connections of the servers have ended", || {
            let open = |pod| self.scene.applications.open(pod);
            (0..PODS).all(|pod| open(pod) == 0).then_some(())
        });
        drop(self.servers);
    }
}

impl Background {
    /// Runs `spawn`, which spawns local tasks, on a thread of its own.
    pub fn start(spawn: impl FnOnce() + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            LocalSet::new().block_on(&runtime(), async {
                spawn();
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
        is_ready.recv().unwrap();
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

struct Client {
    scene: Arc<Scene>,
    tally: Arc<Tally>,
    has_ended: Arc<AtomicBool>,
}

impl Client {
    async fn run(self, mut rng: Rng) {
        while !self.has_ended() {
            let kind = Kind::MIX[rng.usize(0..Kind::MIX.len())];
            let path = Path::random(kind, &mut rng);
            self.connect(kind, &path, &mut rng).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..PAUSE))).await;
        }
    }

    async fn connect(&self, kind: Kind, path: &Path, rng: &mut Rng) {
        let applications = &self.scene.applications;
        let Some(_own) = applications.connect(path.from) else {
            return;
        };
        let peer = path.to.map(|pod| applications.connect(pod));
        if let Some(None) = peer {
            return;
        }
        let is_running = |pod| applications.is_running(pod);
        let may_continue =
            || !self.has_ended() && is_running(path.from) && path.to.is_none_or(is_running);
        let from = self.scene.pod(path.from);
        match kind.perform(from, path.at, rng, &may_continue).await {
            Ok(()) => self.tally.count(kind),
            Err(e) => {
                let (from, at) = (name(path.from), path.at);
                let to = path.to.map_or("the service".to_owned(), name);
                let what = format!("connection {kind} from {from} to {to} at {at}: {e}");
                self.tally.fault(what);
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

impl Path {
    /// A path on which a connection of this kind does what is expected of it.
    fn random(kind: Kind, rng: &mut Rng) -> Self {
        let family = rng.usize(0..2);
        let from = rng.usize(0..FAULTY.start);
        if kind.service() == Service::Echo && MESH.contains(&from) && rng.u32(0..4) == 0 {
            let at = Scene::vip(family);
            return Self { from, to: None, at };
        }
        // Nothing is denied outside, and pods outside do not use the mesh between them.
        let is_within = kind.service() == Service::Denied || OUTSIDE.contains(&from);
        let end = if is_within { MESH.end } else { FAULTY.start };
        let to = (from + rng.usize(1..end)) % end;
        let to = if to == from { (to + 1) % end } else { to };
        let at = Scene::address(to, family, kind.service());
        Self {
            from,
            to: Some(to),
            at,
        }
    }
}
