//! Edits the policies in the sandbox's mesh file, like a user with an editor.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// The last key of the file; the text from here on is replaced.
const KEY: &str = "\npolicies:";

/// Replaces the policies. The file is renamed into place, so that no reader sees a partial file.
pub(crate) fn replace_policies(path: &Path, policies: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let (rest, _) = text
        .split_once(KEY)
        .context("the mesh file has no policies")?;
    let staged = path.with_extension("new");
    fs::write(&staged, format!("{rest}{KEY}{policies}\n"))?;
    fs::rename(staged, path)?;
    Ok(())
}
