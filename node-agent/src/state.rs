//! What the agent remembers on disk, so that a restart begins with what should be.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pods::{Record, Skipped};

/// Its name in that folder.
pub(crate) const FILE: &str = "pods.json";
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    version: u32,
    /// After a reboot every namespace is gone, and inode numbers mean something else.
    boot_id: String,
    pods: Vec<Record>,
    /// Pods outside the mesh, which may be told to join.
    #[serde(default)]
    outside: Vec<Skipped>,
}

/// What every version of the file has.
#[derive(Debug, Deserialize)]
struct Header {
    version: u32,
}

/// The folder that holds the state.
#[derive(Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Makes the folder if need be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self(path.to_path_buf()))
    }

    /// The pods of this boot. What cannot be read is told and kept aside, never silently thrown away.
    pub(crate) fn load(&self) -> (Vec<Record>, Vec<Skipped>) {
        let path = self.0.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Default::default(),
            Err(e) => {
                tracing::error!("{}: {}: {e}", error_code::agent::STATE, path.display());
                return Default::default();
            }
        };
        if let Ok(Header { version }) = serde_json::from_slice(&bytes)
            && version != VERSION
        {
            self.keep_aside(
                "pods.other-version.json",
                &format!("was written by an agent of version {version} of the format"),
            );
            return Default::default();
        }
        match serde_json::from_slice::<State>(&bytes) {
            Ok(state) if state.boot_id == boot_id() => (state.pods, state.outside),
            Ok(_) => {
                tracing::info!("the node has been rebooted; pods come back through the plugin");
                Default::default()
            }
            Err(e) => {
                self.keep_aside("pods.damaged.json", &format!("is damaged ({e})"));
                Default::default()
            }
        }
    }

    fn keep_aside(&self, name: &str, why: &str) {
        let (path, aside) = (self.0.join(FILE), self.0.join(name));
        tracing::error!("{}: {} {why} and is kept as {}", error_code::agent::STATE, path.display(), aside.display());
        let _ = fs::rename(&path, aside); // what cannot be renamed is overwritten by the next pod's state
    }

    /// Writes all pods: a new file, flushed, that takes the old one's place.
    pub(crate) fn save(&self, pods: Vec<Record>, outside: Vec<Skipped>) -> io::Result<()> {
        let state = State { version: VERSION, boot_id: boot_id(), pods, outside };
        let staged = self.0.join("pods.json.new");
        let mut file = File::create(&staged)?;
        file.write_all(&serde_json::to_vec_pretty(&state)?)?;
        file.sync_data()?;
        fs::rename(staged, self.0.join(FILE))
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
