//! The error that a plugin prints to standard output.

use serde::Serialize;

/// Error codes of the specification; codes from 100 on are specific to the plugin.
pub mod codes {
    /// The version of the configuration is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The environment is not that of a CNI call.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A read or write failed.
    pub const IO: u32 = 5;
    /// The input cannot be decoded.
    pub const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// CNI_NETNS is not the network namespace of a container (libcni's plugins use this number).
    pub const INVALID_NETNS: u32 = 8;
    /// A later retry may succeed.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD would fail now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD would fail now, and running pods may have lost connectivity.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// Underpass could not enrol the pod.
    pub const NOT_ENROLLED: u32 = 100;
    /// CHECK: the pod is not as ADD left it.
    pub const CHECK_FAILED: u32 = 101;
}

/// An error in the format of the specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    /// Version of the configuration, or the newest supported one if unknown.
    pub cni_version: String,
    /// See [`codes`].
    pub code: u32,
    /// Underpass's error code, and what happened.
    pub msg: String,
    /// The cause and the next step.
    pub details: String,
}
