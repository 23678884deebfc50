//! Which settings are in force and where each is from, and which are set and mean nothing here.

use std::collections::BTreeMap;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};
use serde::Serialize;

use crate::args::Args;

/// The settings in force, for `/config_dump`: by the name of their environment variable, or of their option.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Effective(BTreeMap<String, Setting>);

#[derive(Debug, Clone, Serialize)]
struct Setting {
    value: String,
    /// `default`, `environment` or `command line`.
    from: &'static str,
}

impl Effective {
    pub(crate) fn of(found: &ArgMatches) -> Self {
        let setting = |arg: &Arg| {
            let id = arg.get_id().as_str();
            let from = match found.value_source(id)? {
                ValueSource::EnvVariable => "environment",
                ValueSource::CommandLine => "command line",
                _ => "default",
            };
            let values = found.get_raw(id)?.map(|v| v.to_string_lossy());
            let value = values.collect::<Vec<_>>().join(",");
            // Tokens and keys are nobody's business.
            let value = if arg.is_hide_env_values_set() && from != "default" { "(set)".to_owned() } else { value };
            let name = arg.get_env().map_or_else(|| format!("--{id}"), |env| env.to_string_lossy().into_owned());
            Some((name, Setting { value, from }))
        };
        Self(Args::command().get_arguments().filter(|a| a.get_id() != "command").filter_map(setting).collect())
    }
}

/// Variables of ztunnel that mean nothing here, with the values that say what is so anyway, and why.
const WITHOUT_MEANING: [(&str, &[&str], &str); 9] = [
    ("ENABLE_PROXY", &["true"], "the proxy is all that this is"),
    ("PROXY_WORKLOAD_INFO", &[], "one proxy serves all pods of a node"),
    ("INPOD_PORT_REUSE", &["true"], "the next proxy takes over while this one drains"),
    ("PACKET_MARK", &["1337"], "the redirection knows this mark and no other"),
    ("ENABLE_ORIG_SRC", &["true", ""], "applications always see the client's address"),
    ("LOCAL_XDS", &[""], "a mesh is given as a file, by LOCAL_XDS_PATH"),
    ("FAKE_CA", &["false"], "certificates are real; without CA_ADDRESS they come from the local authority"),
    ("UNSTABLE_ENABLE_SOCKS5", &["false"], "there is no SOCKS5"),
    ("ISTIO_META_DNS_PROXY_ADDR", &[""], "DNS is answered in the pod, on port 15053"),
];

/// Tells of variables that are set and mean nothing here.
pub(crate) fn tell_what_means_nothing() {
    for (name, agreed, why) in WITHOUT_MEANING {
        if let Ok(value) = std::env::var(name)
            && !agreed.contains(&value.as_str())
        {
            tracing::warn!("{name}={value} has no effect: {why}");
        }
    }
}
