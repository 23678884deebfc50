//! Installing the plugin where the container runtime finds it, keeping it there, and taking it out again.

mod chain;
mod files;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::Args;
use error_code::agent as codes;
use inotify::{Inotify, WatchMask};
use netns::NetNs;
use serde_json::{Value, json};

use crate::state::StateDir;
pub(crate) use chain::PLUGIN;
use files::Installed;

/// Where the runtime has its plugins and their configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct Folders {
    /// The runtime's folder of network configurations.
    #[arg(long, env = "UNDERPASS_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub(crate) conf_dir: PathBuf,
    /// The runtime's folder of plugins.
    #[arg(long, env = "UNDERPASS_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub(crate) bin_dir: PathBuf,
    /// The plugin to install; by default underpass-cni in the folder of this program.
    #[arg(long)]
    pub(crate) plugin: Option<PathBuf>,
}

/// What the plugin's entry of the chain says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// Where the plugin finds the agent.
    pub(crate) agent_socket: PathBuf,
    /// Namespaces whose pods are never in the mesh.
    pub(crate) excluded: Vec<String>,
    /// Whether a kubelet is told by STATUS, which takes an error for a node without a network.
    pub(crate) kubelet: bool,
}

impl Entry {
    fn json(&self) -> Value {
        // By this capability the runtime tells the plugin the pod's annotations.
        let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true });
        let mut entry =
            json!({ "type": chain::PLUGIN, "agentSocket": self.agent_socket, "capabilities": capabilities });
        if !self.excluded.is_empty() {
            entry["excludeNamespaces"] = json!(self.excluded);
        }
        if self.kubelet {
            entry["statusNeeds"] = json!("nothing");
        }
        entry
    }
}

/// Installs the plugin and chains it, once.
pub(crate) fn install(folders: &Folders, entry: &Entry) -> anyhow::Result<Installed> {
    let code = codes::INSTALL;
    let plugin = match &folders.plugin {
        Some(plugin) => plugin.clone(),
        None => std::env::current_exe()?.with_file_name(chain::PLUGIN),
    };
    let copied = files::install_plugin(&plugin, &folders.bin_dir);
    if copied.with_context(|| format!("{code}: {} to {}", plugin.display(), folders.bin_dir.display()))? {
        tracing::info!("installed the plugin in {}", folders.bin_dir.display());
    }
    let done = files::install_chain(&folders.conf_dir, &entry.json())
        .with_context(|| format!("{code}: {}", folders.conf_dir.display()))?;
    match &done {
        Installed::Written(path) => tracing::info!("the plugin is chained in {}", path.display()),
        Installed::AsItWas => {}
        Installed::NothingThere => {
            tracing::warn!("{}: no network configuration in {} yet", codes::NO_CONFLIST, folders.conf_dir.display());
        }
    }
    Ok(done)
}

/// Takes the plugin out of the chain, and the rules out of the pods that have joined. The program stays for DELs to come.
pub(crate) fn uninstall(folders: &Folders, state_dir: &Path, host_netns: Option<&Path>) -> anyhow::Result<()> {
    let chains = files::uninstall_chain(&folders.conf_dir)
        .with_context(|| format!("{}: {}", codes::INSTALL, folders.conf_dir.display()))?;
    let mut pods = 0;
    let state = StateDir::open(state_dir)?;
    for record in state.load().0 {
        let netns = record.netns_path.as_ref().and_then(|p| NetNs::open(p).ok());
        let Some(netns) = netns.filter(|n| n.id().ino == record.netns_inode) else { continue };
        match netns.run(redirect::remove) {
            Ok(Ok(_)) => pods += 1,
            Ok(Err(e)) => tracing::error!(uid = record.uid, "{}: {e}", e.code()),
            Err(e) => tracing::error!(uid = record.uid, "{e}"),
        }
    }
    state.save(Vec::new(), Vec::new())?;
    let node = crate::host_probes::uninstall(host_netns)?;
    println!("taken out of {chains} chains and {pods} pods{}", if node { ", and the node" } else { "" });
    Ok(())
}

/// Whether the plugin is where the runtime looks for it, as the thread that keeps it there knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Installation {
    missing: Arc<Mutex<Option<String>>>,
    /// Held while something is installed.
    has_ended: Arc<Mutex<bool>>,
}

impl Installation {
    /// What is missing; none when it is installed, or is not to be.
    pub(crate) fn missing(&self) -> Option<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on nothing is installed.
    pub(crate) fn end(&self) {
        *self.has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn note(&self, done: &anyhow::Result<Installed>) {
        let missing = match done {
            Ok(Installed::Written(_) | Installed::AsItWas) => None,
            Ok(Installed::NothingThere) => Some(format!("{}: {}", codes::NO_CONFLIST, codes::NO_CONFLIST.what)),
            Err(e) => Some(format!("{e:#}")),
        };
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }
}

/// Installs, and again whenever somebody changes the runtime's folders, from a thread of its own. Pods of `excluded`
/// namespaces are passed on by the plugin itself.
pub(crate) fn keep_installed(folders: Folders, entry: Entry, state: Installation) -> anyhow::Result<()> {
    let mut inotify = Inotify::init()?;
    let events = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    for folder in [&folders.conf_dir, &folders.bin_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: {}", codes::INSTALL, folder.display()))?;
        inotify.watches().add(folder, events)?;
    }
    let done = install(&folders, &entry);
    state.note(&done);
    done?;
    std::thread::Builder::new().name("install".into()).spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            if let Err(e) = inotify.read_events_blocking(&mut buffer) {
                return tracing::error!("the runtime's folders are not watched any more: {e}");
            }
            let has_ended = state.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
            if *has_ended {
                return;
            }
            let done = install(&folders, &entry);
            drop(has_ended);
            state.note(&done);
            if let Err(e) = done {
                tracing::error!("{e:#}");
            }
        }
    })?;
    Ok(())
}
