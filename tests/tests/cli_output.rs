//! Output of `underpass`: closed pipes, shell completions and man pages.

#![allow(clippy::unwrap_used, clippy::disallowed_types)] // runs the program under test

use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use underpass_tests::binaries::binary;
use underpass_tests::folder::folder;
use underpass_tests::skip::skip;

fn underpass(arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(binary("underpass"));
    let command = command.args(arguments).stdout(stdout);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

/// Runs a command that succeeds; returns its output.
fn output_of(arguments: &[&str]) -> String {
    let output = underpass(arguments, Stdio::piped());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the subcommands of a command, by its help.
fn subcommands(command: &[&str]) -> Vec<String> {
    let help = output_of(&[command, &["-h"]].concat());
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn closed_pipes_end_commands_quietly() {
    for (arguments, code) in [
        (&["status", "--help"][..], 0), // clap ignores the error
        (&["completions", "bash"], 141),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = underpass(arguments, writer);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = underpass(&["completions", "bash"], full);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("cannot write to standard output: No space"));
}

#[test]
fn completions_name_every_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let script = output_of(&["completions", shell]);
        for name in subcommands(&[]) {
            assert!(script.contains(&name), "{shell}: {name}");
        }
    }
    let mut bash = Command::new("bash");
    let bash = bash.arg("-n").stdin(Stdio::piped()).spawn();
    let Ok(mut bash) = bash else {
        return skip("the bash program is not installed");
    };
    let script = output_of(&["completions", "bash"]);
    let mut input = bash.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(bash.wait().unwrap().success());
}

#[test]
fn every_command_has_a_man_page() {
    let folder = folder("man");
    let pages = folder.join("pages");
    output_of(&["man", pages.to_str().unwrap()]);
    let mut commands = vec![vec!["underpass".to_owned()]];
    while let Some(command) = commands.pop() {
        let page = pages.join(command.join("-") + ".1");
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
        let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        let deeper = subcommands(&arguments).into_iter();
        commands.extend(deeper.map(|name| [&command[..], &[name]].concat()));
    }
    std::fs::remove_dir_all(folder).unwrap();
}
