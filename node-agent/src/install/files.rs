//! The runtime's CNI folders. Every file is replaced by renaming, so that a runtime never reads half of one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chain::{chain, is_chained, is_list, unchain};

/// What the original of a file is called while one with our plugin stands in for it; no runtime reads such a name.
const SAVED: &str = "underpass-saved";

/// What installing has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The chain was written to this file.
    Written(PathBuf),
    /// Everything was as it should be.
    AsItWas,
    /// There is no network configuration yet.
    NothingThere,
}

/// Copies the plugin into the runtime's folder, if another one or none is there.
pub(crate) fn install_plugin(from: &Path, folder: &Path) -> io::Result<bool> {
    let to = folder.join(super::chain::PLUGIN);
    let bytes = fs::read(from)?;
    if fs::read(&to).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    fs::create_dir_all(folder)?;
    replace(&to, &bytes, 0o755)?;
    Ok(true)
}

/// Puts our plugin into the chain that the runtime uses: that of the first configuration by name. Any other chain that
/// has it loses it, so that there are never two.
pub(crate) fn install_chain(folder: &Path, entry: &Value) -> io::Result<Installed> {
    let mut first = true;
    let mut done = Installed::NothingThere;
    for path in configurations(folder)? {
        let Some(configuration) = read(&path) else { continue };
        if !first {
            if is_chained(&configuration) {
                restore(folder, &path, &configuration)?;
            }
            continue;
        }
        match chain(&configuration, entry) {
            Ok(chained) => {
                first = false;
                done = if chained == configuration {
                    Installed::AsItWas
                } else if is_list(&configuration) {
                    if !is_chained(&configuration) {
                        fs::copy(&path, saved(&path))?;
                    }
                    write(&path, &chained)?;
                    Installed::Written(path)
                } else {
                    let list = path.with_extension("conflist");
                    write(&list, &chained)?;
                    fs::rename(&path, saved(&path))?;
                    sync(folder)?;
                    Installed::Written(list)
                };
            }
            // The runtime leaves it aside, too.
            Err(e) => tracing::warn!("{} is left alone: {e}", path.display()),
        }
    }
    Ok(done)
}

/// Takes our plugin out of every chain; a single plugin that had become a list is one again.
pub(crate) fn uninstall_chain(folder: &Path) -> io::Result<usize> {
    let mut taken = 0;
    for path in configurations(folder)? {
        let Some(configuration) = read(&path).filter(is_chained) else { continue };
        restore(folder, &path, &configuration)?;
        taken += 1;
    }
    Ok(taken)
}

/// Puts the original back, if that is what our plugin was put into; else only takes our plugin out.
fn restore(folder: &Path, path: &Path, configuration: &Value) -> io::Result<()> {
    let single = ["conf", "json"].map(|e| path.with_extension(e)).into_iter().find(|p| p != path && saved(p).exists());
    if let Some(single) = single {
        fs::rename(saved(&single), single)?;
        fs::remove_file(path)?;
        return sync(folder);
    }
    let without = unchain(configuration);
    if read(&saved(path)).as_ref() == Some(&without) {
        fs::rename(saved(path), path)?;
        return sync(folder);
    }
    write(path, &without)?;
    match fs::remove_file(saved(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The files that a runtime looks at, in its order.
fn configurations(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let read = |e: io::Result<fs::DirEntry>| e.map(|e| e.path());
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)?.map(read).collect::<io::Result<_>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json"));
    paths.sort();
    Ok(paths)
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(SAVED);
    name.into()
}

/// A file that is gone or no JSON is none of our business.
fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, value: &Value) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o600, |m| m.permissions().mode() & 0o777);
    replace(path, format!("{value:#}\n").as_bytes(), mode)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".underpass-new"); // no runtime reads files that end like this
    let mut file = File::create(&staged)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&staged, path)?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
