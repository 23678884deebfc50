//! Command-line arguments. ztunnel's environment variables are accepted where they have the same
//! meaning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::data;
use crate::effective::EffectiveSettings;

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), istio::port::ADMIN);
const STATS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), istio::port::STATS);

/// Serves every enrolled pod of this node from within its network namespace.
#[allow(rustdoc::broken_intra_doc_links)] // --help shows addresses in brackets, as they stand
#[derive(Debug, Parser)]
#[command(version, name = "underpass-proxy")]
pub(crate) struct Args {
    /// Ignored. Accepts `proxy ztunnel` for compatibility with ztunnel.
    #[arg(value_parser = ["proxy", "ztunnel"], num_args = 0..=2)]
    command: Vec<String>,
    /// Unix socket on which the node agent listens.
    #[arg(
        long,
        env = "INPOD_UDS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub(crate) zds_socket: PathBuf,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub(crate) node: String,
    /// Mesh file with workloads, services and policies, used instead of a control plane. Reloaded
    /// when it changes.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub(crate) mesh_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) control: discovery::Options,
    #[command(flatten)]
    pub(crate) data: data::Options,
    /// Directory of the local certificate authority, which issues certificates if no control plane
    /// does. Created on first use.
    #[arg(
        long,
        env = "UNDERPASS_CA_DIR",
        default_value = "/var/lib/underpass/ca"
    )]
    pub(crate) ca_dir: PathBuf,
    /// Proxy mode. Only `shared`, one proxy for all pods of a node, is supported.
    #[arg(long, env = "PROXY_MODE", value_enum, default_value = "shared")]
    mode: Mode,
    /// Number of data threads: a count, a percentage of the cores such as 50%, or 0 for one per
    /// core. Defaults to the CPU limit, or else to a quarter of the cores, at least two.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_parser = WorkerThreads::parse)]
    pub(crate) workers: Option<WorkerThreads>,
    /// ID of the cluster that this node belongs to, sent to the control plane.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// Name of the network that this node belongs to. Logged at startup and used as the default
    /// network of `/why`; the network of each workload comes from the mesh.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub(crate) network: String,
    /// Namespace whose services take precedence when several have the same address or name, unless
    /// one is in the client's namespace or canonical. The variable is spelled as in ztunnel.
    #[arg(long, env = "PREFERED_SERVICE_NAMESPACE")]
    pub(crate) preferred_service_namespace: Option<String>,
    /// Listen on IPv6 as well as IPv4.
    #[arg(long, env = "IPV6_ENABLED", default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) ipv6: bool,
    /// Serve DNS on port 15053 in every pod. Queries only arrive there if redirection captures DNS.
    #[arg(
        long,
        env = "ISTIO_META_DNS_CAPTURE",
        default_value = "true",
        action = clap::ArgAction::Set
    )]
    dns_capture: bool,
    /// DNS domain of the cluster's services.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Comma-separated name servers for names outside the mesh, e.g. 10.96.0.10 or [fd96::10]:53.
    /// Only used if redirection hides the name server that the pod queried (DNS over UDP under NAT
    /// rules). Defaults to those in /etc/resolv.conf.
    #[arg(
        long,
        env = "UNDERPASS_DNS_UPSTREAM",
        value_delimiter = ',',
        value_parser = dns::parse_name_server
    )]
    dns_upstream: Vec<SocketAddr>,
    /// Listen address of the admin interface. Defaults to 127.0.0.1:15000 or the port in
    /// PROXY_CONFIG.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN")]
    pub(crate) admin_addr: Option<SocketAddr>,
    /// Listen address of the metrics endpoint. Defaults to [::]:15020 or the port in PROXY_CONFIG.
    #[arg(long)]
    pub(crate) stats_addr: Option<SocketAddr>,
    /// Labels that the metrics of connections do not have, separated by commas, to limit the number
    /// of series: those of workloads, such as source_principal or destination_zone.
    #[arg(long, env = "UNDERPASS_METRICS_EXCLUDE_LABELS", default_value = "")]
    metrics_exclude_labels: telemetry::ExcludedLabels,
    /// How long the metrics of a pair of workloads remain after its last connection, e.g. 15m:
    /// several scrape intervals, so that the final values are read.
    #[arg(
        long,
        env = "UNDERPASS_METRICS_EXPIRY",
        default_value = "15m",
        value_parser = process::parse_duration
    )]
    metrics_expiry: Duration,
    /// Listen address of the readiness endpoint.
    #[arg(long, default_value = "[::]:15021")]
    pub(crate) readiness_addr: SocketAddr,
    /// Time for open connections to finish after SIGTERM, e.g. 5s or 2m. Defaults to slightly less
    /// than the grace period, or 5s without one.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_parser = process::parse_duration)]
    drain: Option<Duration>,
    /// Termination grace period of the proxy's own pod, in seconds.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS")]
    grace_period: Option<u64>,
    /// CPU limit of the proxy's container, in cores: the default number of data threads.
    #[arg(long, env = "ZTUNNEL_CPU_LIMIT")]
    cpu_limit: Option<usize>,
    /// CPU request of the proxy's container, in cores: the minimum default number of data threads.
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_REQUEST")]
    cpu_request: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Shared,
}

/// The number of data threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerThreads {
    Number(usize),
    Percent(usize),
}

impl WorkerThreads {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |t: &str| {
            t.parse()
                .map_err(|_| format!("invalid thread count {text:?}: expected e.g. 4 or 50%"))
        };
        match text.strip_suffix('%') {
            Some(percent) => number(percent).map(Self::Percent),
            None => number(text).map(Self::Number),
        }
    }
}

impl Args {
    /// Parses the command line and the environment. Prints an error and exits if they are invalid.
    pub(crate) fn parse_or_exit() -> (Self, EffectiveSettings) {
        let parsed = Self::command().try_get_matches().and_then(|matches| {
            let args = Self::from_arg_matches(&matches)?;
            Ok((args, EffectiveSettings::from_matches(&matches)))
        });
        parsed.unwrap_or_else(|e| {
            if e.use_stderr() {
                let code = error_code::control::SETTING;
                eprintln!("{code}: {} Next step: {}", code.what, code.next_step);
            }
            e.exit()
        })
    }

    /// Derives the control-plane settings. Applies the ports and threads in PROXY_CONFIG where no
    /// flag or variable sets them.
    pub(crate) fn settings(&mut self) -> Result<discovery::Settings, discovery::SettingError> {
        let settings = self.control.settings(&discovery::SettingsContext {
            has_mesh_file: self.mesh_file.is_some(),
            answers_dns: self.dns_capture,
            node_name: &self.node,
            cluster_id: &self.cluster_id,
            variables: std::env::vars_os()
                .filter_map(|(n, v)| n.into_string().ok().zip(v.into_string().ok()))
                .collect(),
        })?;
        let config = &settings.proxy_config;
        let port = |port: Option<u16>, address: SocketAddr| {
            SocketAddr::new(address.ip(), port.unwrap_or(address.port()))
        };
        self.admin_addr
            .get_or_insert(port(config.proxy_admin_port, ADMIN));
        self.stats_addr
            .get_or_insert(port(config.stats_port, STATS));
        self.workers = self
            .workers
            .or(config.concurrency.map(WorkerThreads::Number));
        Ok(settings)
    }

    /// Which series the metrics of connections have.
    pub(crate) fn series_options(&self) -> telemetry::SeriesOptions {
        telemetry::SeriesOptions {
            excluded: self.metrics_exclude_labels.clone(),
            expiry: self.metrics_expiry,
        }
    }

    /// Listen addresses of the admin interface and the metrics endpoint.
    pub(crate) fn own_addresses(&self) -> [SocketAddr; 2] {
        [
            self.admin_addr.unwrap_or(ADMIN),
            self.stats_addr.unwrap_or(STATS),
        ]
    }

    /// DNS settings, if DNS is served.
    pub(crate) fn dns_settings(&self) -> Option<dns::Settings> {
        self.dns_capture.then(|| self.name_servers())
    }

    /// The name servers for the proxy's own lookups.
    pub(crate) fn lookup_servers(&self) -> Vec<SocketAddr> {
        self.name_servers().upstreams().to_vec()
    }

    fn name_servers(&self) -> dns::Settings {
        dns::Settings::new(&self.cluster_domain, self.dns_upstream.clone())
    }

    /// How long open connections may take to finish after SIGTERM.
    pub(crate) fn drain(&self) -> Duration {
        let within_grace = |grace: u64| {
            let margin = if grace > 10 { 5 } else { 1 };
            Duration::from_secs(grace.saturating_sub(margin).max(1))
        };
        self.drain
            .or(self.grace_period.map(within_grace))
            .unwrap_or(Duration::from_secs(5))
    }

    /// Number of data threads on a machine with this many cores.
    pub(crate) fn worker_count(&self, cores: usize) -> usize {
        let requested = self.cpu_request.unwrap_or_default().min(cores);
        match self.workers {
            None => match self.cpu_limit {
                Some(limit) if limit > 0 => limit.max(requested),
                _ => cores.div_ceil(4).max(requested).max(2),
            },
            Some(WorkerThreads::Number(0)) => cores,
            Some(WorkerThreads::Number(n)) => n,
            Some(WorkerThreads::Percent(p)) => (cores * p).div_ceil(100).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_counts_and_the_drain_period_have_the_defaults_of_ztunnel() {
        let count = |threads: &[&str], cores| {
            let args = ["underpass-proxy", "--mesh-file", "m"]
                .iter()
                .chain(threads);
            Args::try_parse_from(args)
                .map(|a| a.worker_count(cores))
                .unwrap()
        };
        assert_eq!(count(&[], 2), 2);
        assert_eq!(count(&[], 16), 4);
        assert_eq!(count(&["--workers", "0"], 3), 3);
        assert_eq!(count(&["--workers", "50%"], 5), 3);
        assert_eq!(count(&["--workers", "7"], 2), 7);
        assert_eq!(count(&["--cpu-limit", "3"], 16), 3);
        assert_eq!(count(&["--cpu-limit", "3", "--cpu-request", "5"], 16), 5);
        assert_eq!(count(&["--cpu-request", "6"], 16), 6);
        assert_eq!(count(&["--cpu-limit", "3", "--workers", "1"], 16), 1);
        let drain = |more: &[&str]| {
            let args = ["underpass-proxy", "--mesh-file", "m"].iter().chain(more);
            Args::try_parse_from(args)
                .map(|a| a.drain().as_secs())
                .unwrap()
        };
        assert_eq!(drain(&[]), 5);
        assert_eq!(drain(&["--grace-period", "30"]), 25);
        assert_eq!(drain(&["--grace-period", "10"]), 9);
        assert_eq!(drain(&["--grace-period", "1"]), 1);
        assert_eq!(drain(&["--grace-period", "30", "--drain", "2s"]), 2);
    }
}
