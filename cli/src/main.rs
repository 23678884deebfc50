//! The command line of Underpass.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_types)] // the sandbox plays the container runtime, which starts processes

mod ask;
mod check;
mod cluster;
mod demo;
mod failure;
mod node;
mod proxy;
mod proxy_of_node;
mod sandbox;
mod table;
mod why;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::proxy::List;

/// Underpass: mutual TLS, identity and policy for pods, with no sidecar and no change to the pod.
#[derive(Debug, Parser)]
#[command(version, name = "underpass")]
struct Cli {
    #[command(subcommand)]
    command: Area,
}

#[derive(Debug, Subcommand)]
enum Area {
    /// A mesh on one machine, in network namespaces of its own.
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// Shows who is in the mesh on this node, and whether that was measured. Exit code 1: a pod is enrolled and not
    /// verified; 2: it cannot be told.
    Status {
        #[command(flatten)]
        asked: node::Asked,
        /// The proxy's admin address.
        #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = proxy::ADMIN)]
        proxy: SocketAddr,
        /// A line for every pod, with the reason why it is in the mesh or not.
        #[arg(long)]
        all: bool,
        /// Every node of a cluster, a line each, through its API server.
        #[arg(long)]
        cluster: bool,
        #[command(flatten)]
        target: cluster::Target,
    },
    /// Checks whether all is well, and says what to do where it is not: the whole cluster with a kubeconfig, else this node.
    /// Exit code 1: something is not as it should be; 2: it cannot be told.
    Check(check::Args),
    /// Looks now whether a pod of this node is really in the mesh: its rules, the proxy's listeners, and probes through them.
    /// What differs is put right. Exit code 1: it is not; 2: it cannot be told.
    Verify {
        #[command(flatten)]
        asked: node::Asked,
        /// NAME or NAMESPACE/NAME.
        pod: String,
    },
    /// Tells where a connection would go, whether it would be let in, and what would have to change. Asks the proxy of this
    /// node. Exit code 1: it would be refused; 2: it cannot be told.
    Why {
        #[command(flatten)]
        asked: proxy::Asked,
        /// Who connects: a pod's NAME, NAMESPACE/NAME or address.
        source: String,
        /// To whom: a pod, a service by NAME, NAMESPACE/NAME or host name, or an address; with :PORT, which may be left out
        /// for a service with one port.
        destination: String,
    },
    /// Lists the workloads that the proxy of this node knows.
    Workloads(proxy::Asked),
    /// Lists the services that the proxy of this node knows.
    Services(proxy::Asked),
    /// Lists the authorization policies that the proxy of this node knows.
    Policies(proxy::Asked),
    /// Lists the certificates of this node's pods.
    Certs(proxy::Asked),
    /// Lists the connections that are open on this node.
    Conns(proxy::Asked),
}

#[derive(Debug, Subcommand)]
enum Sandbox {
    /// Makes nodes and pods, and enrols the pods.
    Up {
        /// The mesh; without it: client, neighbour and outsider on node-1, server on node-2.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Stay until killed; then everything ends.
        #[arg(long)]
        foreground: bool,
    },
    /// Runs a command in a pod's network namespace.
    Exec {
        /// NAME or NAMESPACE/NAME.
        pod: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Shows nodes and pods.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Starts agents and proxies that have ended.
    Repair,
    /// Stops everything; nothing is left.
    Down,
    /// Shows in a short story that the mesh does what it promises. Makes a sandbox of its own.
    Demo {
        /// One JSON object a step.
        #[arg(long)]
        json: bool,
    },
    /// The process that holds the sandbox.
    #[command(hide = true)]
    Keep {
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    if std::env::args().next().is_some_and(|name| name.ends_with(sandbox::NET_PLUGIN)) {
        return sandbox::net_plugin();
    }
    let command = match Cli::parse().command {
        Area::Sandbox(command) => command,
        Area::Status { asked, all, cluster, target, .. } if cluster || target.is_named() => {
            return told(cluster::status(&target, asked.json, all));
        }
        Area::Status { asked, proxy, all, .. } => return told(node::status(&asked, proxy, all)),
        Area::Check(args) => return told(check::run(&args)),
        Area::Verify { asked, pod } => return told(node::verify(&asked, &pod)),
        Area::Why { asked, source, destination } => return told(why::why(&asked, &source, &destination)),
        Area::Workloads(asked) => return told(proxy::list(&asked, List::Workloads)),
        Area::Services(asked) => return told(proxy::list(&asked, List::Services)),
        Area::Policies(asked) => return told(proxy::list(&asked, List::Policies)),
        Area::Certs(asked) => return told(proxy::list(&asked, List::Certificates)),
        Area::Conns(asked) => return told(proxy::list(&asked, List::Connections)),
    };
    let done = match command {
        Sandbox::Up { file, foreground } => sandbox::up(file.as_deref(), foreground),
        Sandbox::Exec { pod, command } => sandbox::exec(&pod, &command),
        Sandbox::Status { json } => sandbox::status(json),
        Sandbox::Repair => sandbox::repair(),
        Sandbox::Down => sandbox::down(),
        Sandbox::Demo { json } => return demo::run(json),
        Sandbox::Keep { file } => sandbox::keep(file.as_deref()),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of an answer; 2 where there is none.
fn told(answer: anyhow::Result<ExitCode>) -> ExitCode {
    answer.unwrap_or_else(|e| {
        eprintln!("{e:#}");
        ExitCode::from(2)
    })
}
