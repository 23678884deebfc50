//! CNI 1.1 as a chained plugin sees it: environment, configuration, result, error. No I/O.
//!
//! Source: the CNI specification 1.1.0; where it is silent, what libcni's own plugins do.

#![forbid(unsafe_code)]

mod config;
mod environment;
mod error;
mod result;

pub use config::{Config, ConfigError, StatusNeeds, ValidAttachment};
pub use environment::{Command, Environment, EnvironmentError, KubernetesArgs};
pub use error::{CniError, codes};
pub use result::{PrevResult, PrevResultError};

/// The versions of the specification that a plugin of ours speaks, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version that a configuration without `cniVersion` means.
pub const IMPLIED_VERSION: &str = "0.1.0";

/// The answer to VERSION, in the version that the runtime asked in.
pub fn version_answer(asked: &str) -> serde_json::Value {
    serde_json::json!({ "cniVersion": asked, "supportedVersions": SUPPORTED_VERSIONS })
}
