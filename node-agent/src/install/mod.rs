//! Installs the plugin for the container runtime, keeps it installed, and uninstalls it.

mod chain;
mod files;
mod keep;
mod owned;
mod pace;
mod replace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use error_code::ErrorCode;
use error_code::agent as codes;
use serde_json::{Value, json};

use crate::disk::StateDir;
use crate::retire::{HeldPod, remove_rules};
use crate::sandbox_check::open_netns;
pub(crate) use chain::PLUGIN;
use files::{ChainError, InstallOutcome};
pub(crate) use keep::{Installation, keep_installed};

/// Time limit of `uninstall` for removing the rules from all pods.
const UNINSTALL_LIMIT: Duration = Duration::from_secs(60);

/// The runtime's folders for CNI plugins and their configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct Folders {
    /// The runtime's CNI configuration directory.
    #[arg(long, env = "UNDERPASS_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub(crate) conf_dir: PathBuf,
    /// The runtime's CNI plugin directory.
    #[arg(long, env = "UNDERPASS_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub(crate) bin_dir: PathBuf,
    /// Path of the plugin binary to install [default: underpass-cni beside this program].
    #[arg(long)]
    pub(crate) plugin: Option<PathBuf>,
    /// Chain the plugin in a copy of the configuration, which the runtime prefers by its name. The
    /// original stays as it is, and the copy stays when the agent stops.
    #[arg(
        long = "owned-config",
        env = "ISTIO_OWNED_CNI_CONFIG",
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) owned: bool,
    /// Name of that copy; it must sort before the name of the original.
    #[arg(
        long = "owned-config-name",
        env = "ISTIO_OWNED_CNI_CONFIG_FILENAME",
        default_value = "02-underpass-cni.conflist",
        value_parser = owned::name
    )]
    pub(crate) owned_name: String,
}

/// Contents of the plugin's entry in the chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct PluginEntry {
    /// Socket on which the plugin reaches the agent.
    pub(crate) agent_socket: PathBuf,
    /// Namespaces whose pods are never enrolled.
    pub(crate) excluded: Vec<String>,
    /// Whether the runtime serves a kubelet, which marks the node's network as not ready when
    /// STATUS fails.
    pub(crate) kubelet: bool,
}

impl PluginEntry {
    fn json(&self) -> Value {
        // With this capability, the runtime passes the pod's annotations to the plugin.
        let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true });
        let mut entry = json!({
            "type": chain::PLUGIN,
            "agentSocket": self.agent_socket,
            "capabilities": capabilities,
        });
        if !self.excluded.is_empty() {
            entry["excludeNamespaces"] = json!(self.excluded);
        }
        if self.kubelet {
            entry["statusNeeds"] = json!("nothing");
        }
        entry
    }
}

/// Copies the plugin and chains it, once.
pub(crate) fn install(folders: &Folders, entry: &PluginEntry) -> anyhow::Result<InstallOutcome> {
    let code = codes::INSTALL;
    let plugin = match &folders.plugin {
        Some(plugin) => plugin.clone(),
        None => std::env::current_exe()?.with_file_name(chain::PLUGIN),
    };
    let copied = files::install_plugin(&plugin, &folders.bin_dir);
    if copied.with_context(|| {
        format!(
            "{code}: {} to {}",
            plugin.display(),
            folders.bin_dir.display()
        )
    })? {
        tracing::info!("installed the plugin in {}", folders.bin_dir.display());
    }
    let (conf_dir, entry) = (&folders.conf_dir, entry.json());
    let outcome = if folders.owned {
        owned::install_copy(conf_dir, &folders.owned_name, &entry)
    } else {
        files::install_chain(conf_dir, &entry)
    };
    let outcome = outcome.map_err(explained)?;
    match &outcome {
        InstallOutcome::Written(path) => tracing::info!("chained the plugin in {}", path.display()),
        InstallOutcome::Unchanged => {}
        InstallOutcome::NoConfiguration => {
            let (code, conf_dir) = (codes::NO_CONFLIST, folders.conf_dir.display());
            tracing::warn!("{code}: no network configuration in {conf_dir} yet");
        }
    }
    Ok(outcome)
}

/// Removes the plugin from the chain, and the rules from enrolled pods and the node. Keeps the
/// plugin binary for later DELs.
pub(crate) fn uninstall(
    folders: &Folders,
    state_dir: &Path,
    host_netns: Option<&Path>,
) -> anyhow::Result<()> {
    let (chains, unchained) = unchain(folders);
    let pods = remove_rules(recorded_pods(state_dir)?, UNINSTALL_LIMIT);
    StateDir::open(state_dir)?.clear()?;
    let node = crate::host_probes::uninstall(host_netns)?;
    let node = if node {
        ", and rules from the node"
    } else {
        ""
    };
    println!("removed the plugin from {chains} chains, rules from {pods} pods{node}");
    unchained
}

/// The error with its code and next step.
fn explained(error: ChainError) -> anyhow::Error {
    let code: &ErrorCode = match &error {
        ChainError::Io { .. } | ChainError::Order { .. } => &codes::INSTALL,
        ChainError::Version { .. } => &error_code::cni::VERSION,
    };
    anyhow::anyhow!("{code}: {error}. Next step: {}", code.next_step)
}

/// Removes the plugin from every chain; returns their number, and the first error.
pub(crate) fn unchain(folders: &Folders) -> (usize, anyhow::Result<()>) {
    let (chains, unchained) = files::uninstall_chain(&folders.conf_dir);
    (chains, unchained.map_err(explained))
}

/// The pods in the agent's state, with the namespaces that are found by their paths.
pub(crate) fn recorded_pods(state_dir: &Path) -> anyhow::Result<Vec<HeldPod>> {
    let records = StateDir::open(state_dir)?.load().pods.into_iter();
    let held = records.map(|record| {
        let (path, inode) = (&record.sandbox.netns_path, record.sandbox.netns_inode);
        HeldPod {
            netns: open_netns(path.as_deref(), inode).map(Arc::new),
            pod: record.sandbox.pod,
            is_member: true,
        }
    });
    Ok(held.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_contains_only_the_keys_that_the_plugin_needs() {
        let entry = |excluded: &[&str], kubelet| {
            let entry = PluginEntry {
                agent_socket: "/run/a.sock".into(),
                excluded: excluded.iter().map(|n| (*n).to_owned()).collect(),
                kubelet,
            };
            entry.json()
        };
        let minimal = json!({
            "type": "underpass-cni",
            "agentSocket": "/run/a.sock",
            "capabilities": { "io.kubernetes.cri.pod-annotations": true },
        });
        assert_eq!(entry(&[], false), minimal);
        let mut kubelet = minimal;
        kubelet["excludeNamespaces"] = json!(["kube-system"]);
        kubelet["statusNeeds"] = json!("nothing");
        assert_eq!(entry(&["kube-system"], true), kubelet);
    }
}
