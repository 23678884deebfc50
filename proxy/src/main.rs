//! The node proxy: listens inside every enrolled pod of its node, and speaks HBONE to the other proxies.

#![forbid(unsafe_code)]

mod admin;
mod args;
mod data;
mod dns;
mod hbone;
mod identity;
mod inpod;
mod telemetry;

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use args::Args;
use data::{Node, Phase, Workers};
use inpod::Pods;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How often it is looked whether credentials are to be renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let logs = telemetry::init_logs();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = LocalSet::new().block_on(&runtime, run(args));
    drop(logs);
    done
}

async fn run(args: Args) -> anyhow::Result<()> {
    let ca = identity::LocalCa::open(&args.ca_dir)?;
    let (changed, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let mesh = mesh_file::watch(&args.mesh_file, move |loaded| {
        let _ = changed.send(loaded); // nobody listens only when the process ends
    })?;
    let (set_phase, phase) = watch::channel(Phase::Serving);
    let node = Arc::new(Node {
        mesh: ArcSwap::from_pointee(mesh),
        metrics: Arc::new(telemetry::Metrics::new()),
        phase,
        dns: args.dns_settings(),
        resolver: Arc::new(args.resolver()),
        connections: Default::default(),
    });
    let admin = listen(args.admin_addr).await?;
    let stats = listen(args.stats_addr).await?;
    let readiness = listen(args.readiness_addr).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(args.worker_count(cores), node.clone())?;
    let pods = Rc::new(Pods::new(node.clone(), workers, ca, args.ipv6));
    tracing::info!(node = args.node, cluster = args.cluster_id, network = args.network, "proxy starts");

    let (n, p) = (node.clone(), pods.clone());
    spawn_local(admin_http::serve(admin, move |asked| admin::admin(&n, &p, &asked)));
    let n = node.clone();
    spawn_local(admin_http::serve(stats, move |asked| admin::stats(&n, &asked)));
    let (n, p) = (node.clone(), pods.clone());
    spawn_local(admin_http::serve(readiness, move |asked| admin::readiness(&n, &p, &asked)));
    let follower = spawn_local({
        let (pods, socket) = (pods.clone(), args.zds_socket.clone());
        async move { inpod::follow(pods, &socket).await }
    });

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut renewal = tokio::time::interval(RENEWAL_INTERVAL);
    loop {
        tokio::select! {
            Some(loaded) = changes.recv() => match loaded {
                Ok(mesh) => pods.mesh_changed(Arc::new(mesh)),
                Err(e) => tracing::error!("the mesh that was read last stays in force: {e}"),
            },
            _ = renewal.tick() => pods.renew(SystemTime::now()),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    follower.abort();
    drain(&node, &set_phase, args.drain).await;
    Ok(())
}

/// No more connections; those that are open may finish until the deadline.
async fn drain(node: &Node, phase: &watch::Sender<Phase>, limit: Duration) {
    tracing::info!(connections = node.connections.load(Ordering::Relaxed), "stopping; open connections may finish");
    let _ = phase.send(Phase::Draining); // the workers always listen
    let idle = async {
        while node.connections.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(limit, idle).await.is_err() {
        tracing::warn!(
            connections = node.connections.load(Ordering::Relaxed),
            "drain duration expired with pending connections"
        );
        let _ = phase.send(Phase::Ended);
        // Long enough for each worker to cut and log what is left.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn no_listener(address: SocketAddr) -> String {
    let code = error_code::proxy::OWN_ADDRESS;
    format!("{code}: cannot listen on {address}. Next step: {}", code.next_step)
}

/// Listens; where a node has no IPv6, on the wildcard of IPv4 instead.
async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            let fallback = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            TcpListener::bind(fallback).await.with_context(|| no_listener(address))
        }
        bound => bound.with_context(|| no_listener(address)),
    }
}

/// Every connection takes two descriptors.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("the limit of open files cannot be raised: {e}");
    }
}
