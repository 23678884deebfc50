//! File layout of the sandbox.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The folder of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    /// The folder of a user's sandbox: UNDERPASS_SANDBOX_DIR if set; else /run/underpass/sandbox
    /// for root, and a folder in XDG_RUNTIME_DIR or /tmp for other users.
    pub(crate) fn of_user(uid: u32) -> Self {
        let default = || {
            if uid == 0 {
                return PathBuf::from("/run/underpass/sandbox");
            }
            match std::env::var_os("XDG_RUNTIME_DIR") {
                Some(runtime) => PathBuf::from(runtime).join("underpass-sandbox"),
                None => PathBuf::from(format!("/tmp/underpass-sandbox-{uid}")),
            }
        };
        Self(std::env::var_os("UNDERPASS_SANDBOX_DIR").map_or_else(default, PathBuf::from))
    }

    pub(crate) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// The keeper's report; it exists if there is a sandbox.
    pub(crate) fn report(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    /// The lock file that the keeper holds.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The log of the keeper.
    pub(crate) fn keeper_log(&self) -> PathBuf {
        self.0.join("keeper.log")
    }

    /// The default mesh file.
    pub(crate) fn mesh_file(&self) -> PathBuf {
        self.0.join("mesh.yaml")
    }

    /// The folder of the certificate authority, shared by all nodes.
    pub(crate) fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The folder of the CNI plugins.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// The path of a network namespace, usable with nsenter and cnitool.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        self.0.join("netns").join(name)
    }

    /// The folder of a node.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }
}

/// Finds another Underpass program, in the folder of this one.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot determine the path of this program")?;
    let path = own.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(crate::failure::failure(
        &error_code::sandbox::BINARY,
        format!("{} does not exist", path.display()),
    ))
}
