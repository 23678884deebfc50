//! Loads the mesh file and watches it for changes.
//!
//! The watch is on the folder, not on the file: editors and ConfigMaps replace files by renaming.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use error_code::ErrorCode;
use folder_watch::FolderWatch;
use inotify::WatchMask;
use mesh::{Mesh, MeshFileError, parse_mesh_file};

/// Why a mesh file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{code}: {path}: {source}", code = self.code())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The content is invalid.
    #[error("{code}: {path}: {source}", code = self.code())]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// The position and the reason.
        source: MeshFileError,
    },
}

impl LoadError {
    /// The documented error code.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Unreadable { .. } => &error_code::mesh::UNREADABLE,
            Self::Content { source, .. } => source.code(),
        }
    }
}

/// Loads the file once.
///
/// # Errors
/// Returns [`LoadError`] if the file cannot be read or is invalid.
pub fn load(path: &Path) -> Result<Mesh, LoadError> {
    parse(path, &read(path)?)
}

/// Loads the file, and calls `on_change` from a separate thread whenever its content changes: with
/// the new mesh, or with the error if the file is invalid. In that case the caller should keep the
/// last valid mesh.
///
/// # Errors
/// Returns [`LoadError`] if the initial load fails.
pub fn watch(
    path: &Path,
    on_change: impl FnMut(Result<Mesh, LoadError>) + Send + 'static,
) -> Result<Mesh, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_path_buf(),
        source,
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let events =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    // Start the watch before the first read, so that no change is missed.
    let changes = FolderWatch::new([folder.to_path_buf()], events);
    let text = read(path)?;
    let mesh = parse(path, &text)?;
    let owned = path.to_path_buf();
    std::thread::Builder::new()
        .name("mesh-file".into())
        .spawn(move || follow(&owned, text, changes, on_change))
        .map_err(unreadable)?;
    Ok(mesh)
}

fn follow(
    path: &Path,
    text: String,
    mut changes: FolderWatch,
    mut on_change: impl FnMut(Result<Mesh, LoadError>),
) {
    let mut last = Some(text);
    loop {
        changes.wait(Duration::MAX);
        match read(path) {
            Ok(text) if last.as_ref() == Some(&text) => {}
            Ok(text) => {
                on_change(parse(path, &text));
                last = Some(text);
            }
            // Report the error once, not for every event in the folder.
            Err(e) if last.is_some() => {
                on_change(Err(e));
                last = None;
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Unreadable {
        path: path.to_path_buf(),
        source,
    })
}

fn parse(path: &Path, text: &str) -> Result<Mesh, LoadError> {
    parse_mesh_file(text).map_err(|source| LoadError::Content {
        path: path.to_path_buf(),
        source,
    })
}
