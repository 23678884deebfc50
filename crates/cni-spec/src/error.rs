//! The error that a plugin prints on standard output.

use serde::Serialize;

/// Error codes of the specification; 100 and above are a plugin's own.
pub mod codes {
    /// The version of the configuration is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The environment is not that of a CNI call.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The input is not what it should be.
    pub const DECODE: u32 = 6;
    /// The configuration cannot be used.
    pub const INVALID_CONFIG: u32 = 7;
    /// CNI_NETNS is no network namespace of a container (libcni's own plugins use this number).
    pub const INVALID_NETNS: u32 = 8;
    /// Trying again later can help.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD would fail now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD would fail now, and pods that run may have lost connectivity.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// Underpass could not enrol the pod.
    pub const NOT_ENROLLED: u32 = 100;
    /// CHECK: the pod is not as ADD left it.
    pub const CHECK_FAILED: u32 = 101;
}

/// An error as the specification wants it printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    /// Version of the configuration, or the newest when that is not known.
    pub cni_version: String,
    /// See [`codes`].
    pub code: u32,
    /// Our stable code, and what happened.
    pub msg: String,
    /// The cause and the next step.
    pub details: String,
}
