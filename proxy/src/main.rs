//! The node proxy: listens inside every enrolled pod of its node and speaks HBONE to other proxies.

#![forbid(unsafe_code)]

mod admin;
mod args;
mod data;
mod effective;
mod inpod;
mod memory;
mod source;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use admin_http::HostNames;
use anyhow::Context;
use arc_swap::ArcSwap;
use args::Args;
use data::{Lifecycle, NodeBudget, ProxyState, Workers};
use effective::EffectiveSettings;
use identity::{Issuer, LocalCa};
use inpod::{LocalNode, Pods};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    // Otherwise the proxy would keep serving stale pods and a stale mesh. A panic on a data thread
    // closes only one connection.
    process::abort_on_panic(&error_code::proxy::PANICKED);
    let (mut args, effective) = Args::parse_or_exit();
    let settings = args.settings()?;
    let (logs, filter, dropped) = telemetry::init_logs()?;
    process::before_abort(logs.flusher());
    process::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    let result = runtime.block_on(run(args, effective, settings, filter, dropped));
    runtime.shutdown_background(); // ends all tasks, which may log
    drop(logs);
    result
}

async fn run(
    args: Args,
    effective: EffectiveSettings,
    settings: discovery::Settings,
    filter: telemetry::LogFilter,
    dropped: telemetry::DroppedLines,
) -> anyhow::Result<()> {
    effective::warn_about_ignored_variables();
    let metrics = Arc::new(telemetry::Metrics::new(dropped, args.series_options()));
    metrics.threads.add_current();
    let certificates = Rc::new(certificates(&args, &settings)?);
    let source = match (&args.mesh_file, &settings.xds) {
        (Some(path), _) => format!("mesh file {}", path.display()),
        (None, Some(server)) => format!("control plane {}", server.address),
        (None, None) => "none".to_owned(),
    };
    let local = LocalNode {
        cluster: settings.cluster_id.as_str().into(),
        node: args.node.as_str().into(),
    };
    let (initial, mut changes, control_plane) = source::follow(&args, settings, &metrics)?;
    let (set_lifecycle, lifecycle) = watch::channel(Lifecycle::Serving);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let worker_count = args.worker_count(cores);
    let budget = NodeBudget::new(args.data.limits(), worker_count, metrics.clone());
    let proxy = Arc::new(ProxyState {
        budget,
        mesh: ArcSwap::new(initial.mesh),
        dns_budget: Arc::new(dns::CacheBudget::new(metrics.clone())),
        metrics,
        lifecycle,
        options: args.data.clone(),
        dns: args.dns_settings(),
        demand: control_plane.as_ref().and_then(|c| c.demand.clone()),
        policies_follow: control_plane.is_some(),
        lookup_servers: args.lookup_servers(),
        listeners: Default::default(),
        connections: Default::default(),
        joins: Default::default(),
        tunnels: Default::default(),
        is_too_old: Default::default(),
    });
    if let (Some(limit), Some(control_plane)) = (args.control.max_state_age, &control_plane) {
        spawn_local(watch_state_age(
            proxy.clone(),
            control_plane.status.clone(),
            limit,
        ));
    }
    let listen = |address| process::listen(address, &error_code::proxy::OWN_ADDRESS);
    let [admin, stats] = args.own_addresses();
    let (admin, stats) = (listen(admin).await?, listen(stats).await?);
    let readiness = listen(args.readiness_addr).await?;
    let workers = Workers::start(worker_count, proxy.clone())?;
    let trust_domain = args.control.trust_domain.as_str().into();
    let pods = Pods::new(
        proxy.clone(),
        workers,
        certificates.clone(),
        local,
        trust_domain,
        args.ipv6,
    );
    let pods = Rc::new(pods);
    let account = &args.control.service_account;
    tracing::info!(
        node = args.node,
        cluster = args.cluster_id,
        network = args.network,
        account,
        "starting proxy"
    );

    let quit = Rc::new(Notify::new());
    let state = Rc::new(admin::AdminState {
        proxy: proxy.clone(),
        pods: pods.clone(),
        certificates: certificates.clone(),
        plane: control_plane.map(|c| c.status),
        has_mesh: initial.complete.into(),
        filter,
        quit: quit.clone(),
        network: args.network.clone(),
        source,
        effective,
    });
    let s = state.clone();
    let serve = admin_http::serve(admin, HostNames::Local, move |request| s.admin(&request));
    spawn_local(serve);
    let s = state.clone();
    let serve = admin_http::serve(stats, HostNames::Any, move |request| s.stats(&request));
    spawn_local(serve);
    let s = state.clone();
    let serve = admin_http::serve(readiness, HostNames::Any, move |request| s.health(&request));
    spawn_local(serve);
    spawn_local(certificates.clone().run());
    spawn_local(memory::keep_small(proxy.metrics.clone()));
    let follow_agent = || {
        let (pods, socket) = (pods.clone(), args.zds_socket.clone());
        spawn_local(async move { inpod::follow_agent(pods, &socket).await })
    };
    // No pod is served, and hence none starts, before the first complete mesh: without one, it is
    // unknown what a pod may reach. Nor while CRL_PATH is unreadable: revoked peers would be
    // accepted.
    let may_serve = || state.has_mesh.get() && certificates.is_revocation_effective();
    let revocation_awaited = || !certificates.is_revocation_effective();
    let mut follower = may_serve().then(follow_agent);
    let handover = {
        let (pods, socket) = (pods.clone(), args.zds_socket.clone());
        spawn_local(async move { inpod::hand_over(pods, &socket).await })
    };

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            update = changes.next() => {
                let Some(update) = update else { continue };
                pods.mesh_changed(update.mesh);
                if let Some(demand) = &proxy.demand {
                    demand.mark_active(update.push);
                }
                if update.complete {
                    state.has_mesh.set(true);
                }
            }
            () = certificates.until_revocation_is_effective(), if revocation_awaited() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = quit.notified() => break,
        }
        if may_serve() {
            follower.get_or_insert_with(follow_agent);
        }
    }
    if let Some(follower) = follower {
        follower.abort();
    }
    handover.abort();
    pods.stop_sharing();
    let drained = drain(&proxy, &pods, &set_lifecycle, args.drain());
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return Ok(()),
            update = changes.next() => {
                // Policies apply to the connections that are still open.
                if let Some(update) = update {
                    pods.mesh_changed(update.mesh);
                }
            }
        }
    }
}

/// Interval between checks of the age of the mesh state.
const AGE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Makes the data threads reject new connections while the mesh state is older than `limit`.
async fn watch_state_age(
    proxy: Arc<ProxyState>,
    status: Arc<discovery::DiscoveryStatus>,
    limit: Duration,
) {
    loop {
        let is_too_old = status.age().is_some_and(|age| age > limit);
        if proxy.is_too_old.swap(is_too_old, Ordering::Relaxed) != is_too_old {
            let code = error_code::control::STATE_TOO_OLD;
            if is_too_old {
                tracing::error!(
                    ?limit,
                    "{code}: mesh state is older than UNDERPASS_MAX_STATE_AGE: \
                     rejecting new connections"
                );
            } else {
                tracing::info!("mesh state is current again: accepting new connections");
            }
        }
        tokio::time::sleep(AGE_CHECK_INTERVAL).await;
    }
}

/// Sets up the source of certificates and the trust in those of peers.
fn certificates(
    args: &Args,
    settings: &discovery::Settings,
) -> anyhow::Result<identity::Certificates> {
    let options = &args.control;
    let revocations = match &options.crl_path {
        Some(path) => {
            let code = error_code::control::CRL;
            identity::Revocations::watch(path)
                .with_context(|| format!("{code}: {}", path.display()))?
        }
        None => identity::Revocations::empty(),
    };
    let domains = options.trust_domains();
    let trust = Arc::new(identity::Trust {
        tls: settings.tls.clone(),
        domains,
        revocations,
    });
    let issuer: Box<dyn Issuer> = match &settings.ca {
        Some(server) => {
            let server = server.clone();
            Box::new(discovery::CaClient::new(server, settings.secret_ttl))
        }
        None => Box::new(LocalCa::open(&args.ca_dir)?.with_validity(settings.secret_ttl)),
    };
    Ok(identity::Certificates::new(issuer, trust))
}

/// Interval between checks whether connections and tunnels have ended.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How long before the end of the drain idle connections are closed, at most half of it.
const CLOSING_IDLE: Duration = Duration::from_secs(5);

/// Stops accepting connections and waits for open ones to finish, and for their data to be sent;
/// closes idle ones shortly before `limit`, and then those that remain.
async fn drain(
    proxy: &ProxyState,
    pods: &Pods,
    lifecycle: &watch::Sender<Lifecycle>,
    limit: Duration,
) {
    tracing::info!(
        event = "proxy_draining",
        connections = proxy.connections.load(Ordering::Relaxed),
        "shutting down: waiting for open connections to finish"
    );
    let _ = lifecycle.send(Lifecycle::Draining); // the workers hold receivers
    let closing = (limit / 2).min(CLOSING_IDLE);
    let close_idle = async {
        tokio::time::sleep(limit - closing).await;
        let _ = lifecycle.send(Lifecycle::ClosingIdle(Instant::now() + closing)); // as above
    };
    let idle = async {
        while proxy.listeners.load(Ordering::Acquire) > 0
            || proxy.connections.load(Ordering::Relaxed) > 0
        {
            tokio::time::sleep(DRAIN_CHECK_INTERVAL).await;
        }
        // What the last connections have sent may still be in the tunnels.
        while proxy.tunnels.load(Ordering::Acquire) > 0 {
            pods.close_tunnels();
            tokio::time::sleep(DRAIN_CHECK_INTERVAL).await;
        }
    };
    let drained = async {
        tokio::pin!(idle);
        tokio::select! {
            () = &mut idle => return,
            () = close_idle => {}
        }
        idle.await;
    };
    if tokio::time::timeout(limit, drained).await.is_err() {
        tracing::warn!(
            connections = proxy.connections.load(Ordering::Relaxed),
            tunnels = proxy.tunnels.load(Ordering::Relaxed),
            "drain duration expired with pending connections or tunnels"
        );
        let _ = lifecycle.send(Lifecycle::Terminating);
        // Gives each worker time to close and log the remaining connections.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
