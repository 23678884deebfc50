//! Where the sandbox has its files.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The folder of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    /// UNDERPASS_SANDBOX_DIR; for root /run/underpass/sandbox, for others a folder in XDG_RUNTIME_DIR or /tmp.
    pub(crate) fn of_user(uid: u32) -> Self {
        let default = || match uid {
            0 => PathBuf::from("/run/underpass/sandbox"),
            _ => match std::env::var_os("XDG_RUNTIME_DIR") {
                Some(runtime) => PathBuf::from(runtime).join("underpass-sandbox"),
                None => PathBuf::from(format!("/tmp/underpass-sandbox-{uid}")),
            },
        };
        Self(std::env::var_os("UNDERPASS_SANDBOX_DIR").map_or_else(default, PathBuf::from))
    }

    pub(crate) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// What the keeper tells about itself; its presence says that there is a sandbox.
    pub(crate) fn report(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    /// Locked by the keeper for as long as it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// What the keeper has to say once `up` has returned.
    pub(crate) fn keeper_log(&self) -> PathBuf {
        self.0.join("keeper.log")
    }

    /// The mesh file that is used when none is given.
    pub(crate) fn mesh_file(&self) -> PathBuf {
        self.0.join("mesh.yaml")
    }

    /// The certificate authority that all nodes share.
    pub(crate) fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The CNI plugins.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// A name for a network namespace, usable with nsenter and cnitool.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        self.0.join("netns").join(name)
    }

    /// The folder of one node.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }
}

/// Another program of ours, in the folder of this one.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program is not known")?;
    let path = own.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(crate::failure::failure(&error_code::sandbox::BINARY, format!("{} does not exist", path.display())))
}
