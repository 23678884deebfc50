//! What a pod with many busy connections does to another pod, which the same worker of the proxy
//! serves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns::NetNs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{spawn_local, yield_now};

use crate::measure::cpu;
use crate::sandbox::{MESH, Sandbox, connect, listen, read_line, serve_echo};

/// Numbers of busy connections.
const BUSY: [usize; 4] = [0, 5, 50, 500];
const TIME: Duration = Duration::from_secs(3);

/// What the busy connections do.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Each sends as fast as it can.
    Bulk,
    /// Each exchanges one small message after another.
    Messages,
}

/// State of the busy connections.
#[derive(Debug, Default)]
struct Busy {
    /// Bytes or messages that have arrived.
    arrived: AtomicU64,
    has_ended: AtomicBool,
}

/// Measures one-byte round trips of one pod while another one is busy.
pub fn run() {
    let bystander = "  - { name: bystander, namespace: outside, node: node-2, workloadIps: \
                     [10.77.2.3, \"fd77:2::3\"] }\nservices:";
    let mesh = MESH.replace("\nservices:", &format!("\n{bystander}"));
    let one_worker = [("ZTUNNEL_WORKER_THREADS", "1")];
    let sandbox = Sandbox::up_in("bench-share", &mesh, &one_worker);
    for pod in ["server", "bystander"] {
        serve_echo(&sandbox.pod(pod), 8080);
    }
    for (path, server) in [("passthrough", "bystander"), ("HBONE", "server")] {
        for load in [Load::Bulk, Load::Messages] {
            for count in BUSY {
                let [median, most, worst, cpu] = beside(&sandbox, server, load, count);
                println!(
                    "share   {path}, beside {count} connections with {load:?}: round trip \
                     {median:.2} ms, p99 {most:.2} ms, worst {worst:.2} ms; CPU time of the \
                     client's proxy for each message or KB: {cpu:.1} us"
                );
            }
        }
    }
}

/// Measures the round trips of `neighbour` beside `count` busy connections of `client`, in
/// milliseconds, and the CPU time that their proxy uses meanwhile.
fn beside(sandbox: &Sandbox, server: &str, load: Load, count: usize) -> [f64; 4] {
    let (client, netns) = (sandbox.pod("client"), sandbox.pod(server));
    let at = |port| SocketAddr::new(sandbox.ips(server)[0], port);
    let pairs = open(&client, &netns, at(9090), count);
    let busy = Arc::new(Busy::default());
    let kept = busy.clone();
    let keeping = thread::spawn(move || keep_busy(pairs, load, &kept));
    thread::sleep(TIME / 3); // until all of them are busy
    let proxy = sandbox.node("node-1")["proxy_pid"].as_u64().unwrap();
    let proxy = u32::try_from(proxy).unwrap();
    let used = || (busy.arrived.load(Ordering::Relaxed), cpu(proxy));
    let before = used();
    let [median, most, worst] = round_trips(&sandbox.pod("neighbour"), at(8080));
    let after = used();
    busy.has_ended.store(true, Ordering::Relaxed);
    keeping.join().unwrap();
    let units = match load {
        Load::Bulk => (after.0 - before.0) / 1000,
        Load::Messages => after.0 - before.0,
    };
    let cpu = (after.1 - before.1).as_secs_f64() * 1e6 / units.max(1) as f64;
    [median, most, worst, if count > 0 { cpu } else { 0.0 }]
}

/// Opens connections; returns both ends of each.
fn open(
    client: &NetNs,
    server: &NetNs,
    to: SocketAddr,
    count: usize,
) -> Vec<(TcpStream, TcpStream)> {
    let listener = listen(server, to.port());
    let open = |_| (connect(client, to).unwrap(), listener.accept().unwrap().0);
    (0..count).map(open).collect()
}

/// Keeps connections busy on this thread.
fn keep_busy(pairs: Vec<(TcpStream, TcpStream)>, load: Load, busy: &Arc<Busy>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let asynchronous = |stream: TcpStream| {
            stream.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(stream).unwrap()
        };
        for (client, server) in pairs {
            let (client, server) = (asynchronous(client), asynchronous(server));
            let busy = busy.clone();
            match load {
                Load::Bulk => {
                    spawn_local(send(client));
                    spawn_local(discard(server, busy));
                }
                Load::Messages => {
                    spawn_local(ask(client, busy));
                    spawn_local(answer(server));
                }
            }
        }
        while !busy.has_ended.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

async fn send(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    let chunk = vec![7; 256 * 1024];
    loop {
        stream.write_all(&chunk).await?;
        yield_now().await;
    }
}

async fn discard(mut stream: tokio::net::TcpStream, busy: Arc<Busy>) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => busy.arrived.fetch_add(n as u64, Ordering::Relaxed),
        };
        yield_now().await;
    }
}

async fn ask(mut stream: tokio::net::TcpStream, busy: Arc<Busy>) -> io::Result<()> {
    let mut message = [7; 64];
    loop {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
        busy.arrived.fetch_add(1, Ordering::Relaxed);
    }
}

async fn answer(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    let mut message = [0; 64];
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
    }
}

/// Median, 99th percentile and maximum of one-byte round trips, in milliseconds.
fn round_trips(client: &NetNs, to: SocketAddr) -> [f64; 3] {
    let mut stream = connect(client, to).unwrap();
    read_line(&mut stream).unwrap();
    let (begun, mut byte, mut times) = (Instant::now(), [1], Vec::new());
    while begun.elapsed() < TIME {
        let sent = Instant::now();
        stream.write_all(&byte).unwrap();
        stream.read_exact(&mut byte).unwrap();
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|index| times[index])
}
