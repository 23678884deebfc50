//! The node proxy: listens inside every enrolled pod of its node, and speaks HBONE to the other proxies.

#![forbid(unsafe_code)]

mod admin;
mod args;
mod control;
mod data;
mod dns;
mod effective;
mod hbone;
mod identity;
mod inpod;
mod source;
mod telemetry;

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

use args::Args;
use data::{Node, Phase, Workers};
use effective::Effective;
use inpod::Pods;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What fails on the control thread for a reason that nobody thought of ends the proxy, which would not follow agent and
/// control plane any more and look as if it did. On a data thread it ends one connection.
fn end_on_panic_of_this_thread() {
    let control = std::thread::current().id();
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if std::thread::current().id() == control {
            std::process::abort();
        }
    }));
}

fn main() -> anyhow::Result<()> {
    end_on_panic_of_this_thread();
    let (mut args, effective) = Args::read();
    let settings = args.settings()?;
    let (logs, filter, dropped) = telemetry::init_logs();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = LocalSet::new().block_on(&runtime, run(args, effective, settings, filter, dropped));
    drop(logs);
    done
}

async fn run(
    args: Args,
    effective: Effective,
    settings: control::Settings,
    filter: telemetry::LogFilter,
    dropped: telemetry::DroppedLines,
) -> anyhow::Result<()> {
    effective::tell_what_means_nothing();
    let metrics = Arc::new(telemetry::Metrics::new(dropped));
    metrics.threads.add_this();
    let certificates = Rc::new(certificates(&args, &settings)?);
    let from = match (&args.mesh_file, &settings.xds) {
        (Some(path), _) => format!("mesh file {}", path.display()),
        (None, Some(server)) => format!("control plane {}", server.address),
        (None, None) => "nowhere".to_owned(),
    };
    let (first, mut changes, plane) = source::begin(&args, settings, &metrics)?;
    let (set_phase, phase) = watch::channel(Phase::Serving);
    let node = Arc::new(Node {
        mesh: ArcSwap::new(first.mesh),
        metrics,
        phase,
        options: args.data.clone(),
        dns: args.dns_settings(),
        demand: plane.as_ref().and_then(|p| p.demand.clone()),
        resolver: Arc::new(args.resolver()),
        connections: Default::default(),
        is_too_old: Default::default(),
    });
    if let (Some(limit), Some(plane)) = (args.control.max_state_age, &plane) {
        spawn_local(keep_looking_at_age(node.clone(), plane.status.clone(), limit));
    }
    let [admin, stats] = args.own_addresses();
    let (admin, stats) = (listen(admin).await?, listen(stats).await?);
    let readiness = listen(args.readiness_addr).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(args.worker_count(cores), node.clone())?;
    let trust_domain = args.control.trust_domain.as_str().into();
    let pods = Rc::new(Pods::new(node.clone(), workers, certificates.clone(), trust_domain, args.ipv6));
    let account = &args.control.service_account;
    tracing::info!(node = args.node, cluster = args.cluster_id, network = args.network, account, "proxy starts");

    let quit = Rc::new(Notify::new());
    let told = Rc::new(admin::Told {
        node: node.clone(),
        pods: pods.clone(),
        certificates: certificates.clone(),
        plane: plane.map(|p| p.status),
        has_mesh: first.complete.into(),
        filter,
        quit: quit.clone(),
        network: args.network.clone(),
        source: from,
        effective,
    });
    let t = told.clone();
    spawn_local(admin_http::serve(admin, move |asked| t.admin(&asked)));
    let t = told.clone();
    spawn_local(admin_http::serve(stats, move |asked| t.stats(&asked)));
    let t = told.clone();
    spawn_local(admin_http::serve(readiness, move |asked| t.readiness(&asked)));
    spawn_local(certificates.run());
    let follow = || {
        let (pods, socket) = (pods.clone(), args.zds_socket.clone());
        spawn_local(async move { inpod::follow(pods, &socket).await })
    };
    // Without a mesh it is not known what a pod may reach, so none is served, and none starts, before there is one.
    let mut follower = first.complete.then(follow);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            newest = changes.next() => {
                let Some(newest) = newest else { continue };
                pods.mesh_changed(newest.mesh);
                if let Some(demand) = &node.demand {
                    demand.in_force(newest.push);
                }
                if newest.complete {
                    told.has_mesh.set(true);
                    follower.get_or_insert_with(follow);
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = quit.notified() => break,
        }
    }
    if let Some(follower) = follower {
        follower.abort();
    }
    drain(&node, &set_phase, args.drain()).await;
    Ok(())
}

/// How often it is looked whether the mesh has become too old.
const AGE_LOOKS: Duration = Duration::from_millis(200);

/// Tells the data threads when the mesh in force becomes older than it may be, and when it is confirmed again.
async fn keep_looking_at_age(node: Arc<Node>, status: Arc<control::Status>, limit: Duration) {
    loop {
        let is_too_old = status.age().is_some_and(|age| age > limit);
        if node.is_too_old.swap(is_too_old, Ordering::Relaxed) != is_too_old {
            let code = error_code::control::STATE_TOO_OLD;
            match is_too_old {
                true => tracing::error!(?limit, "{code}: the mesh is older than it may be: connections are refused"),
                false => tracing::info!("the mesh is confirmed again: connections are accepted"),
            }
        }
        tokio::time::sleep(AGE_LOOKS).await;
    }
}

/// Where certificates come from, and what is accepted.
fn certificates(args: &Args, settings: &control::Settings) -> anyhow::Result<identity::Certificates> {
    let options = &args.control;
    let revocations = match &options.crl_path {
        Some(path) => {
            let code = error_code::control::CRL;
            identity::Revocations::follow(path).with_context(|| format!("{code}: {}", path.display()))?
        }
        None => identity::Revocations::none(),
    };
    let domains = identity::TrustDomains::new(&options.trust_domain, &options.trust_domain_aliases);
    let trust = Arc::new(identity::Trust { tls: settings.tls.clone(), domains, revocations });
    let source = match &settings.ca {
        Some(server) => identity::Source::ControlPlane(control::CaClient::new(server.clone(), settings.secret_ttl)),
        None => identity::Source::Folder(identity::LocalCa::open(&args.ca_dir)?),
    };
    Ok(identity::Certificates::new(source, trust))
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
