//! Many idle connections, of which some transfer megabytes all at once and then are idle again. The
//! server is a process of its own, so that each process has one end of each connection.

#![allow(clippy::disallowed_types)] // starts the server

use std::convert::Infallible;
use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netns::NetNs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::listener::connect_async;
use crate::measure::anonymous;
use crate::sandbox::{MESH, Sandbox, eventually, until};

/// The argument with which a program runs [`run_server`].
pub const SERVER: &str = "burst-server";
const PORT: u16 = 9090;
/// Descriptors that a process has besides connections.
const OTHER_FILES: u64 = 1000;
/// How long an idle tunnel is kept.
const SHORT_IDLE: (&str, &str) = ("POOL_UNUSED_RELEASE_TIMEOUT", "5s");
const NODES: [&str; 2] = ["node-1", "node-2"];
/// Connections that are opened at once.
const AT_ONCE: usize = 64;
/// Bytes that are written at once.
const CHUNK: usize = 64 * 1024;
/// Time between two measurements of the burst.
const INTERVAL: Duration = Duration::from_millis(50);

/// What happens.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// Connections that are open all the time.
    pub idle: usize,
    /// How many of them transfer data at the same time.
    pub bursting: usize,
    /// Bytes that each of these transfers.
    pub bytes: usize,
}

/// Memory of a proxy, in KiB, without that of files, and its descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Before the connections were opened.
    pub before: usize,
    /// With all connections open.
    pub idle: usize,
    /// Open descriptors with all connections open.
    pub descriptors: usize,
    /// The most during the burst.
    pub most: usize,
    /// After the burst, with all connections open, as soon as it has returned.
    pub after: usize,
    /// Once the connections are closed, as soon as it has returned.
    pub end: usize,
}

/// Whether memory is at most half as much more as it was.
pub fn has_returned(now: usize, before: usize) -> bool {
    now <= before + before / 2
}

impl Burst {
    /// Does it in a sandbox, by tunnel, with a server that `program` runs. Returns what the proxies
    /// of the client and of the server used.
    ///
    /// # Panics
    /// If a byte or a connection is lost, or if the hard limit of open files is too low.
    pub fn run(self, name: &str, program: &Path) -> [Memory; 2] {
        let hard = raise_descriptor_limit();
        let needed = self.idle as u64 + OTHER_FILES;
        assert!(hard >= needed, "{needed} open files needed, {hard} allowed");
        let scene = Scene::up(name, program);
        let mut memory = [Memory::default(); 2];
        let mut note = |of: fn(&mut Memory) -> &mut usize, used: [usize; 2]| {
            for (memory, used) in memory.iter_mut().zip(used) {
                *of(memory) = used;
            }
        };
        drop(scene.open(2 * AT_ONCE)); // a tunnel for each worker, and what is kept from then on
        scene.await_closed();
        let before = scene.memory();
        note(|m| &mut m.before, before);
        let mut open = scene.open(self.idle);
        let idle = scene.memory();
        note(|m| &mut m.idle, idle);
        note(|m| &mut m.descriptors, scene.pids().map(descriptors));
        let (bursting, most) = scene.burst(open.split_off(self.idle - self.bursting), self.bytes);
        open.extend(bursting);
        note(|m| &mut m.most, most);
        note(|m| &mut m.after, scene.returned(idle));
        scene.exchange_on_all(&mut open);
        drop(open);
        scene.await_closed();
        note(|m| &mut m.end, scene.returned(before));
        memory
    }
}

/// A sandbox whose server confirms messages.
struct Scene {
    sandbox: Sandbox,
    client: Arc<NetNs>,
    to: SocketAddr,
    runtime: Runtime,
    server: Child,
}

impl Scene {
    fn up(name: &str, program: &Path) -> Self {
        let sandbox = Sandbox::up_in(name, MESH, &[SHORT_IDLE]);
        Self {
            server: start_server(program, &sandbox.pod("server")),
            client: Arc::new(sandbox.pod("client")),
            to: SocketAddr::new(sandbox.ips("server")[0], PORT),
            runtime: runtime(),
            sandbox,
        }
    }

    fn pids(&self) -> [u32; 2] {
        NODES.map(|node| {
            let pid = self.sandbox.node(node)["proxy_pid"].as_u64().unwrap();
            u32::try_from(pid).unwrap()
        })
    }

    fn memory(&self) -> [usize; 2] {
        self.pids().map(anonymous)
    }

    /// Opens connections, and exchanges a message on each.
    fn open(&self, count: usize) -> Vec<TcpStream> {
        self.runtime.block_on(async {
            let (mut opening, mut open) = (JoinSet::new(), Vec::new());
            for _ in 0..count {
                let (client, to) = (self.client.clone(), self.to);
                opening.spawn(async move {
                    let mut stream = connect_async(&client, to, None).await.unwrap();
                    exchange(&mut stream, 1).await.unwrap();
                    stream
                });
                if opening.len() == AT_ONCE {
                    open.push(opening.join_next().await.unwrap().unwrap());
                }
            }
            open.extend(opening.join_all().await);
            open
        })
    }

    /// Sends as many bytes on all connections at the same time. Returns the connections and the
    /// most memory meanwhile.
    fn burst(&self, streams: Vec<TcpStream>, bytes: usize) -> (Vec<TcpStream>, [usize; 2]) {
        let (pids, has_ended) = (self.pids(), Arc::new(AtomicBool::new(false)));
        let ended = has_ended.clone();
        let sampler = thread::spawn(move || {
            let mut most = [0; 2];
            while !ended.load(Ordering::Relaxed) {
                for (most, pid) in most.iter_mut().zip(pids) {
                    *most = anonymous(pid).max(*most);
                }
                thread::sleep(INTERVAL);
            }
            most
        });
        let streams = self.runtime.block_on(async {
            let mut all = JoinSet::new();
            for mut stream in streams {
                all.spawn(async move {
                    exchange(&mut stream, bytes).await.unwrap();
                    stream
                });
            }
            all.join_all().await
        });
        has_ended.store(true, Ordering::Relaxed);
        (streams, sampler.join().unwrap())
    }

    fn exchange_on_all(&self, streams: &mut [TcpStream]) {
        self.runtime.block_on(async {
            for stream in streams {
                exchange(stream, 1).await.unwrap();
            }
        });
    }

    /// Waits until memory has returned; returns it, and otherwise what it is after a long time.
    fn returned(&self, before: [usize; 2]) -> [usize; 2] {
        eventually(|| {
            let now = self.memory();
            let mut all = now.into_iter().zip(before);
            let has_returned = all.all(|(now, before)| has_returned(now, before));
            thread::sleep(INTERVAL);
            has_returned.then_some(now)
        })
        .unwrap_or_else(|| self.memory())
    }

    /// Waits until the proxies have no connections, not even tunnels.
    fn await_closed(&self) {
        until("all connections have ended", || {
            let open = NODES.map(|node| {
                let (_, status) = self.sandbox.get(node, "127.0.0.1:15000", "/status");
                let status: Value = serde_json::from_str(&status).unwrap();
                status["connections"].as_u64().unwrap()
            });
            (open == [0; 2]).then_some(())
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Raises the soft limit of open files to the hard one, which it returns.
fn raise_descriptor_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Starts the server in a pod, and waits until it listens.
fn start_server(program: &Path, pod: &NetNs) -> Child {
    let mut command = Command::new(program);
    command
        .arg(SERVER)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    netns::process::in_netns(&mut command, pod).unwrap();
    let mut server = netns::process::die_with_parent(&mut command)
        .spawn()
        .unwrap();
    let listens = server.stdout.as_mut().unwrap().read_exact(&mut [0]);
    listens.unwrap();
    server
}

/// The server's process: confirms messages for ever.
pub fn run_server() {
    raise_descriptor_limit();
    let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    println!("listening");
    runtime().block_on(serve(listener));
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Sends a message, its length first, and waits until the server has all of it.
async fn exchange(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    let chunk = vec![7; CHUNK.min(length)];
    stream.write_u64(length as u64).await?;
    let mut rest = length;
    while rest > 0 {
        let next = rest.min(chunk.len());
        stream.write_all(&chunk[..next]).await?;
        rest -= next;
    }
    match stream.read_u64().await? {
        confirmed if confirmed == length as u64 => Ok(()),
        other => Err(io::Error::other(format!("{other} of {length} bytes"))),
    }
}

/// Confirms the messages of all connections.
async fn serve(listener: std::net::TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(confirm(stream));
        }
    }
}

async fn confirm(mut stream: TcpStream) -> io::Result<Infallible> {
    loop {
        let length = stream.read_u64().await?;
        let mut message = (&mut stream).take(length);
        let arrived = tokio::io::copy(&mut message, &mut tokio::io::sink()).await?;
        stream.write_u64(arrived).await?;
    }
}
