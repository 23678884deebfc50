//! Subcommands, arguments, flags with their defaults and possible values, and environment
//! variables of the four programs.

use std::process::{Command, Output};

use underpass_tests::binaries::binary;

use super::assert_golden;

/// Commands that help does not list.
const HIDDEN_COMMANDS: [&[&str]; 1] = [&["underpass", "sandbox", "keep"]];

/// Flags that help does not list.
const HIDDEN_FLAGS: [(&str, &str); 1] = [("underpass-agent", "--pod-namespace")];

/// Environment variables that the programs read themselves, without a flag. That a program reads
/// one is proven only as far as that its name is in the program.
const VARIABLES: [(&str, &[&str]); 3] = [
    (
        "underpass",
        &["KUBECONFIG", "UNDERPASS_SANDBOX_DIR", "XDG_RUNTIME_DIR"],
    ),
    (
        "underpass-cni",
        &["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"],
    ),
    (
        "underpass-proxy",
        &["ISTIO_META_", "LOG_FORMAT", "RUST_LOG", "SSL_CERT_FILE"],
    ),
];

#[test]
fn commands_flags_and_variables_remain() {
    let mut lines = Vec::new();
    for program in ["underpass", "underpass-agent", "underpass-proxy"] {
        describe(&[program], &mut lines);
    }
    for command in HIDDEN_COMMANDS {
        describe(command, &mut lines);
    }
    for (program, flag) in HIDDEN_FLAGS {
        assert!(run(program, &[flag, "x", "-h"]).status.success(), "{flag}");
        lines.push(format!("{program} {flag}"));
    }
    for (program, names) in VARIABLES {
        let content = std::fs::read(binary(program)).unwrap();
        for name in names {
            if content.windows(name.len()).any(|w| w == name.as_bytes()) {
                lines.push(format!("{program} reads {name}"));
            }
        }
    }
    assert_golden("command_line.golden", &lines);
}

/// Adds a line for the command and for each of its arguments, flags and subcommands.
fn describe(command: &[&str], lines: &mut Vec<String>) {
    let (program, subcommands) = command.split_first().unwrap();
    let help = run(program, &[subcommands, &["-h"]].concat());
    assert!(help.status.success(), "{command:?}: {help:?}");
    let help = String::from_utf8(help.stdout).unwrap();
    let name = command.join(" ");
    lines.push(name.clone());
    let entries = |section| entries(&help, section);
    for entry in entries("Arguments:").iter().chain(&entries("Options:")) {
        lines.push(format!("{name} {}", without_description(entry)));
    }
    for entry in entries("Commands:") {
        let subcommand = entry.split(' ').next().unwrap();
        if subcommand != "help" {
            describe(&[command, &[subcommand]].concat(), lines);
        }
    }
}

/// The entries of a section of the help, each joined into one line.
fn entries(help: &str, section: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != section).skip(1);
    let mut entries: Vec<String> = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let continues = line.starts_with("        "); // a flag is indented by two or six columns
        match entries.last_mut() {
            Some(entry) if continues => *entry += &format!("  {}", line.trim()),
            _ => entries.push(line.trim().to_owned()),
        }
    }
    entries
}

/// An argument or flag with its variable, default and possible values, which end its description.
fn without_description(entry: &str) -> String {
    let (names, mut rest) = entry.split_once("  ").unwrap_or((entry, ""));
    let mut attributes = Vec::new();
    let last = |text: &str| {
        let starts = ["[env: ", "[default: ", "[possible values: "];
        starts.iter().filter_map(|start| text.rfind(start)).max()
    };
    while let Some(start) = last(rest).filter(|_| rest.trim_end().ends_with(']')) {
        let attribute = rest[start..].trim_end();
        rest = &rest[..start];
        // A default of several words is an explanation that belongs to the description.
        if !(attribute.starts_with("[default: ") && attribute.matches(' ').count() > 1) {
            attributes.push(format!(" {attribute}"));
        }
    }
    attributes.reverse();
    names.to_owned() + &attributes.concat()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary(program));
    command.env_clear().args(arguments).output().unwrap()
}
