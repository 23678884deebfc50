//! The plugin's configuration: its conflist entry, read from standard input.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::version::{first_version, has_command};
use crate::{Command, IMPLIED_VERSION, SUPPORTED_VERSIONS};

/// The configuration of a CNI call. Unknown keys are ignored.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification; [`IMPLIED_VERSION`] if it is missing, null or empty, as libcni
    /// passes on a list without one.
    #[serde(default = "implied_version", deserialize_with = "version_or_implied")]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Result of the previous plugin, byte for byte.
    #[serde(default)]
    pub prev_result: Option<Box<RawValue>>,
    /// Underpass: socket of the node agent.
    #[serde(default)]
    pub agent_socket: Option<String>,
    /// Underpass: namespaces whose pods never join the mesh.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// Values that the conflist requests from the runtime by `capabilities`. Other keys, and values
    /// of unexpected types, are meant for other plugins and ignored.
    #[serde(default, deserialize_with = "value_or_default")]
    pub runtime_config: RuntimeConfig,
    /// Underpass: total time limit of an ADD, in milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Underpass: what STATUS requires.
    #[serde(default)]
    pub status_needs: StatusRequirement,
    /// For GC: the attachments that are still in use.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same, under the name used by early versions of libcni 1.1.
    #[serde(default, rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<ValidAttachment>>,
}

/// What STATUS requires to report that pods can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusRequirement {
    /// An agent with a connected proxy, which pods of the mesh need.
    #[default]
    Proxy,
    /// Nothing. A kubelet treats an error as a missing pod network and starts no pods that need
    /// one, including the proxy itself.
    Nothing,
}

/// The runtime's information about the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct RuntimeConfig {
    /// The pod's annotations, set by containerd since 1.6 and by CRI-O.
    #[serde(
        default,
        rename = "io.kubernetes.cri.pod-annotations",
        deserialize_with = "value_or_default"
    )]
    pub pod_annotations: BTreeMap<String, String>,
}

fn value_or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    input: D,
) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(input)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// An attachment that is still in use, from a GC call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// CNI_CONTAINERID of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// CNI_IFNAME of its ADD.
    pub ifname: String,
}

fn implied_version() -> String {
    IMPLIED_VERSION.to_owned()
}

fn version_or_implied<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let version = Option::<String>::deserialize(input)?;
    Ok(version
        .filter(|v| !v.is_empty())
        .unwrap_or_else(implied_version))
}

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The input is not JSON, or a known key has a value of the wrong type.
    #[error("cannot parse the configuration on standard input: {0}")]
    Decode(#[source] serde_json::Error),
    /// The version of the specification is not supported.
    #[error(
        "unsupported cniVersion {0}: expected one of {supported}",
        supported = SUPPORTED_VERSIONS.join(", ")
    )]
    Version(String),
    /// The command does not exist in the version of the configuration.
    #[error(
        "cniVersion {version} has no {command}: it exists since {since}",
        since = first_version(*.command)
    )]
    Command {
        /// The command of the call.
        command: Command,
        /// Version of the configuration.
        version: String,
    },
    /// The network has no name, or one that the specification forbids.
    #[error(
        "invalid network name {0:?}: expected a letter or digit, followed by letters, digits, \
         '_', '.' or '-'"
    )]
    Name(String),
}

impl Config {
    /// Parses and validates the configuration of a call.
    ///
    /// # Errors
    /// Returns [`ConfigError`] if the configuration is invalid, or its version does not have the
    /// command.
    pub fn parse(command: Command, input: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::parse_leniently(input)?;
        if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(ConfigError::Version(config.cni_version));
        }
        if !has_command(&config.cni_version, command) {
            let version = config.cni_version;
            return Err(ConfigError::Command { command, version });
        }
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let valid = config.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && config.name.chars().all(inner);
        if valid {
            Ok(config)
        } else {
            Err(ConfigError::Name(config.name))
        }
    }

    /// Parses a configuration without validation, for DEL.
    ///
    /// # Errors
    /// Returns [`ConfigError::Decode`] if the input is not JSON of the expected types.
    pub fn parse_leniently(input: &[u8]) -> Result<Self, ConfigError> {
        serde_json::from_slice(input).map_err(ConfigError::Decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_ignored() {
        let text = concat!(
            r#"{"cniVersion":"1.1.0","name":"n","type":"x","#,
            r#""runtimeConfig":{"a":[1]},"cni.dev/x":null,"args":{}}"#
        );
        let config = Config::parse(Command::Add, text.as_bytes()).unwrap();
        assert_eq!(
            (config.name.as_str(), config.prev_result.is_none()),
            ("n", true)
        );
    }

    #[test]
    fn pod_annotations_are_read_from_runtime_config() {
        let with = |runtime: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{runtime}}}"#);
            Config::parse(Command::Add, text.as_bytes())
                .unwrap()
                .runtime_config
                .pod_annotations
        };
        let found = with(r#"{"portMappings":[],"io.kubernetes.cri.pod-annotations":{"a/b":"c"}}"#);
        assert_eq!(found, [("a/b".to_owned(), "c".to_owned())].into());
        for other in [
            "null",
            "{}",
            r#"{"io.kubernetes.cri.pod-annotations":null}"#,
            "3",
            r#"{"io.kubernetes.cri.pod-annotations":[1]}"#,
        ] {
            assert_eq!(with(other), BTreeMap::new(), "{other}");
        }
    }

    #[test]
    fn each_kind_of_invalid_configuration_has_its_own_error() {
        assert!(matches!(
            Config::parse(Command::Add, b"{"),
            Err(ConfigError::Decode(_))
        ));
        assert!(matches!(
            Config::parse(Command::Add, br#"{"cniVersion":"1.2.0","name":"n"}"#),
            Err(ConfigError::Version(_))
        ));
        assert!(matches!(
            Config::parse(Command::Add, br#"{"cniVersion":"1.1.0"}"#),
            Err(ConfigError::Name(_))
        ));
    }

    #[test]
    fn every_version_is_read_and_none_means_the_oldest() {
        let version = |key: &str| {
            let text = format!(r#"{{{key}"name":"n"}}"#);
            Config::parse(Command::Add, text.as_bytes())
                .unwrap()
                .cni_version
        };
        for supported in SUPPORTED_VERSIONS {
            assert_eq!(
                version(&format!(r#""cniVersion":"{supported}","#)),
                supported
            );
        }
        for none in ["", r#""cniVersion":"","#, r#""cniVersion":null,"#] {
            assert_eq!(version(none), "0.1.0", "{none}");
        }
    }

    #[test]
    fn a_command_that_the_version_lacks_is_rejected() {
        let error = Config::parse(Command::Check, br#"{"cniVersion":"0.3.1","name":"n"}"#);
        assert_eq!(
            error.unwrap_err().to_string(),
            "cniVersion 0.3.1 has no CHECK: it exists since 0.4.0"
        );
        assert!(Config::parse(Command::Check, br#"{"cniVersion":"0.4.0","name":"n"}"#).is_ok());
        assert!(matches!(
            Config::parse(Command::Gc, br#"{"cniVersion":"1.0.0","name":"n"}"#),
            Err(ConfigError::Command { command: Command::Gc, version }) if version == "1.0.0"
        ));
    }
}
