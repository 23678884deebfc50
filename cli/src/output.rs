//! Output of the commands. Everything they print goes through here, so that a closed pipe, as in
//! `underpass conns | head -1`, ends a command without a panic.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use error_code::printable;
use serde::Serialize;

/// Exit code when the reader of standard output is gone: that of a program killed by SIGPIPE.
const CLOSED_PIPE: i32 = 128 + nix::libc::SIGPIPE;
/// Exit code when standard output cannot be written for another reason.
const NOT_WRITTEN: i32 = 2;

/// Prints a text and a line feed to standard output, without what could control a terminal. If that
/// fails, the process exits: quietly if the reader closed the pipe, else with the reason.
pub(crate) fn print(text: impl Display) {
    let text = text.to_string();
    if let Err(e) = writeln!(std::io::stdout().lock(), "{}", printable::lines(&text)) {
        if e.kind() == ErrorKind::BrokenPipe {
            std::process::exit(CLOSED_PIPE);
        }
        print_error(format_args!("cannot write to standard output: {e}"));
        std::process::exit(NOT_WRITTEN);
    }
}

/// Prints a value as indented JSON.
///
/// # Errors
/// The value cannot be represented in JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a value as JSON, or as the text that `render` returns.
///
/// # Errors
/// Those of [`print_json`].
pub(crate) fn print_as<T: Display>(
    json: bool,
    value: &impl Serialize,
    render: impl FnOnce() -> T,
) -> anyhow::Result<()> {
    if json {
        return print_json(value);
    }
    print(render());
    Ok(())
}

/// The exit code of a command that ran: a failure unless the result is good.
pub(crate) fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a text and a line feed to standard error; there is nothing left to do if that fails.
pub(crate) fn print_error(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(std::io::stderr().lock(), "{}", printable::lines(&text));
}
