//! The effective settings with their origins, and warnings about settings that have no effect.

use std::collections::BTreeMap;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};
use serde::Serialize;

use crate::args::Args;

/// The effective settings for `/config_dump`, by the name of their environment variable or else
/// their flag.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct EffectiveSettings(BTreeMap<String, Setting>);

#[derive(Debug, Clone, Serialize)]
struct Setting {
    value: String,
    /// `default`, `environment` or `command line`.
    from: &'static str,
}

impl EffectiveSettings {
    /// Collects the values and origins of all settings.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let setting = |arg: &Arg| {
            let id = arg.get_id().as_str();
            let from = match matches.value_source(id)? {
                ValueSource::EnvVariable => "environment",
                ValueSource::CommandLine => "command line",
                _ => "default",
            };
            let values = matches.get_raw(id)?.map(|v| v.to_string_lossy());
            let value = values.collect::<Vec<_>>().join(",");
            // Tokens and keys must not be exposed.
            let is_secret = arg.is_hide_env_values_set() && from != "default";
            let value = if is_secret { "(set)".to_owned() } else { value };
            let flag = || format!("--{id}");
            let name = arg
                .get_env()
                .map_or_else(flag, |env| env.to_string_lossy().into_owned());
            Some((name, Setting { value, from }))
        };
        let command = Args::command();
        let arguments = command.get_arguments().filter(|a| a.get_id() != "command");
        Self(arguments.filter_map(setting).collect())
    }
}

/// ztunnel's variables that have no effect here: the name, the values that match the fixed
/// behaviour, and the reason.
const IGNORED_VARIABLES: [(&str, &[&str], &str); 9] = [
    ("ENABLE_PROXY", &["true"], "the proxy cannot be disabled"),
    (
        "PROXY_WORKLOAD_INFO",
        &[],
        "one proxy serves all pods of a node",
    ),
    (
        "INPOD_PORT_REUSE",
        &["true"],
        "ports are always shared with the next proxy during draining",
    ),
    (
        "PACKET_MARK",
        &["1337"],
        "redirection only supports mark 1337",
    ),
    (
        "ENABLE_ORIG_SRC",
        &["true", ""],
        "applications always see the client's address",
    ),
    (
        "LOCAL_XDS",
        &[""],
        "set LOCAL_XDS_PATH to a mesh file instead",
    ),
    (
        "FAKE_CA",
        &["false"],
        "without CA_ADDRESS, the local authority issues certificates",
    ),
    (
        "UNSTABLE_ENABLE_SOCKS5",
        &["false"],
        "SOCKS5 is not supported",
    ),
    (
        "ISTIO_META_DNS_PROXY_ADDR",
        &[""],
        "DNS is always served in the pod, on port 15053",
    ),
];

/// Warns about variables whose values have no effect here.
pub(crate) fn warn_about_ignored_variables() {
    for (name, accepted, reason) in IGNORED_VARIABLES {
        if let Ok(value) = std::env::var(name)
            && !accepted.contains(&value.as_str())
        {
            tracing::warn!(
                event = "setting_ignored",
                name,
                value,
                "{name}={value} has no effect: {reason}"
            );
        }
    }
}
