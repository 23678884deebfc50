//! The CNI plugin. Once per pod sandbox it enters the pod's network namespace, installs the redirect rules, and hands the
//! namespace over to the node agent. Standard output carries one JSON value and nothing else; notes go to stderr.

#![forbid(unsafe_code)]

mod add;
mod agent;
mod check;
mod del;
mod failure;
mod gc;
mod status;

use std::io::{Read, Write};
use std::process::ExitCode;

use cni_spec::{Command, Config};
use failure::Failure;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        print(&Failure::Internal(panic.to_string()).to_json(newest_version()));
        std::process::exit(1);
    }));
    let Some(command) = variable("CNI_COMMAND") else {
        eprintln!(
            "underpass-cni {}: a chained CNI plugin, to be run by a container runtime",
            env!("CARGO_PKG_VERSION")
        );
        eprintln!("CNI versions: {}", cni_spec::SUPPORTED_VERSIONS.join(", "));
        return ExitCode::SUCCESS;
    };
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    let asked = Config::parse_leniently(&input).map(|c| c.cni_version);
    let version = asked.unwrap_or_else(|_| newest_version().to_owned());
    let outcome = match Command::parse(&command) {
        Ok(Command::Version) => Ok(cni_spec::version_answer(&version).to_string()),
        Ok(Command::Del) => {
            del::run(&input);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Add) => read.map_err(Failure::Stdin).and_then(|_| add::run(&input)),
        Ok(Command::Check) => read.map_err(Failure::Stdin).and_then(|_| check::run(&input)).map(|()| String::new()),
        Ok(Command::Status) => read.map_err(Failure::Stdin).and_then(|_| status::run(&input)).map(|()| String::new()),
        Ok(Command::Gc) => read.map_err(Failure::Stdin).and_then(|_| gc::run(&input)).map(|()| String::new()),
        Err(e) => Err(e.into()),
    };
    match outcome {
        Ok(nothing) if nothing.is_empty() => ExitCode::SUCCESS,
        Ok(output) if print(&output) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            print(&failure.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn newest_version() -> &'static str {
    cni_spec::SUPPORTED_VERSIONS[cni_spec::SUPPORTED_VERSIONS.len() - 1]
}

/// Prints to standard output; false when nobody takes it.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
