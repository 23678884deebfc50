//! Replaces files by renaming, so that a runtime never reads a partial one, and keeps the original.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Extension of the saved original of a file that was chained; no runtime reads such files.
const SAVED: &str = "underpass-saved";
/// Extension of a file that is being written; no runtime reads such files.
const STAGED: &str = "underpass-new";

/// Where the original of a file is kept.
pub(super) fn saved(path: &Path) -> PathBuf {
    with_suffix(path, SAVED)
}

/// Writes a configuration. The file keeps its mode.
pub(super) fn write(path: &Path, value: &Value) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o600, |m| m.permissions().mode() & 0o777);
    replace(path, format!("{value:#}\n").as_bytes(), mode)
}

/// Writes a file and makes it durable.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let staged = with_suffix(path, STAGED);
    let mut file = File::create(&staged)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&staged, path)?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a folder durable.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file that may be absent.
pub(super) fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
