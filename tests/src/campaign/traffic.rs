//! Traffic between all pods, in both families and directions: short and long connections whose
//! data says who sent it to whom.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Socket, Type};

use super::judge::{Evidence, Judge};
use super::scene::{FLIPPED, OUTSIDE, PODS, PORT, STEADY, Scene, addresses, name};
use crate::applications::Applications;
use crate::sandbox::listen;

/// How long a client waits. Connections may fail while rules change and programs are killed.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The user of applications, other than the proxy's.
const APPLICATION_USER: u32 = 1000;

/// The data of a connection: who sends it to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// The client.
    pub from: usize,
    /// The server.
    pub to: usize,
    /// Whether the socket has a mark that an application may not set.
    pub is_marked: bool,
    /// When the connection was opened, in milliseconds since the Unix epoch.
    pub opened_ms: u64,
}

impl Marker {
    /// How every marker starts.
    pub const START: &str = "UPcampaign";

    /// The marker of a connection that is opened now.
    fn now(from: usize, to: usize) -> Self {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            from,
            to,
            is_marked: false,
            opened_ms: u64::try_from(since.as_millis()).unwrap(),
        }
    }

    fn bytes(self) -> Vec<u8> {
        let kind = if self.is_marked { 'M' } else { 'N' };
        let (from, to, opened) = (self.from, self.to, self.opened_ms);
        format!("{}{kind}{from:02}{to:02}{opened:016}\n", Self::START).into_bytes()
    }

    /// When the connection was opened.
    pub fn opened(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.opened_ms)
    }

    /// The first marker in a frame.
    pub fn find(frame: &[u8]) -> Option<Self> {
        let start = Self::START.as_bytes();
        let at = frame.windows(start.len()).position(|w| w == start)?;
        let rest = std::str::from_utf8(frame.get(at + start.len()..)?.get(..21)?).ok()?;
        let number = |part: &str| part.parse().ok().filter(|n| *n < PODS);
        Some(Self {
            is_marked: rest.starts_with('M'),
            from: number(rest.get(1..3)?)?,
            to: number(rest.get(3..5)?)?,
            opened_ms: rest.get(5..)?.parse().ok()?,
        })
    }
}

#[derive(Debug)]
struct Shared {
    scene: Arc<Scene>,
    ended: AtomicBool,
    applications: Applications,
    exchanges: AtomicUsize,
    failures: AtomicUsize,
}

/// The applications of all pods. They end with this value.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts a server in every pod.
    pub fn new(scene: Arc<Scene>, judge: &Arc<Judge>) -> Self {
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            applications: Applications::new(PODS),
            exchanges: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            scene,
        });
        for pod in 0..PODS {
            let listener = listen(shared.scene.pod(pod), PORT);
            let (of, judge) = (shared.clone(), judge.clone());
            std::thread::spawn(move || of.serve(pod, &listener, &judge));
        }
        let clients = Vec::new();
        Self { shared, clients }
    }

    /// Starts the clients of every pod.
    pub fn start(&mut self, mut rng: Rng) {
        for pod in 0..PODS {
            let (of, mut rng) = (self.shared.clone(), rng.fork());
            self.clients
                .push(std::thread::spawn(move || of.connect_all(pod, &mut rng)));
            if STEADY.contains(&pod) {
                let of = self.shared.clone();
                self.clients.push(std::thread::spawn(move || of.talk(pod)));
            }
        }
    }

    /// Ends the clients; the servers continue.
    pub fn end_clients(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|t| drop(t.join()));
        self.shared.ended.store(false, Ordering::Relaxed);
    }

    /// The applications, to stop and resume those of a pod.
    pub fn applications(&self) -> &Applications {
        &self.shared.applications
    }

    /// Connects from a pod with a mark, as the user of applications.
    pub fn connect_marked(&self, pod: usize, mark: u32) {
        let to = (pod + 1) % STEADY.end;
        let at = SocketAddr::new(addresses(to)[0], PORT);
        let connected = self.shared.scene.pod(pod).run(|| -> io::Result<Socket> {
            let before = setfsuid(Uid::from_raw(APPLICATION_USER));
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None);
            setfsuid(before);
            let socket = socket?;
            socket.set_mark(mark)?;
            socket.connect_timeout(&at.into(), TIMEOUT)?;
            Ok(socket)
        });
        if let Ok(Ok(mut socket)) = connected {
            let marker = Marker {
                is_marked: true,
                ..Marker::now(pod, to)
            };
            let _ = socket.write_all(&marker.bytes());
        }
    }

    /// Exchanges that succeeded, and connections that failed.
    pub fn counts(&self) -> (usize, usize) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        (count(&self.shared.exchanges), count(&self.shared.failures))
    }

    /// Pairs of pods of the mesh between which no connection succeeds.
    pub fn unreachable(&self) -> Vec<String> {
        let mut found = Vec::new();
        for from in STEADY.start..FLIPPED.end {
            for to in (STEADY.start..FLIPPED.end).filter(|to| *to != from) {
                for (family, address) in ["IPv4", "IPv6"].into_iter().zip(addresses(to)) {
                    let at = SocketAddr::new(address, PORT);
                    if let Err(e) = self.shared.exchange_once(from, to, at) {
                        found.push(format!("{} to {} over {family}: {e}", name(from), name(to)));
                    }
                }
            }
        }
        found
    }
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Notes a connection of a pod, while its applications run.
    fn while_running<T>(&self, pod: usize, work: impl FnOnce() -> T) -> Option<T> {
        let _connection = self.applications.connect(pod)?;
        (!self.has_ended()).then(work)
    }

    fn serve(self: &Arc<Self>, pod: usize, listener: &TcpListener, judge: &Arc<Judge>) {
        for stream in listener.incoming().flatten() {
            let (of, judge) = (self.clone(), judge.clone());
            std::thread::spawn(move || {
                of.while_running(pod, || of.echo(pod, stream, &judge));
            });
        }
    }

    fn echo(&self, pod: usize, mut stream: TcpStream, judge: &Judge) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut data = [0; 256];
        while self.applications.is_running(pod) && !self.has_ended() {
            let length = match stream.read(&mut data) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            };
            if let Some(marker) = Marker::find(&data[..length])
                && OUTSIDE.contains(&marker.from)
                && !OUTSIDE.contains(&pod)
            {
                let at = SystemTime::now();
                judge.report(Evidence::Accepted { at, marker });
            }
            stream.write_all(&data[..length])?;
        }
        Ok(())
    }

    /// Opens one connection after the other to random pods of the mesh.
    fn connect_all(&self, pod: usize, rng: &mut Rng) {
        while !self.has_ended() {
            let to = rng.usize(STEADY.start..FLIPPED.end);
            let at = SocketAddr::new(addresses(to)[rng.usize(0..2)], PORT);
            if to != pod {
                let result = self.while_running(pod, || self.exchange_once(pod, to, at));
                if !OUTSIDE.contains(&pod) {
                    self.count(result); // the others are refused
                }
            }
            std::thread::sleep(Duration::from_millis(rng.u64(5..60)));
        }
    }

    /// Keeps one connection to the next pod busy.
    fn talk(&self, pod: usize) {
        let to = (pod + 1) % STEADY.end;
        let at = SocketAddr::new(addresses(to)[pod / 2 % 2], PORT);
        while !self.has_ended() {
            let result = self.while_running(pod, || {
                let marker = Marker::now(pod, to);
                let mut stream = self.open(pod, at)?;
                while self.applications.is_running(pod) && !self.has_ended() {
                    exchange(&mut stream, marker)?;
                    self.exchanges.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(30));
                }
                Ok(())
            });
            self.count(result);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn count(&self, result: Option<io::Result<()>>) {
        match result {
            Some(Ok(())) => &self.exchanges,
            Some(Err(_)) => &self.failures,
            None => return,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self, pod: usize, at: SocketAddr) -> io::Result<TcpStream> {
        let connected = self
            .scene
            .pod(pod)
            .run(|| TcpStream::connect_timeout(&at, TIMEOUT));
        let stream = connected.map_err(io::Error::other)??;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(stream)
    }

    fn exchange_once(&self, pod: usize, to: usize, at: SocketAddr) -> io::Result<()> {
        let marker = Marker::now(pod, to);
        exchange(&mut self.open(pod, at)?, marker)
    }
}

fn exchange(stream: &mut TcpStream, marker: Marker) -> io::Result<()> {
    let data = marker.bytes();
    stream.write_all(&data)?;
    let mut answer = vec![0; data.len()];
    stream.read_exact(&mut answer)?;
    if answer == data {
        return Ok(());
    }
    Err(io::Error::other("another answer than was sent"))
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end_clients();
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}
