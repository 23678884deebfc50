//! The node agent: decides which pods belong to the mesh and hands them to the node's proxies.

#![forbid(unsafe_code)]

mod admin;
mod agent;
mod args;
mod capture_choice;
mod decider;
mod disk;
mod host_probes;
mod inbox;
mod install;
mod interrupted_add;
mod kernel;
mod kubernetes;
mod listening;
mod metrics;
mod metrics_server;
mod plan;
mod plugins;
mod pod_source;
mod pods_view;
mod prober;
mod proxies;
mod readiness;
mod refusal;
mod reporter;
mod retire;
mod runtime_calls;
mod sandbox_check;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use netns::seqpacket::AsyncSeqPacketListener;
use process::ListenError;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use admin::Admin;
use agent::{Agent, Performers};
use args::{Args, Command, RunArgs, SourceOption};
use decider::Decider;
use disk::Disk;
use host_probes::HostProbes;
use inbox::{Inbox, Message};
use install::Installation;
use kernel::Kernel;
use kubernetes::{Cluster, PodSearcher, retirement};
use metrics::Metrics;
use plan::PlanDefaults;
use plugins::Plugins;
use pod_source::PodSource;
use pods_view::PodsView;
use proxies::Proxies;
use readiness::Readiness;
use reporter::Reporter;
use runtime_calls::RuntimeCalls;

/// Time limit for kernel work to end when the agent exits.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Kernel work is frequent: its threads are never stopped.
const KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    // Otherwise the agent would run on without the task that panicked. Pods keep their
    // connectivity, and the next agent takes over their state.
    process::abort_on_panic(&error_code::agent::PANICKED);
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| process::LineWriter(std::io::stderr()))
        .init();
    run_command(args)
}

fn run_command(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Install {
            folders,
            agent_socket,
        }) => {
            let entry = install::PluginEntry {
                agent_socket,
                ..Default::default()
            };
            return install::install(&folders, &entry).map(|_| ());
        }
        Some(Command::Uninstall {
            folders,
            state_dir,
            host_netns,
        }) => {
            return install::uninstall(&folders, &state_dir, host_netns.as_deref());
        }
        Some(Command::Retire {
            daemon_set,
            namespace,
            within,
            kubeconfig,
        }) => {
            return runtime()?.block_on(async {
                let client = client(kubeconfig.as_deref()).await?;
                let within = Duration::from_secs(within);
                retirement::retire(client, &namespace, &daemon_set, within).await
            });
        }
        None => {}
    }
    process::raise_descriptor_limit();
    let runtime = builder().build_local(Default::default())?;
    let retiring = runtime.block_on(run(&args.run))?;
    // Ends all tasks: none can reinstall what is removed. Work in a pod's namespace is not waited
    // for.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    let Some(cluster) = retiring else {
        return Ok(());
    };
    let cleaned = retire::clean_up_node(&args.run);
    crate::runtime()?.block_on(async {
        // The agent's client ended with its tasks.
        match client(args.run.cluster.kubeconfig.as_deref()).await {
            Ok(client) => retirement::withdraw_annotations(&client, &cluster).await,
            Err(e) => tracing::error!("the annotations of pods remain: {e:#}"),
        }
    });
    cleaned
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    builder().build()
}

fn builder() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .max_blocking_threads(kernel::THREADS)
        .thread_keep_alive(KEEP_ALIVE);
    builder
}

/// Runs the agent until SIGTERM or SIGINT. Returns the cluster if Underpass is being uninstalled
/// from it.
async fn run(args: &RunArgs) -> anyhow::Result<Option<Rc<Cluster>>> {
    let node = args.node.clone().context("--node is missing")?;
    // Bind first: if another agent runs on this node, fail before changing anything.
    let plugin_socket = listen(&args.agent_socket)?;
    let proxy_socket = listen(&args.zds_socket)?;
    let admin_socket = process::listen(args.admin_addr, &error_code::agent::OWN_ADDRESS).await?;

    let (changed, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let pod_source = match args.source()? {
        SourceOption::MeshFile(path) => {
            PodSource::from_file(mesh_file::watch(path, move |loaded| {
                let _ = changed.send(loaded); // fails only when the process exits
            })?)
        }
        SourceOption::Kubernetes => PodSource::Cluster(Rc::new(Cluster::new(
            client(args.cluster.kubeconfig.as_deref()).await?,
            &node,
            &args.cluster,
        ))),
    };
    let capture = capture_choice::choose(args.capture).with_context(|| {
        let code = error_code::agent::CAPTURE;
        format!("{code}: {}", code.next_step)
    })?;
    tracing::info!(capture = %capture.kind, "{}", capture.why);
    let plans = PlanDefaults {
        capture: capture.kind,
        dns: args.dns_capture,
        adopt_istio: args.adopt_istio,
        allow_exclusions: args.allow_exclusions,
        existing_connections: args.existing_connections.into(),
        proxy_user: args.proxy_user,
    };
    let host_probes = Rc::new(HostProbes::open(
        args.host_netns.as_deref(),
        args.host_probes,
    )?);
    let source = Rc::new(pod_source);
    let (inbox, messages) = Inbox::new();
    let disk = Disk::open(&args.state_dir, inbox.clone())
        .with_context(|| format!("{}: {}", error_code::agent::STATE, args.state_dir.display()))?;
    let metrics = Rc::new(Metrics::new());
    let recorder = source.cluster().map(|cluster| cluster.events.clone());
    let reporter = Rc::new(Reporter::new(metrics.clone(), recorder));
    let proxies = Rc::new(Proxies::new(inbox.clone(), metrics.clone()));
    let pods = PodsView::default();
    let decider = Decider {
        node: node.clone(),
        source: source.clone(),
        plans,
    };
    let node_namespaces: Arc<[_]> = sandbox_check::node_namespaces()?.into();
    let readiness = Readiness {
        install: Installation::default(),
        source: source.clone(),
        proxies: proxies.clone(),
        runtime_calls: Rc::new(RuntimeCalls::default()),
    };
    let plugins = Plugins {
        decider: decider.clone(),
        pods: pods.clone(),
        proxies: proxies.clone(),
        reporter: reporter.clone(),
        inbox: inbox.clone(),
        written: disk.completed(),
        connections: Cell::default(),
        node: host_probes.netns(),
    };
    let admin = Rc::new(Admin {
        node: node.clone(),
        pods: pods.clone(),
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        capture,
        host_probes: host_probes.clone(),
        inbox: inbox.clone(),
    });
    let kernel = Kernel {
        inbox: inbox.clone(),
        node_namespaces: node_namespaces.clone(),
        searches: source.cluster().is_some(),
        in_progress: Arc::default(),
    };
    kernel::start_threads();
    let performers = Performers {
        kernel,
        proxies: proxies.clone(),
        disk,
        reporter: reporter.clone(),
        host_probes: host_probes.clone(),
        runtime_calls: readiness.runtime_calls.clone(),
    };
    let agent = Agent::new(pods.clone(), decider, performers, inbox.clone());

    tokio::task::spawn_local(proxies::serve(proxies, proxy_socket));
    tokio::task::spawn_local(plugins::serve(plugins, plugin_socket));
    tokio::task::spawn_local(agent.run(messages));
    tokio::task::spawn_local(host_probes::run(host_probes, metrics));
    if let Some(address) = args.metrics_addr {
        tokio::task::spawn_local(metrics_server::serve(admin.clone(), address));
    }
    let names = admin_http::HostNames::Local;
    tokio::task::spawn_local(admin_http::serve(admin_socket, names, move |request| {
        admin::answer(&admin, &request)
    }));
    inbox.send(Message::Reconcile);
    if args.install_cni && !args.chained {
        // An earlier agent may have chained it.
        install::unchain(&args.folders).1?;
    } else if args.install_cni {
        // Last, because the runtime may run the plugin from now on.
        let (folders, entry) = (args.folders.clone(), args.plugin_entry());
        install::keep_installed(folders, entry, readiness.install.clone())?;
    }
    // After the installation: the node's taint is removed once the agent is ready.
    if let Some(cluster) = source.cluster() {
        let searcher = PodSearcher {
            cluster: cluster.clone(),
            pods: pods.clone(),
            reporter,
            node_namespaces,
            install: readiness.install.clone(),
            inbox: inbox.clone(),
        };
        let daemon_set = args.cluster.daemon_set.as_deref();
        kubernetes::spawn_tasks(cluster, &pods, &readiness, searcher, &inbox, daemon_set);
        if args.chained {
            kubernetes::expect_calls_of_plugin(cluster, &readiness);
        }
    }
    tracing::info!(node, socket = %args.agent_socket.display(), "accepting plugin connections");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            Some(loaded) = changes.recv() => match loaded {
                Ok(mesh) => {
                    source.replace_mesh(mesh);
                    inbox.send(Message::Reconcile);
                }
                Err(e) => {
                    tracing::error!(event = "mesh_file_rejected", "keeping the previous mesh: {e}");
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    if let (Some(cluster), Some(daemon_set)) = (source.cluster(), &args.cluster.daemon_set)
        && let Some(why) = retirement::is_due(cluster, daemon_set).await
    {
        tracing::info!(
            daemon_set,
            "retiring: removing the plugin and all rules from this node: {why}"
        );
        readiness.install.stop();
        retire::leave_pods(args, &inbox).await;
        return Ok(Some(cluster.clone()));
    }
    tracing::info!("shutting down; pods stay enrolled and keep their connectivity");
    Ok(None)
}

async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<::kubernetes::Client> {
    let code = error_code::agent::KUBERNETES;
    let connected = ::kubernetes::connect(kubeconfig).await;
    connected.with_context(|| format!("{code}: {}", code.next_step))
}

/// Listens on a Unix socket, creating its folder.
fn listen(socket: &Path) -> anyhow::Result<AsyncSeqPacketListener> {
    let bound = AsyncSeqPacketListener::bind(args::ensure_parent(socket)?);
    let code = &error_code::agent::OWN_ADDRESS;
    Ok(bound.map_err(|e| ListenError::new(code, socket.display(), e))?)
}
