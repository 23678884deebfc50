//! The command line of Underpass.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_types)] // the sandbox plays the container runtime, which starts processes

mod demo;
mod sandbox;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    let Area::Sandbox(command) = Cli::parse().command;
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
