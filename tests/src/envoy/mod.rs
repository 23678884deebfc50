//! Stands in for the program `envoy` of Istio's proxy image, so that a plain Envoy can be used: it
//! starts the plain one with the agent's bootstrap, and passes discovery through a filter that
//! removes extensions which only Istio's build of Envoy has. Connections are served by Envoy alone.
//!
//! Every name that is removed is logged once, and so is everything that Envoy rejects.

#![allow(clippy::disallowed_types)] // it starts Envoy

mod bootstrap;
mod extensions;
mod gateway;
mod relay;
mod schema;
mod wire;

pub use extensions::{Extensions, Filtered};
pub use gateway::{Gateway, INGRESS, missing_gateway};

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The plain Envoy, beside this program.
const ENVOY: &str = "/usr/local/bin/envoy-plain";

/// Runs Envoy with these arguments until it exits; returns its exit code.
pub async fn run(mut arguments: Vec<String>) -> ExitCode {
    let file = arguments.iter().position(|argument| argument == "-c");
    if let Some(path) = file.and_then(|at| arguments.get_mut(at + 1)) {
        let edited = bootstrap::edit(path);
        *path = edited.path;
        // Envoy connects to this socket instead of the agent's.
        let _ = std::fs::remove_file(&edited.own_socket);
        let listener = UnixListener::bind(&edited.own_socket).unwrap();
        tokio::task::spawn_local(relay::serve(listener, edited.agent_socket));
    }
    let mut command = std::process::Command::new(ENVOY);
    command.args(arguments);
    netns::process::die_with_parent(&mut command);
    let mut envoy = tokio::process::Command::from(command).spawn().unwrap();
    let pid = envoy.id().and_then(|id| i32::try_from(id).ok()).unwrap();
    let forward = |signal| {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, signal); // it may have exited
    };
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    loop {
        tokio::select! {
            status = envoy.wait() => {
                let code = status.unwrap().code().and_then(|code| u8::try_from(code).ok());
                return ExitCode::from(code.unwrap_or(1));
            }
            _ = terminate.recv() => forward(nix::sys::signal::Signal::SIGTERM),
            _ = interrupt.recv() => forward(nix::sys::signal::Signal::SIGINT),
        }
    }
}

/// What was logged before.
static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Logs a line, unless it was logged before.
fn log_once(line: String) {
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if !logged.contains(&line) {
        println!("discovery-filter: {line}");
        logged.insert(line);
    }
}
