//! Reading the mesh file, and reading it again when it changes.
//!
//! The folder is watched, not the file: editors and ConfigMaps replace files by renaming.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use error_code::ErrorCode;
use inotify::{Inotify, WatchMask};
use mesh::{Mesh, MeshFileError, parse_mesh_file};

/// Why a mesh file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read, or its folder cannot be watched.
    #[error("{code}: {path}: {source}", code = self.code())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its content is not taken.
    #[error("{code}: {path}: {source}", code = self.code())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: MeshFileError,
    },
}

impl LoadError {
    /// The code under which users find this in the documentation.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Unreadable { .. } => &error_code::mesh::UNREADABLE,
            Self::Content { source, .. } => source.code(),
        }
    }
}

/// Reads the file once.
///
/// # Errors
/// [`LoadError`].
pub fn load(path: &Path) -> Result<Mesh, LoadError> {
    parse(path, &read(path)?)
}

/// Reads the file, and calls `on_change` from a thread of its own whenever the content has changed: with the new mesh, or
/// with the reason why the file is not taken (then the mesh that was read last should stay in force).
///
/// # Errors
/// [`LoadError`] when the file is not taken at the start.
pub fn watch(path: &Path, on_change: impl FnMut(Result<Mesh, LoadError>) + Send + 'static) -> Result<Mesh, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_path_buf(), source };
    let inotify = Inotify::init().map_err(unreadable)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let events = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(folder, events).map_err(unreadable)?;
    // The watch stands before the first reading, so no change falls between the two.
    let text = read(path)?;
    let mesh = parse(path, &text)?;
    let owned = path.to_path_buf();
    std::thread::Builder::new()
        .name("mesh-file".into())
        .spawn(move || follow(&owned, text, inotify, on_change))
        .map_err(unreadable)?;
    Ok(mesh)
}

fn follow(path: &Path, text: String, mut inotify: Inotify, mut on_change: impl FnMut(Result<Mesh, LoadError>)) {
    let mut last = Some(text);
    let mut buffer = [0; 4096];
    loop {
        if let Err(e) = inotify.read_events_blocking(&mut buffer) {
            tracing::error!("the mesh file is not watched any more: {e}");
            return;
        }
        match read(path) {
            Ok(text) if last.as_ref() == Some(&text) => {}
            Ok(text) => {
                on_change(parse(path, &text));
                last = Some(text);
            }
            // Told once, not for every event in the folder.
            Err(e) if last.is_some() => {
                on_change(Err(e));
                last = None;
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Unreadable { path: path.to_path_buf(), source })
}

fn parse(path: &Path, text: &str) -> Result<Mesh, LoadError> {
    parse_mesh_file(text).map_err(|source| LoadError::Content { path: path.to_path_buf(), source })
}
