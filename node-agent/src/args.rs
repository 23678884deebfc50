//! The command line. Where istio-cni or ztunnel have an environment variable of the same meaning, it is accepted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;

/// Decides which pods belong to the mesh, and hands them to the proxies of this node.
#[derive(Debug, Parser)]
#[command(version, name = "underpass-agent")]
pub(crate) struct Args {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: String,
    /// The mesh file: pods, their labels and their nodes. Read again whenever it changes.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub(crate) mesh_file: PathBuf,
    /// Where the CNI plugin finds the agent.
    #[arg(long, env = "UNDERPASS_AGENT_SOCKET", default_value = handoff::DEFAULT_SOCKET)]
    pub(crate) agent_socket: PathBuf,
    /// Where proxies find the agent.
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub(crate) zds_socket: PathBuf,
    /// Where the agent remembers its pods across restarts.
    #[arg(long, env = "UNDERPASS_STATE_DIR", default_value = "/var/lib/underpass")]
    pub(crate) state_dir: PathBuf,
    /// Status, metrics and readiness.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value = "127.0.0.1:15014")]
    pub(crate) admin_addr: SocketAddr,
}

/// Makes the folder that a socket is to be in.
pub(crate) fn made(socket: &Path) -> std::io::Result<&Path> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(socket)
}
