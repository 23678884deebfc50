//! The node agent: decides which pods belong to the mesh, and hands them to the proxies of its node.

#![forbid(unsafe_code)]

mod admin;
mod agent;
mod args;
mod capture_choice;
mod event;
mod exceptions;
mod facts;
mod handover;
mod host_probes;
mod install;
mod joining;
mod kubernetes;
mod listening;
mod membership;
mod metrics;
mod pace;
mod plan;
mod pods;
mod prober;
mod proxies;
mod readiness;
mod refusal;
mod sandbox_check;
mod state;
mod verification;
mod verifier;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use netns::seqpacket::AsyncSeqPacketListener;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use agent::Agent;
use args::{Args, RunArgs, Verb};
use facts::Facts;
use host_probes::HostProbes;
use kubernetes::{Cluster, retirement};
use plan::PlanDefaults;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A task that has failed for a reason that nobody thought of would be missing, and nobody would see it. The next agent takes
/// over what this one had, and pods go on meanwhile.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn main() -> anyhow::Result<()> {
    end_on_panic();
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match args.verb {
        Some(Verb::Install { folders, agent_socket }) => {
            let entry = install::Entry { agent_socket, ..Default::default() };
            return install::install(&folders, &entry).map(|_| ());
        }
        Some(Verb::Uninstall { folders, state_dir, host_netns }) => {
            return install::uninstall(&folders, &state_dir, host_netns.as_deref());
        }
        Some(Verb::Retire { daemon_set, namespace, within, kubeconfig }) => {
            return runtime()?.block_on(async {
                let client = client(kubeconfig.as_deref()).await?;
                retirement::order(client, &namespace, &daemon_set, Duration::from_secs(within)).await
            });
        }
        None => {}
    }
    raise_descriptor_limit();
    let runtime = runtime()?;
    let retires = tokio::task::LocalSet::new().block_on(&runtime, run(&args.run))?;
    // No task of the agent is left that would put back what is taken away.
    if let Some(cluster) = retires {
        runtime.block_on(retirement::tell(&cluster));
        leave_the_node(&args.run)?;
    }
    Ok(())
}

/// Nothing of Underpass is left on the node then.
fn leave_the_node(args: &RunArgs) -> anyhow::Result<()> {
    install::uninstall(&args.folders, &args.state_dir, args.host_netns.as_deref())?;
    let plugin = args.folders.bin_dir.join(install::PLUGIN);
    let kept = args.cluster.keep_plugin.then_some(&plugin);
    let state = args.state_dir.join(state::FILE);
    for file in [&plugin, &state, &args.agent_socket, &args.zds_socket].into_iter().filter(|f| Some(*f) != kept) {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => tracing::warn!("{} stays: {e}", file.display()),
            _ => {}
        }
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Every pod takes three descriptors, and a runtime may start us with a soft limit of 1024.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("the limit of open files cannot be raised: {e}");
    }
}

/// Runs until it is told to end. Returns the cluster when Underpass is being uninstalled from it.
async fn run(args: &RunArgs) -> anyhow::Result<Option<Rc<Cluster>>> {
    let node = args.node.clone().context("--node is missing")?;
    // Sockets first: whoever else runs here already is told at once, before anything is touched.
    let plugins = AsyncSeqPacketListener::bind(args::made(&args.agent_socket)?)
        .with_context(|| no_listener(&args.agent_socket.display()))?;
    let proxies = AsyncSeqPacketListener::bind(args::made(&args.zds_socket)?)
        .with_context(|| no_listener(&args.zds_socket.display()))?;
    let admin = listen(args.admin_addr).await?;

    let (changed, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let facts = match (&args.mesh_file, args.kubernetes) {
        (Some(mesh_file), false) => Facts::of_file(mesh_file::watch(mesh_file, move |loaded| {
            let _ = changed.send(loaded); // nobody listens only when the process ends
        })?),
        (None, true) => Facts::Cluster(Rc::new(Cluster::new(
            client(args.cluster.kubeconfig.as_deref()).await?,
            &node,
            &args.cluster,
        ))),
        (Some(_), true) => anyhow::bail!("--mesh-file and --kubernetes exclude each other"),
        (None, false) => anyhow::bail!("either --mesh-file or --kubernetes is needed"),
    };
    let capture = capture_choice::choose(args.capture).with_context(|| {
        let code = error_code::agent::CAPTURE;
        format!("{code}: {}", code.next_step)
    })?;
    tracing::info!(capture = %capture.kind, "{}", capture.why);
    let plans = PlanDefaults { capture: capture.kind, dns: args.dns_capture, adopt_istio: args.adopt_istio };
    let host_probes = HostProbes::open(args.host_netns.as_deref(), args.host_probes)?;
    let agent = Rc::new(Agent::new(node.clone(), &args.state_dir, facts, capture, plans, host_probes)?);
    agent.take_over();

    tokio::task::spawn_local(proxies::serve(agent.clone(), proxies));
    tokio::task::spawn_local(handover::serve(agent.clone(), plugins));
    tokio::task::spawn_local(exceptions::release(agent.clone()));
    tokio::task::spawn_local(membership::keep(agent.clone()));
    tokio::task::spawn_local(host_probes::keep(agent.clone()));
    tokio::task::spawn_local(admin_http::serve(admin, {
        let agent = agent.clone();
        move |asked| admin::answer(&agent, &asked)
    }));
    if args.install_cni {
        // Last: from now on the runtime may call.
        let excluded = if args.kubernetes { args.cluster.exclude_namespaces.clone() } else { Vec::new() };
        let entry = install::Entry { agent_socket: args.agent_socket.clone(), excluded, kubelet: args.kubernetes };
        install::keep_installed(args.folders.clone(), entry, agent.install.clone())?;
    }
    // The taint goes when the agent is ready, which it is not before it has installed the plugin.
    if let Some(cluster) = agent.facts.cluster() {
        kubernetes::keep(&agent, cluster);
    }
    tracing::info!(node, socket = %args.agent_socket.display(), "ready for pods");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            Some(loaded) = changes.recv() => match loaded {
                Ok(mesh) => agent.mesh_changed(mesh),
                Err(e) => tracing::error!("the mesh that was read last stays in force: {e}"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    if let (Some(cluster), Some(daemon_set)) = (agent.facts.cluster(), &args.cluster.daemon_set)
        && retirement::is_due(cluster, daemon_set).await
    {
        tracing::info!(daemon_set, "stopping for good; pods leave the mesh, and the plugin leaves this node");
        agent.install.end();
        return Ok(Some(cluster.clone()));
    }
    tracing::info!("stopping; pods stay enrolled and their traffic goes on");
    Ok(None)
}

async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<::kubernetes::Client> {
    let code = error_code::agent::KUBERNETES;
    let connected = ::kubernetes::connect(kubeconfig).await;
    connected.with_context(|| format!("{code}: {}", code.next_step))
}

fn no_listener(address: &dyn std::fmt::Display) -> String {
    let code = error_code::agent::OWN_ADDRESS;
    format!("{code}: cannot listen on {address}. Next step: {}", code.next_step)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| no_listener(&address))
}
