//! The CNI plugin. Once per pod sandbox, it enters the pod's network namespace, installs the
//! redirect rules, and hands the namespace over to the node agent. Standard output carries one JSON
//! value and nothing else; messages go to standard error.

#![forbid(unsafe_code)]

mod add;
mod agent;
mod call;
mod check;
mod del;
mod excluded;
mod failure;
mod gc;
mod status;

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use cni_spec::{Command, Config};
use error_code::printable;
use failure::Failure;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        print(&Failure::Internal(panic.to_string()).to_json(newest_version()));
        std::process::exit(1);
    }));
    let Some(command) = variable("CNI_COMMAND") else {
        report(format_args!(
            "underpass-cni {}: a chained CNI plugin, run by container runtimes",
            env!("CARGO_PKG_VERSION")
        ));
        report(format_args!(
            "CNI versions: {}",
            cni_spec::SUPPORTED_VERSIONS.join(", ")
        ));
        return ExitCode::SUCCESS;
    };
    let mut input = Vec::new();
    let read = io::stdin().read_to_end(&mut input);
    let requested = Config::parse_leniently(&input).map(|c| c.cni_version);
    let version = requested.unwrap_or_else(|_| newest_version().to_owned());
    match run(&command, read, &input, &version) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(output)) if print(&output) => ExitCode::SUCCESS,
        Ok(Some(_)) => ExitCode::FAILURE,
        Err(failure) => {
            print(&failure.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; returns the text to print, if any. Only DEL runs even if its input could not be
/// read.
fn run(
    command: &str,
    read: io::Result<usize>,
    input: &[u8],
    version: &str,
) -> Result<Option<String>, Failure> {
    let complete = || read.map(|_| input).map_err(Failure::Stdin);
    match Command::parse(command)? {
        Command::Version => Ok(Some(cni_spec::version_reply(version).to_string())),
        Command::Del => {
            del::run(input);
            Ok(None)
        }
        Command::Add => add::run(complete()?).map(Some),
        Command::Check => check::run(complete()?).map(|()| None),
        Command::Status => status::run(complete()?).map(|()| None),
        Command::Gc => gc::run(complete()?).map(|()| None),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn newest_version() -> &'static str {
    cni_spec::SUPPORTED_VERSIONS[cni_spec::SUPPORTED_VERSIONS.len() - 1]
}

/// Prints a message to standard error, which a runtime may add to its log. Parts of it may come
/// from the pod.
fn report(message: impl Display) {
    // Nothing is left to do if standard error is closed.
    let _ = writeln!(io::stderr(), "{}", printable::line(&message.to_string()));
}

/// Prints to standard output; returns whether that succeeded.
fn print(text: &str) -> bool {
    let mut out = io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_needs_no_input_and_the_other_commands_report_unreadable_input() {
        let unreadable = || Err(io::Error::from_raw_os_error(5));
        let run = |command| run(command, unreadable(), b"", "0.4.0");
        let reply = run("VERSION").unwrap().unwrap();
        assert!(reply.contains(r#""cniVersion":"0.4.0""#), "{reply}");
        for command in ["ADD", "CHECK", "STATUS", "GC"] {
            assert!(matches!(run(command), Err(Failure::Stdin(_))), "{command}");
        }
        for command in ["add", "ADD ", "UPDATE"] {
            assert!(matches!(run(command), Err(Failure::Environment(_))));
        }
    }
}
