//! Shell completions and man pages, generated from the definition of the command line.

use std::path::Path;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use crate::output::print;

/// Prints the completion script of a shell.
pub(crate) fn completions(mut command: Command, shell: Shell) {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
}

/// Writes a man page for the program and for each of its subcommands into a folder, which is
/// created if it does not exist.
pub(crate) fn man_pages(command: Command, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .with_context(|| format!("cannot write man pages to {}", folder.display()))
}
