//! The command line. Where istio-cni or ztunnel have an environment variable of the same meaning, it is accepted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::capture_choice::Asked;
use crate::install::Folders;

/// Decides which pods belong to the mesh, and hands them to the proxies of this node.
#[derive(Debug, Parser)]
#[command(version, name = "underpass-agent", args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// What else than running the agent can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Installs the plugin in the runtime's folders, once.
    Install {
        #[command(flatten)]
        folders: Folders,
        /// Where the plugin finds the agent.
        #[arg(long, env = "UNDERPASS_AGENT_SOCKET", default_value = handoff::DEFAULT_SOCKET)]
        agent_socket: PathBuf,
    },
    /// Takes the plugin out of the runtime's chain, and the rules out of the pods of this node and the node itself.
    Uninstall {
        #[command(flatten)]
        folders: Folders,
        /// Where the agent remembers its pods.
        #[arg(long, env = "UNDERPASS_STATE_DIR", default_value = "/var/lib/underpass")]
        state_dir: PathBuf,
        /// The node's network namespace; by default that of this program.
        #[arg(long, env = "UNDERPASS_HOST_NETNS")]
        host_netns: Option<PathBuf>,
    },
    /// Deletes the DaemonSet of the agents of a cluster, and waits until each has taken the plugin off its node.
    Retire {
        /// Its name.
        #[arg(long = "daemonset", env = "UNDERPASS_DAEMONSET")]
        daemon_set: String,
        /// Its namespace.
        #[arg(long, env = "POD_NAMESPACE")]
        namespace: String,
        /// How many seconds it may take.
        #[arg(long, default_value_t = 120)]
        within: u64,
        /// How the API server is reached; by default as the service account of this pod.
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
    },
}

/// The agent as it runs. What is required is missing only when a subcommand is there.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", required = true)]
    pub(crate) node: Option<String>,
    /// The mesh file: pods, their labels and their nodes. Read again whenever it changes.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub(crate) mesh_file: Option<PathBuf>,
    /// Pods and namespaces are known from the Kubernetes API, instead of from a mesh file.
    #[arg(long, env = "UNDERPASS_KUBERNETES")]
    pub(crate) kubernetes: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
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
    /// How packets reach the proxy. `auto` tries in a scratch network namespace, and takes the first that works.
    #[arg(long, env = "UNDERPASS_CAPTURE", value_enum, default_value = "auto")]
    pub(crate) capture: Asked,
    /// Capture the DNS queries of pods that do not say by annotation.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true")]
    pub(crate) dns_capture: bool,
    /// Replace redirection of istio-cni in pods that are to join. Without this, such a pod is refused.
    #[arg(long, env = "UNDERPASS_ADOPT_ISTIO")]
    pub(crate) adopt_istio: bool,
    /// Let health probes from this node reach enrolled pods directly, as from 169.254.7.127 or its IPv6 counterpart.
    #[arg(long, env = "UNDERPASS_HOST_PROBES", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true")]
    pub(crate) host_probes: bool,
    /// The node's network namespace, in which probes are sent; by default that of the agent.
    #[arg(long, env = "UNDERPASS_HOST_NETNS")]
    pub(crate) host_netns: Option<PathBuf>,
    /// Install the plugin in the runtime's folders, and keep it there.
    #[arg(long, env = "UNDERPASS_INSTALL_CNI")]
    pub(crate) install_cni: bool,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

/// What counts only with `--kubernetes`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterArgs {
    /// How the API server is reached; by default as the service account of the agent's pod.
    #[arg(long, env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespaces whose pods are never enrolled.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub(crate) exclude_namespaces: Vec<String>,
    /// The processes of the node, among which pods are found that are older than the agent.
    #[arg(long, env = "UNDERPASS_HOST_PROC", default_value = "/proc")]
    pub(crate) host_proc: PathBuf,
    /// The DaemonSet of the agents. When it is being deleted, an agent that ends takes the plugin and the rules off its node.
    #[arg(long = "daemonset", env = "UNDERPASS_DAEMONSET")]
    pub(crate) daemon_set: Option<String>,
    /// Leave the program of the plugin even then, for a runtime that calls DEL by what it remembers, as CRI-O does.
    #[arg(long, env = "UNDERPASS_KEEP_PLUGIN", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true")]
    pub(crate) keep_plugin: bool,
    /// Namespace of the agent's own pod.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub(crate) pod_namespace: Option<String>,
}

/// Makes the folder that a socket is to be in.
pub(crate) fn made(socket: &Path) -> std::io::Result<&Path> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(socket)
}
