//! The runtime's CNI folders: which file the runtime uses, and chaining the plugin there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chain::{Format, as_list, chain, is_chained, unchain, unsupported_version};
use super::owned::{is_copy, remove_copies};
use super::replace::{remove_if_present, replace, saved, sync, write};

/// The result of chaining the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InstallOutcome {
    /// The plugin was chained in this file.
    Written(PathBuf),
    /// The plugin was already chained.
    Unchanged,
    /// There is no network configuration yet.
    NoConfiguration,
}

/// Why the plugin is not chained, or not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// A file or the folder cannot be read or written. An unreadable file may be the one that the
    /// runtime uses, so the plugin is not chained in another one.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The runtime uses a list of a version that the plugin does not support; in its chain, every
    /// ADD would fail.
    #[error("{path}: cniVersion {version} is not supported, and the plugin is not chained")]
    Version { path: PathBuf, version: String },
    /// The runtime would not use the copy, because the original's name sorts first.
    #[error("{path}: the name sorts before {copy}; choose an earlier --owned-config-name")]
    Order { path: PathBuf, copy: String },
}

/// Copies the plugin into the runtime's folder unless an identical file is there. Returns whether
/// it was copied.
pub(crate) fn install_plugin(from: &Path, folder: &Path) -> io::Result<bool> {
    let to = folder.join(super::chain::PLUGIN);
    let bytes = fs::read(from)?;
    if fs::read(&to).is_ok_and(|existing| existing == bytes) {
        return Ok(false);
    }
    fs::create_dir_all(folder)?;
    replace(&to, &bytes, 0o755)?;
    Ok(true)
}

/// Chains the plugin in the configuration that the runtime uses, the first by name, and removes it
/// from all others. Copies that an agent with `--owned-config` made are removed.
pub(crate) fn install_chain(folder: &Path, entry: &Value) -> Result<InstallOutcome, ChainError> {
    let mut used = None;
    for (path, format) in configurations(folder).map_err(at(folder))? {
        // The list that a single plugin in use has just become.
        if matches!(&used, Some(Ok(InstallOutcome::Written(list))) if *list == path) {
            continue;
        }
        let configuration = match read(&path) {
            Ok(Some(configuration)) => configuration,
            Ok(None) => continue,
            Err(e) if used.is_none() => return Err(at(&path)(e)),
            Err(e) => {
                tracing::debug!("{}, which the runtime does not use: {e}", path.display());
                continue;
            }
        };
        if is_copy(&configuration) {
            continue;
        }
        if used.is_none() {
            match chain(&configuration, format, entry) {
                Ok(chained) => {
                    used = Some(install_in(folder, &path, format, &configuration, &chained));
                    continue;
                }
                Err(e) => tracing::warn!("ignoring {}: {e}", path.display()),
            }
        }
        if is_chained(&configuration) {
            restore(folder, &path, &configuration).map_err(at(&path))?;
        }
    }
    let outcome = used.unwrap_or(Ok(InstallOutcome::NoConfiguration))?;
    // Last: until then, the runtime uses the copy.
    remove_copies(folder, None)?;
    Ok(outcome)
}

/// Writes the chain for the file that the runtime uses.
fn install_in(
    folder: &Path,
    path: &Path,
    format: Format,
    configuration: &Value,
    chained: &Value,
) -> Result<InstallOutcome, ChainError> {
    if let Some(version) = unsupported_version(chained) {
        let (path, version) = (path.to_owned(), version.to_owned());
        return Err(ChainError::Version { path, version });
    }
    if chained == configuration {
        return Ok(InstallOutcome::Unchanged);
    }
    let written = match format {
        Format::List => install_in_list(path, configuration, chained),
        Format::Single => convert(folder, path, chained),
    };
    written.map(InstallOutcome::Written).map_err(at(path))
}

fn install_in_list(path: &Path, configuration: &Value, chained: &Value) -> io::Result<PathBuf> {
    if !is_chained(configuration) {
        fs::copy(path, saved(path))?;
    }
    write(path, chained)?;
    Ok(path.to_owned())
}

/// Replaces the file of a single plugin by a list. A list that is not Underpass's may have that
/// name already.
fn convert(folder: &Path, path: &Path, chained: &Value) -> io::Result<PathBuf> {
    let list = path.with_extension("conflist");
    if read(&list)?.is_some_and(|existing| !is_chained(&existing)) {
        fs::copy(&list, saved(&list))?;
    }
    write(&list, chained)?;
    fs::rename(path, saved(path))?;
    sync(folder)?;
    Ok(list)
}

/// Removes the plugin from every chain, and turns lists back into the single plugins they were.
/// Returns the number of chains, and the first error; the remaining files are changed even then.
pub(crate) fn uninstall_chain(folder: &Path) -> (usize, Result<(), ChainError>) {
    let (mut chains, mut result) = (0, Ok(()));
    let paths = match configurations(folder) {
        Ok(paths) => paths,
        Err(e) => return (chains, Err(at(folder)(e))),
    };
    for (path, _) in paths {
        let restored = read(&path).and_then(|configuration| {
            let Some(configuration) = configuration.filter(is_chained) else {
                return Ok(0);
            };
            if is_copy(&configuration) {
                fs::remove_file(&path)?;
                return sync(folder).map(|()| 1);
            }
            restore(folder, &path, &configuration).map(|()| 1)
        });
        match restored {
            Ok(count) => chains += count,
            Err(e) => result = result.and(Err(at(&path)(e))),
        }
    }
    (chains, result)
}

/// Restores the saved original if the configuration still matches it; otherwise only removes the
/// plugin's entry.
pub(super) fn restore(folder: &Path, path: &Path, configuration: &Value) -> io::Result<()> {
    let without = unchain(configuration);
    let singles = ["conf", "json"].map(|e| path.with_extension(e));
    for single in singles.iter().filter(|s| *s != path && saved(s).exists()) {
        let original = read(&saved(single))?.unwrap_or_default();
        let is_current =
            as_list(&original, Format::Single).is_ok_and(|list| without.as_object() == Some(&list));
        if !is_current {
            // Another configuration has replaced the one that was saved.
            fs::remove_file(saved(single))?;
            continue;
        }
        if single.exists() {
            fs::remove_file(saved(single))?;
        } else {
            fs::rename(saved(single), single)?;
        }
        // The list of that name that was there before, if any.
        match fs::rename(saved(path), path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::remove_file(path)?,
            renamed => renamed?,
        }
        return sync(folder);
    }
    if read(&saved(path))?.as_ref() == Some(&without) {
        fs::rename(saved(path), path)?;
        return sync(folder);
    }
    write(path, &without)?;
    remove_if_present(&saved(path))
}

/// The configuration files that a runtime reads, in its order.
pub(super) fn configurations(folder: &Path) -> io::Result<Vec<(PathBuf, Format)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Runtimes skip folders.
        if let Some(format) = Format::of(&path).filter(|_| !path.is_dir()) {
            found.push((path, format));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// Reads a configuration: `None` if the file does not exist, null if it is not JSON.
pub(super) fn read(path: &Path) -> io::Result<Option<Value>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> ChainError {
    let path = path.to_owned();
    move |source| ChainError::Io { path, source }
}

#[cfg(test)]
mod tests;
