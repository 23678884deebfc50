//! Changing the policies of the sandbox's mesh file, as somebody with an editor would.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Everything from this key on is replaced; it comes last in the file.
const KEY: &str = "\npolicies:";

/// Replaces the policies, by renaming, so that nobody reads half a file.
pub(crate) fn replace_policies(path: &Path, policies: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let (rest, _) = text.split_once(KEY).context("the mesh file has no policies")?;
    let staged = path.with_extension("new");
    fs::write(&staged, format!("{rest}{KEY}{policies}\n"))?;
    fs::rename(staged, path)?;
    Ok(())
}
