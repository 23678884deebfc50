//! The plugin's entry of the conflist, as it arrives on standard input.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{IMPLIED_VERSION, SUPPORTED_VERSIONS};

/// The configuration of one call. Keys that we do not know are left alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification.
    #[serde(default = "implied_version")]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Result of the plugin before us, byte for byte.
    #[serde(default)]
    pub prev_result: Option<Box<RawValue>>,
    /// Ours: where the node agent listens.
    #[serde(default)]
    pub agent_socket: Option<String>,
    /// Ours: namespaces whose pods are never in the mesh.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// What the runtime says because the conflist asks for it by `capabilities`. Other keys, and values of another type, are
    /// the business of other plugins.
    #[serde(default, deserialize_with = "leniently")]
    pub runtime_config: RuntimeConfig,
    /// Ours: how long an ADD may take in all, in milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Ours: what STATUS wants to be there.
    #[serde(default)]
    pub status_needs: StatusNeeds,
    /// For GC: the attachments that are still in use.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same under the name that libcni 1.1 used at first.
    #[serde(default, rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<ValidAttachment>>,
}

/// What STATUS wants to be there before it says that pods can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusNeeds {
    /// An agent that has a proxy: what a pod of the mesh needs.
    #[default]
    Proxy,
    /// Nothing. A kubelet takes an error for a node without a network, on which it then starts no pod that needs one: the
    /// proxy's own would never come.
    Nothing,
}

/// What a runtime says of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct RuntimeConfig {
    /// The pod's annotations: containerd since 1.6, and CRI-O.
    #[serde(default, rename = "io.kubernetes.cri.pod-annotations", deserialize_with = "leniently")]
    pub pod_annotations: BTreeMap<String, String>,
}

fn leniently<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(input: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(input)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// An attachment that is still in use.
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

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a key of ours has a value of the wrong type.
    #[error("the configuration on standard input cannot be read: {0}")]
    Decode(#[source] serde_json::Error),
    /// A version of the specification that we do not speak.
    #[error("cniVersion {0} is not supported; supported are {supported}", supported = SUPPORTED_VERSIONS.join(", "))]
    Version(String),
    /// The network has no name, or one that the specification forbids.
    #[error("the network name {0:?} is missing or has other characters than letters, digits, '_', '.' and '-'")]
    Name(String),
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(input: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::parse_leniently(input)?;
        if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(ConfigError::Version(config.cni_version));
        }
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let good = config.name.starts_with(|c: char| c.is_ascii_alphanumeric()) && config.name.chars().all(inner);
        if good { Ok(config) } else { Err(ConfigError::Name(config.name)) }
    }

    /// Reads a configuration without judging it, for DEL.
    ///
    /// # Errors
    /// [`ConfigError::Decode`].
    pub fn parse_leniently(input: &[u8]) -> Result<Self, ConfigError> {
        serde_json::from_slice(input).map_err(ConfigError::Decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_left_alone() {
        let text =
            r#"{"cniVersion":"1.1.0","name":"n","type":"x","runtimeConfig":{"a":[1]},"cni.dev/x":null,"args":{}}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!((config.name.as_str(), config.prev_result.is_none()), ("n", true));
    }

    #[test]
    fn annotations_are_found_where_the_runtime_gives_them() {
        let with = |runtime: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{runtime}}}"#);
            Config::parse(text.as_bytes()).unwrap().runtime_config.pod_annotations
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
    fn bad_configurations_are_told_apart() {
        assert!(matches!(Config::parse(b"{"), Err(ConfigError::Decode(_))));
        assert!(matches!(Config::parse(b"{\"name\":\"n\"}"), Err(ConfigError::Version(v)) if v == "0.1.0"));
        assert!(matches!(Config::parse(br#"{"cniVersion":"1.2.0","name":"n"}"#), Err(ConfigError::Version(_))));
        assert!(matches!(Config::parse(br#"{"cniVersion":"1.1.0"}"#), Err(ConfigError::Name(_))));
    }
}
