//! The error of the local certificate authority.

use std::io;
use std::path::PathBuf;

/// The local authority cannot issue certificates.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written. Likely cause: the directory is not writable.
    #[error("{code}: {path}: {source}", code = error_code::proxy::CA_FOLDER)]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why it cannot be read or written.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{code}: {path}: {reason}", code = error_code::proxy::CA_FOLDER)]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        reason: String,
    },
    /// A key or a certificate cannot be created.
    #[error("{code}: {0}", code = error_code::proxy::CA_FOLDER)]
    Sign(#[from] rcgen::Error),
}
