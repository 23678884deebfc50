//! CNI for a chained plugin: versions, environment, configuration, result, error. No I/O.
//!
//! Source: the CNI specification 1.1.0 and its predecessors. Where they are silent, this crate
//! follows libcni's own plugins.

#![forbid(unsafe_code)]

mod config;
mod environment;
mod error;
mod result;
mod version;

pub use config::{Config, ConfigError, StatusRequirement, ValidAttachment};
pub use environment::{Command, Environment, EnvironmentError, KubernetesArgs};
pub use error::{CniError, codes};
pub use result::{PrevResult, PrevResultError, unchanged_result};
pub use version::{IMPLIED_VERSION, SUPPORTED_VERSIONS, first_version, version_reply};
