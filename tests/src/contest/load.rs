//! The load: servers in pods, and clients that measure. A single connection is served by blocking
//! threads, several ones by one event loop at each end, so that the load itself costs little.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netns::NetNs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::sandbox::connect;

const THREADS_PORT: u16 = 9000;
/// Ports of the event loop; several, because a client has at most 32,768 ports for each.
const TASK_PORTS: std::ops::RangeInclusive<u16> = 9001..=9010;
const CHUNK: usize = 256 * 1024;

/// What a server does with a connection: the first byte that it receives.
const DISCARD: u8 = b'd';
const ECHO: u8 = b'e';
const SEND: u8 = b's';

/// The application of a pod.
#[derive(Debug, Clone)]
pub(super) struct Server {
    ip: IpAddr,
    pod: Arc<NetNs>,
    /// Discarded bytes.
    received: Arc<AtomicU64>,
}

impl Server {
    /// Starts a server in a pod; it runs until the process exits.
    pub(super) fn start(pod: &NetNs, ip: IpAddr) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let listen = |port| crate::listener::plain(pod, (Ipv6Addr::UNSPECIFIED, port).into());
        let (listener, counted) = (listen(THREADS_PORT), received.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = counted.clone();
                thread::spawn(move || serve_blocking(stream, &counted));
            }
        });
        let (listeners, counted) = (TASK_PORTS.map(listen).collect(), received.clone());
        thread::spawn(move || serve_tasks(listeners, counted));
        let pod = Arc::new(pod.try_clone().unwrap());
        Self { ip, pod, received }
    }

    pub(super) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Its pod's network namespace.
    pub(super) fn pod(&self) -> &NetNs {
        &self.pod
    }

    fn blocking(&self) -> SocketAddr {
        (self.ip, THREADS_PORT).into()
    }

    fn tasks(&self, connection: usize) -> SocketAddr {
        let ports = TASK_PORTS.len();
        (self.ip, TASK_PORTS.start() + (connection % ports) as u16).into()
    }
}

/// Starts a server at these ports of a pod; it runs until the process exits.
pub(super) fn serve_ports(pod: &NetNs, ports: Range<u16>) {
    let listen = |port| crate::listener::plain(pod, (Ipv6Addr::UNSPECIFIED, port).into());
    let listeners = ports.map(listen).collect();
    thread::spawn(move || serve_tasks(listeners, Arc::default()));
}

fn serve_blocking(mut stream: std::net::TcpStream, received: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        if mode == [SEND] {
            stream.write_all(&buffer)?;
            continue;
        }
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        if mode == [ECHO] {
            stream.write_all(&buffer[..n])?;
        } else {
            received.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

fn serve_tasks(listeners: Vec<std::net::TcpListener>, received: Arc<AtomicU64>) {
    block_on(async {
        let accepting = listeners.into_iter().map(|listener| {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let received = received.clone();
            async move {
                loop {
                    if let Ok((stream, _)) = listener.accept().await {
                        spawn_local(serve_task(stream, received.clone()));
                    }
                }
            }
        });
        futures_util::future::join_all(accepting).await;
    });
}

async fn serve_task(mut stream: tokio::net::TcpStream, received: Arc<AtomicU64>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mode = stream.read_u8().await?;
    if mode == SEND {
        return send(stream, &AtomicBool::new(false)).await;
    }
    // Idle connections hold no large buffer.
    let mut buffer = vec![0; if mode == DISCARD { CHUNK } else { 1024 }];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        if mode == ECHO {
            stream.write_all(&buffer[..n]).await?;
        } else {
            received.fetch_add(n as u64, Ordering::Relaxed);
            yield_now().await;
        }
    }
}

/// Sends until `stopped` is set.
async fn send(mut stream: tokio::net::TcpStream, stopped: &AtomicBool) -> io::Result<()> {
    let chunk = vec![0; CHUNK];
    while !stopped.load(Ordering::Relaxed) {
        stream.write_all(&chunk).await?;
        yield_now().await;
    }
    Ok(())
}

/// The direction of bulk data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// Bulk data that flows until this value is dropped.
#[derive(Debug)]
pub(super) struct Flow {
    stopped: Arc<AtomicBool>,
    /// Bytes that have arrived.
    arrived: Arc<AtomicU64>,
    client: Option<JoinHandle<()>>,
}

impl Flow {
    /// Opens connections from a pod on which bulk data flows.
    pub(super) fn start(
        client: &NetNs,
        server: &Server,
        connections: usize,
        direction: Direction,
    ) -> Self {
        let (client, server) = (client.try_clone().unwrap(), server.clone());
        let stopped = Arc::new(AtomicBool::new(false));
        let arrived = match direction {
            Direction::Up => server.received.clone(),
            Direction::Down => Arc::default(),
        };
        let (is_stopped, counted) = (stopped.clone(), arrived.clone());
        let client = thread::spawn(move || {
            client.enter().unwrap();
            if connections == 1 {
                flow_blocking(&server, direction, &is_stopped, &counted);
            } else {
                flow_tasks(&server, connections, direction, &is_stopped, &counted);
            }
        });
        Self {
            stopped,
            arrived,
            client: Some(client),
        }
    }

    /// Bytes that have arrived so far.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            let _ = client.join();
        }
    }
}

fn flow_blocking(server: &Server, direction: Direction, stopped: &AtomicBool, arrived: &AtomicU64) {
    let mut stream = std::net::TcpStream::connect(server.blocking()).unwrap();
    let mut buffer = vec![0; CHUNK];
    let mode = if direction == Direction::Up {
        DISCARD
    } else {
        SEND
    };
    stream.write_all(&[mode]).unwrap();
    while !stopped.load(Ordering::Relaxed) {
        if direction == Direction::Up {
            stream.write_all(&buffer).unwrap();
        } else {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the connection was closed");
            arrived.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

fn flow_tasks(
    server: &Server,
    connections: usize,
    direction: Direction,
    stopped: &Arc<AtomicBool>,
    arrived: &Arc<AtomicU64>,
) {
    block_on(async {
        let mode = if direction == Direction::Up {
            DISCARD
        } else {
            SEND
        };
        let mut flows = Vec::new();
        for index in 0..connections {
            let mut stream = tokio::net::TcpStream::connect(server.tasks(index))
                .await
                .unwrap();
            stream.write_all(&[mode]).await.unwrap();
            let (stopped, arrived) = (stopped.clone(), arrived.clone());
            flows.push(spawn_local(async move {
                if mode == DISCARD {
                    return send(stream, &stopped).await.unwrap();
                }
                let mut buffer = vec![0; CHUNK];
                while !stopped.load(Ordering::Relaxed) {
                    let n = stream.read(&mut buffer).await.unwrap();
                    assert!(n > 0, "the connection was closed");
                    arrived.fetch_add(n as u64, Ordering::Relaxed);
                    yield_now().await;
                }
            }));
        }
        for flow in flows {
            flow.await.unwrap();
        }
    });
}

/// Times of round trips in microseconds.
pub(super) fn round_trips(
    client: &NetNs,
    server: &Server,
    connections: usize,
    size: usize,
    time: Duration,
) -> Vec<f64> {
    if connections > 1 {
        return in_tasks(client, connections, time, move |index, end, times| {
            exchange(server.tasks(index), size, end, times)
        });
    }
    let mut stream = connect(client, server.blocking()).unwrap();
    stream.write_all(&[ECHO]).unwrap();
    let mut message = vec![1; size];
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&message).unwrap();
        stream.read_exact(&mut message).unwrap();
        times.push(microseconds(sent));
    }
    times
}

async fn exchange(to: SocketAddr, size: usize, end: Instant, times: Rc<Times>) {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[ECHO]).await.unwrap();
    let mut message = vec![1; size];
    loop {
        let sent = Instant::now();
        stream.write_all(&message).await.unwrap();
        stream.read_exact(&mut message).await.unwrap();
        times.add(microseconds(sent));
        if Instant::now() >= end {
            break;
        }
    }
}

/// Times of new connections with one byte in each direction, in microseconds.
pub(super) fn new_connections(
    client: &NetNs,
    server: &Server,
    at_once: usize,
    time: Duration,
) -> Vec<f64> {
    if at_once > 1 {
        return in_tasks(client, at_once, time, move |index, end, times| {
            keep_opening(server.tasks(index), end, times)
        });
    }
    client
        .run(|| {
            let (start, mut times) = (Instant::now(), Vec::new());
            while start.elapsed() < time {
                let begun = Instant::now();
                let mut stream = std::net::TcpStream::connect(server.blocking()).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.write_all(&[ECHO, 1]).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                drop(stream);
                times.push(microseconds(begun));
            }
            times
        })
        .unwrap()
}

async fn keep_opening(to: SocketAddr, end: Instant, times: Rc<Times>) {
    loop {
        let begun = Instant::now();
        drop(open_task(to).await);
        times.add(microseconds(begun));
        if Instant::now() >= end {
            break;
        }
    }
}

/// Opens a connection, and waits until the application has answered.
async fn open_task(to: SocketAddr) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[ECHO, 1]).await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    stream
}

/// Opens many connections that then are idle, this many at a time. They close when the value is
/// dropped.
pub(super) fn hold(
    client: &NetNs,
    server: IpAddr,
    ports: Range<u16>,
    connections: usize,
    at_once: usize,
) -> Vec<std::net::TcpStream> {
    let next = Rc::new(Cell::new(0));
    let opened = client.run(|| {
        block_on(async {
            let openers = (0..at_once).map(|_| {
                let (next, ports) = (next.clone(), ports.clone());
                async move {
                    let mut held = Vec::new();
                    while next.get() < connections {
                        let index = next.replace(next.get() + 1);
                        let port = ports.start + (index % ports.len()) as u16;
                        let stream = open_task((server, port).into()).await;
                        held.push(stream.into_std().unwrap());
                    }
                    held
                }
            });
            let held = futures_util::future::join_all(openers).await;
            held.into_iter().flatten().collect()
        })
    });
    opened.unwrap()
}

/// Collected times of tasks.
#[derive(Debug, Default)]
struct Times(std::cell::RefCell<Vec<f64>>);

impl Times {
    fn add(&self, time: f64) {
        self.0.borrow_mut().push(time);
    }
}

/// Runs as many tasks in a pod until their end, and returns what they have collected.
fn in_tasks<F: Future<Output = ()> + 'static>(
    client: &NetNs,
    tasks: usize,
    time: Duration,
    task: impl Fn(usize, Instant, Rc<Times>) -> F,
) -> Vec<f64> {
    let run = || {
        block_on(async {
            let (end, times) = (Instant::now() + time, Rc::new(Times::default()));
            let running: Vec<_> = (0..tasks)
                .map(|index| spawn_local(task(index, end, times.clone())))
                .collect();
            for task in running {
                task.await.unwrap();
            }
            times.0.take()
        })
    };
    client.run(run).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

fn microseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
