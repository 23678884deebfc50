//! The command line of Underpass.

#![forbid(unsafe_code)]
// They panic when a pipe is closed: use `output`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod admin_client;
mod check;
mod cluster;
mod demo;
mod failure;
mod generate;
mod node;
mod output;
mod proxy;
mod proxy_client;
mod sandbox;
mod table;
mod why;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::proxy::List;

use crate::output::print_error;

/// Underpass: mutual TLS, identity and policy for pods, with no sidecar and no change to the pod.
#[derive(Debug, Parser)]
#[command(version, name = "underpass")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[allow(rustdoc::broken_intra_doc_links)] // --help shows brackets as they stand
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a mesh on one machine, in its own network namespaces.
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Show the pods of this node and whether they are verified to be in the mesh.
    ///
    /// Exit code: 1 if an enrolled pod is not verified, 2 if the status cannot be determined.
    Status(StatusArgs),
    /// Check the installation for potential problems and suggest fixes.
    ///
    /// Checks the whole cluster if there is a kubeconfig, else this node. Exit code: 1 if a check
    /// fails, 2 if the checks cannot be run.
    Check(check::Args),
    /// Verify now that a pod of this node is in the mesh, and repair its rules if they differ.
    ///
    /// Checks the pod's rules and the proxy's listeners, and sends probes through them. Exit code:
    /// 1 if the pod is not verified, 2 if this cannot be determined.
    Verify {
        #[command(flatten)]
        args: node::AgentArgs,
        /// The pod: NAME or NAMESPACE/NAME.
        pod: String,
    },
    /// Explain how the proxy of this node would route a connection and whether policies allow it.
    ///
    /// For a denied connection, shows what would have to change. Exit code: 1 if the connection
    /// would be denied, 2 if this cannot be determined.
    Why(why::Args),
    /// List the workloads known to the proxy of this node.
    Workloads(proxy::ProxyArgs),
    /// List the services known to the proxy of this node.
    Services(proxy::ProxyArgs),
    /// List the authorization policies known to the proxy of this node.
    Policies(proxy::ProxyArgs),
    /// List the certificates of the pods of this node.
    Certs(proxy::ProxyArgs),
    /// List the open connections on this node.
    Conns(proxy::ProxyArgs),
    /// Print a completion script for a shell.
    ///
    /// For bash, add this line to ~/.bashrc: source <(underpass completions bash)
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages of all commands into a folder.
    Man {
        /// The folder; created if it does not exist.
        folder: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    args: node::AgentArgs,
    /// Admin address of the proxy.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = proxy::ADMIN)]
    proxy: SocketAddr,
    /// List every pod, with the reason why it is in the mesh or not.
    #[arg(long)]
    all: bool,
    /// Show all nodes of the cluster, one per line, through the API server.
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    target: cluster::Target,
}

#[derive(Debug, Subcommand)]
enum SandboxCommand {
    /// Create nodes and pods, and enrol the pods.
    Up {
        /// Mesh file [default: client, neighbour and outsider on node-1, server on node-2].
        #[arg(long)]
        file: Option<PathBuf>,
        /// Stay in the foreground; the sandbox stops with this command.
        #[arg(long)]
        foreground: bool,
    },
    /// Run a command in a pod's network namespace.
    Exec {
        /// The pod: NAME or NAMESPACE/NAME.
        pod: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show nodes and pods.
    Status {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Restart agents and proxies that have exited.
    Repair,
    /// Stop the sandbox and remove all of it.
    Down,
    /// Demonstrate the guarantees of the mesh step by step, in a separate sandbox.
    Demo {
        /// Print one JSON object per step.
        #[arg(long)]
        json: bool,
    },
    /// Run the process that owns the sandbox.
    #[command(hide = true)]
    Keep {
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    if program.ends_with(sandbox::NET_PLUGIN) {
        return sandbox::net_plugin();
    }
    let command = Cli::parse().command;
    let failure = ExitCode::from(match command {
        Command::Sandbox(_) => 1,
        _ => 2,
    });
    run(command).unwrap_or_else(|e| {
        print_error(format_args!("{e:#}"));
        failure
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Sandbox(command) => return run_sandbox(command),
        Command::Status(s) if s.cluster || s.target.is_named() => {
            return cluster::status(&s.target, s.args.json, s.all);
        }
        Command::Status(s) => return node::status(&s.args, s.proxy, s.all),
        Command::Check(args) => return check::run(&args),
        Command::Verify { args, pod } => return node::verify(&args, &pod),
        Command::Why(args) => return why::why(&args),
        Command::Workloads(args) => proxy::list(&args, List::Workloads)?,
        Command::Services(args) => proxy::list(&args, List::Services)?,
        Command::Policies(args) => proxy::list(&args, List::Policies)?,
        Command::Certs(args) => proxy::list(&args, List::Certificates)?,
        Command::Conns(args) => proxy::list(&args, List::Connections)?,
        Command::Completions { shell } => generate::completions(Cli::command(), shell),
        Command::Man { folder } => generate::man_pages(Cli::command(), &folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_sandbox(command: SandboxCommand) -> anyhow::Result<ExitCode> {
    match command {
        SandboxCommand::Up { file, foreground } => sandbox::up(file.as_deref(), foreground)?,
        SandboxCommand::Exec { pod, command } => sandbox::exec(&pod, &command)?,
        SandboxCommand::Status { json } => return sandbox::status(json),
        SandboxCommand::Repair => sandbox::repair()?,
        SandboxCommand::Down => sandbox::down()?,
        SandboxCommand::Demo { json } => return Ok(demo::run(json)),
        SandboxCommand::Keep { file } => return sandbox::keep(file.as_deref()),
    }
    Ok(ExitCode::SUCCESS)
}
