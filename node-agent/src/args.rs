//! The command line. Environment variables of istio-cni and ztunnel are accepted under their names.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use kubernetes::EnablementSelectors;
use redirect::ExistingConnections;

use crate::capture_choice::CaptureOption;
use crate::install::{Folders, PluginEntry};

/// The default port of the metrics, as in istio-cni.
const METRICS_PORT: u16 = 15014;

/// Decides which pods belong to the mesh and hands them to the proxies of this node.
#[derive(Debug, Parser)]
#[command(
    version,
    name = "underpass-agent",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Subcommands; without one, the agent runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the CNI plugin once and exit.
    Install {
        #[command(flatten)]
        folders: Folders,
        /// Unix socket on which the plugin reaches the agent.
        #[arg(long, env = "UNDERPASS_AGENT_SOCKET", default_value = handoff::DEFAULT_SOCKET)]
        agent_socket: PathBuf,
    },
    /// Remove the plugin from the CNI configuration, and all rules from this node and its pods.
    Uninstall {
        #[command(flatten)]
        folders: Folders,
        /// Directory of the agent's state file.
        #[arg(
            long,
            env = "UNDERPASS_STATE_DIR",
            default_value = "/var/lib/underpass"
        )]
        state_dir: PathBuf,
        /// Path of the node's network namespace [default: this process's namespace].
        #[arg(long, env = "UNDERPASS_HOST_NETNS")]
        host_netns: Option<PathBuf>,
    },
    /// Delete the agents' DaemonSet and wait until every agent has cleaned up its node.
    Retire {
        /// Name of the DaemonSet.
        #[arg(long = "daemonset", env = "UNDERPASS_DAEMONSET")]
        daemon_set: String,
        /// Namespace of the DaemonSet.
        #[arg(long, env = "POD_NAMESPACE")]
        namespace: String,
        /// Time to wait for the agents, in seconds.
        #[arg(long, default_value_t = 120)]
        within: u64,
        /// Path of a kubeconfig [default: this pod's service account].
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
    },
}

/// Options of the running agent. Required ones are `None` only if a subcommand is given.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", required = true)]
    pub(crate) node: Option<String>,
    /// Path of the mesh file; reloaded when it changes.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub(crate) mesh_file: Option<PathBuf>,
    /// Read pods and namespaces from the Kubernetes API instead of a mesh file.
    #[arg(long, env = "UNDERPASS_KUBERNETES")]
    pub(crate) kubernetes: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Unix socket on which the agent serves the CNI plugin.
    #[arg(long, env = "UNDERPASS_AGENT_SOCKET", default_value = handoff::DEFAULT_SOCKET)]
    pub(crate) agent_socket: PathBuf,
    /// Unix socket on which the agent serves proxies (ZDS).
    #[arg(
        long,
        env = "INPOD_UDS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub(crate) zds_socket: PathBuf,
    /// Directory for the agent's state file, which survives restarts.
    #[arg(
        long,
        env = "UNDERPASS_STATE_DIR",
        default_value = "/var/lib/underpass"
    )]
    pub(crate) state_dir: PathBuf,
    /// Address that serves status, metrics and readiness over HTTP.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value = "127.0.0.1:15014")]
    pub(crate) admin_addr: SocketAddr,
    /// Address on which scrapers outside the node read the metrics, and nothing else: IP or
    /// IP:PORT [default: none; default port: 15014].
    #[arg(
        long,
        env = "UNDERPASS_AGENT_METRICS",
        value_name = "ADDRESS",
        value_parser = metrics_address
    )]
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Traffic capture method. `auto` tries each in a scratch network namespace and uses the first
    /// that works.
    #[arg(long, env = "UNDERPASS_CAPTURE", value_enum, default_value = "auto")]
    pub(crate) capture: CaptureOption,
    /// Capture DNS queries of pods without a DNS capture annotation.
    #[arg(
        long,
        env = "AMBIENT_DNS_CAPTURE",
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) dns_capture: bool,
    /// Replace redirection rules of istio-cni in pods that join; otherwise such pods are rejected.
    #[arg(long, env = "UNDERPASS_ADOPT_ISTIO")]
    pub(crate) adopt_istio: bool,
    /// Uid and gid of the proxy's process, such as `0:1337`. Packets of other processes in a pod do
    /// not leave by the proxy's mark. Without it, any process that may set the mark can do so.
    #[arg(long, env = "UNDERPASS_PROXY_USER", value_name = "UID:GID")]
    pub(crate) proxy_user: Option<redirect::ProxyUser>,
    /// Accept annotations by which connections of a pod bypass its proxy; otherwise pods that have
    /// them do not join.
    #[arg(
        long,
        env = "UNDERPASS_ALLOW_EXCLUSIONS",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) allow_exclusions: bool,
    /// What happens to connections that are open when a running pod joins, unless its annotation
    /// underpass.io/existing-connections overrides it: they continue without the mesh, or are
    /// reset.
    #[arg(
        long,
        env = "UNDERPASS_EXISTING_CONNECTIONS",
        value_enum,
        default_value = "keep"
    )]
    pub(crate) existing_connections: ExistingConnectionsOption,
    /// Let health probes from this node bypass the proxy, with source address 169.254.7.127 or its
    /// IPv6 counterpart.
    #[arg(
        long,
        env = "UNDERPASS_HOST_PROBES",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) host_probes: bool,
    /// Path of the node's network namespace, the origin of health probes [default: the agent's
    /// namespace].
    #[arg(long, env = "UNDERPASS_HOST_NETNS")]
    pub(crate) host_netns: Option<PathBuf>,
    /// Install the CNI plugin and reinstall it when its files change.
    #[arg(long, env = "UNDERPASS_INSTALL_CNI")]
    pub(crate) install_cni: bool,
    /// Chain the plugin in the runtime's configuration. If false, --install-cni removes it from
    /// there, and pods join the mesh after they have started.
    #[arg(
        long,
        env = "CHAINED_CNI_PLUGIN",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) chained: bool,
    #[command(flatten)]
    pub(crate) folders: Folders,
}

/// Options that apply only with `--kubernetes`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Path of a kubeconfig [default: the agent pod's service account].
    #[arg(long, env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespaces whose pods are never enrolled, separated by commas.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub(crate) exclude_namespaces: Vec<String>,
    /// Selectors of the pods that join the mesh, instead of the label istio.io/dataplane-mode: a
    /// YAML list of podSelector and namespaceSelector, of which one must match.
    #[arg(long, env = "AMBIENT_ENABLEMENT_SELECTOR", value_name = "YAML")]
    pub(crate) enablement_selectors: Option<EnablementSelectors>,
    /// The node's /proc, used to find pods that started before the agent.
    #[arg(long, env = "UNDERPASS_HOST_PROC", default_value = "/proc")]
    pub(crate) host_proc: PathBuf,
    /// Name of the agents' DaemonSet. An agent that stops while it is being deleted removes the
    /// plugin and all rules from its node.
    #[arg(long = "daemonset", env = "UNDERPASS_DAEMONSET")]
    pub(crate) daemon_set: Option<String>,
    /// Keep the plugin binary when uninstalling, for runtimes such as CRI-O that call DEL from a
    /// cached configuration.
    #[arg(
        long,
        env = "UNDERPASS_KEEP_PLUGIN",
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) keep_plugin: bool,
    /// Namespace of the agent's own pod.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub(crate) pod_namespace: Option<String>,
}

/// Values of `--existing-connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ExistingConnectionsOption {
    Keep,
    Reset,
}

impl From<ExistingConnectionsOption> for ExistingConnections {
    fn from(option: ExistingConnectionsOption) -> Self {
        match option {
            ExistingConnectionsOption::Keep => Self::Keep,
            ExistingConnectionsOption::Reset => Self::Reset,
        }
    }
}

/// Where the agent reads pods and namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceOption<'a> {
    MeshFile(&'a Path),
    Kubernetes,
}

impl RunArgs {
    /// The source of pod data; exactly one must be given.
    pub(crate) fn source(&self) -> anyhow::Result<SourceOption<'_>> {
        match (&self.mesh_file, self.kubernetes) {
            (Some(mesh_file), false) => Ok(SourceOption::MeshFile(mesh_file)),
            (None, true) => Ok(SourceOption::Kubernetes),
            (Some(_), true) => anyhow::bail!("--mesh-file and --kubernetes are mutually exclusive"),
            (None, false) => anyhow::bail!("--mesh-file or --kubernetes is required"),
        }
    }

    /// The plugin's entry in the chain. The mesh file has no excluded namespaces.
    pub(crate) fn plugin_entry(&self) -> PluginEntry {
        let excluded = if self.kubernetes {
            self.cluster.exclude_namespaces.clone()
        } else {
            Vec::new()
        };
        PluginEntry {
            agent_socket: self.agent_socket.clone(),
            excluded,
            kubelet: self.kubernetes,
        }
    }
}

/// Parses an address of the metrics: IP or IP:PORT.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let ip = text.parse::<IpAddr>();
    let address = ip.map(|ip| SocketAddr::new(ip, METRICS_PORT));
    let address = address.or_else(|_| text.parse());
    address.map_err(|_| "expected e.g. `10.0.0.1`, `fd00::1` or `[fd00::1]:15014`".to_owned())
}

/// Creates the parent folder of a socket, and returns the socket's path.
pub(crate) fn ensure_parent(socket: &Path) -> std::io::Result<&Path> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, clap::Error> {
        let required = ["underpass-agent", "--node", "n"];
        Args::try_parse_from(required.iter().chain(flags))
    }

    fn run(flags: &[&str]) -> RunArgs {
        parse(flags).unwrap().run
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn exactly_one_source_is_required() {
        let source = |flags: &[&str]| {
            let args = run(flags);
            match args.source() {
                Ok(SourceOption::Kubernetes) => "kubernetes".to_owned(),
                Ok(SourceOption::MeshFile(path)) => path.display().to_string(),
                Err(e) => e.to_string(),
            }
        };
        assert_eq!(source(&["--mesh-file", "/m"]), "/m");
        assert_eq!(source(&["--kubernetes"]), "kubernetes");
        assert_eq!(source(&[]), "--mesh-file or --kubernetes is required");
        let both = source(&["--kubernetes", "--mesh-file", "/m"]);
        assert!(both.contains("mutually exclusive"), "{both}");
    }

    #[test]
    fn switches_with_a_default_accept_a_value() {
        for (flags, dns, probes) in [
            (&[][..], false, true),
            (&["--dns-capture"], true, true),
            (
                &["--dns-capture", "false", "--host-probes", "false"],
                false,
                false,
            ),
            (&["--dns-capture=true", "--host-probes=true"], true, true),
        ] {
            let args = run(flags);
            assert_eq!(
                (args.dns_capture, args.host_probes),
                (dns, probes),
                "{flags:?}"
            );
        }
        assert!(parse(&["--host-probes=maybe"]).is_err());
    }

    #[test]
    fn capture_methods_are_named_as_in_the_documentation() {
        for (name, option) in [
            ("auto", CaptureOption::Auto),
            ("routed", CaptureOption::Routed),
            ("nat", CaptureOption::Nat),
            ("nat-iptables-nft", CaptureOption::NatIptablesNft),
            ("nat-iptables-legacy", CaptureOption::NatIptablesLegacy),
        ] {
            assert_eq!(run(&["--capture", name]).capture, option);
        }
        assert!(parse(&["--capture", "iptables"]).is_err());
    }

    #[test]
    fn the_plugin_entry_excludes_namespaces_only_in_a_cluster() {
        let excluding = ["--exclude-namespaces", "a,b"];
        let file = run(&[&excluding[..], &["--mesh-file", "/m"]].concat()).plugin_entry();
        assert_eq!((file.excluded, file.kubelet), (vec![], false));
        let cluster = run(&[&excluding[..], &["--kubernetes"]].concat()).plugin_entry();
        assert_eq!(cluster.excluded, ["a", "b"]);
        assert!(cluster.kubelet);
    }

    #[test]
    fn the_metrics_have_an_address_with_or_without_a_port() {
        let address = |text| run(&["--metrics-addr", text]).metrics_addr.unwrap();
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:15014"),
            ("fd00::1", "[fd00::1]:15014"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            assert_eq!(address(text).to_string(), expected);
        }
        assert_eq!(run(&[]).metrics_addr, None);
        for bad in [
            "",
            "15014",
            ":15014",
            "node-1",
            "10.0.0.1:",
            "10.0.0.1:70000",
        ] {
            assert!(parse(&["--metrics-addr", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn invalid_selectors_and_names_of_configurations_are_rejected() {
        let selectors = |text| parse(&["--enablement-selectors", text]).is_ok();
        assert!(selectors("[{ podSelector: { matchLabels: { a: b } } }]"));
        assert!(!selectors("[{ podSelectors: {} }]"));
        let name = |text| parse(&["--owned-config-name", text]).is_ok();
        assert!(name("01-mesh.conflist"));
        for bad in ["01-mesh.conf", ".conflist", "a/b.conflist", "../x.conflist"] {
            assert!(!name(bad), "{bad}");
        }
    }

    #[test]
    fn subcommands_need_no_node_and_accept_no_options_of_the_agent() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let args = parse("underpass-agent install --agent-socket /a").unwrap();
        let socket = match args.command {
            Some(Command::Install { agent_socket, .. }) => agent_socket,
            other => panic!("{other:?}"),
        };
        assert_eq!(socket, Path::new("/a"));
        assert!(parse("underpass-agent uninstall --host-netns /n").is_ok());
        assert!(parse("underpass-agent --node n install").is_err());
        assert!(parse("underpass-agent retire --daemonset").is_err());
    }
}
