//! The command line. Environment names of ztunnel are accepted where they mean the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::control;
use crate::data;
use crate::dns;
use crate::effective::Effective;

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const STATS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020);

/// Serves every enrolled pod of this node from within its network namespace.
#[derive(Debug, Parser)]
#[command(version, name = "underpass-proxy")]
pub(crate) struct Args {
    /// `proxy ztunnel`, which is the default; accepted because ztunnel is started that way.
    #[arg(value_parser = ["proxy", "ztunnel"], num_args = 0..=2)]
    command: Vec<String>,
    /// Where the node agent listens.
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub(crate) zds_socket: PathBuf,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub(crate) node: String,
    /// The mesh file: workloads, services and policies, in place of a control plane. Read again whenever it changes.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub(crate) mesh_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) control: control::Options,
    #[command(flatten)]
    pub(crate) data: data::Options,
    /// The folder of the local certificate authority, which issues certificates where no control plane does; made on first use.
    #[arg(long, env = "UNDERPASS_CA_DIR", default_value = "/var/lib/underpass/ca")]
    pub(crate) ca_dir: PathBuf,
    /// One proxy for all pods of a node is the only mode.
    #[arg(long, env = "PROXY_MODE", value_enum, default_value = "shared")]
    mode: Mode,
    /// Data threads: a number, a percentage of the cores such as 50%, or 0 for all cores. The default is a quarter of
    /// the cores, and two at least.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_parser = WorkerThreads::parse)]
    pub(crate) workers: Option<WorkerThreads>,
    /// The cluster that this node belongs to; the control plane is told.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// The network that this node belongs to. Only told in the log: the mesh file says it of each workload.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub(crate) network: String,
    /// Of several services with one address or name, those of this namespace go before others, unless one is in the client's
    /// namespace or canonical. (The name is spelt as ztunnel spells it.)
    #[arg(long, env = "PREFERED_SERVICE_NAMESPACE")]
    pub(crate) preferred_service_namespace: Option<String>,
    /// Whether to listen for IPv6 connections, too.
    #[arg(long, env = "IPV6_ENABLED", default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) ipv6: bool,
    /// Whether to answer DNS on port 15053 of every pod. It is asked there only where redirection captures DNS.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", default_value = "true", action = clap::ArgAction::Set)]
    dns_capture: bool,
    /// The domain under which the services of the cluster have their names.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name servers for what is not in the mesh, where redirection does not tell whom the pod asked (DNS over UDP under NAT
    /// rules), such as 10.96.0.10 or [fd96::10]:53. The default is what this process uses itself, by /etc/resolv.conf.
    #[arg(long, env = "UNDERPASS_DNS_UPSTREAM", value_delimiter = ',', value_parser = dns::name_server)]
    dns_upstream: Vec<SocketAddr>,
    /// Admin interface; 127.0.0.1:15000, unless PROXY_CONFIG says another port.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN")]
    pub(crate) admin_addr: Option<SocketAddr>,
    /// Metrics; [::]:15020, unless PROXY_CONFIG says another port.
    #[arg(long)]
    pub(crate) stats_addr: Option<SocketAddr>,
    /// Readiness.
    #[arg(long, default_value = "[::]:15021")]
    pub(crate) readiness_addr: SocketAddr,
    /// How long open connections may go on after SIGTERM, such as 5s or 2m. The default is somewhat less than the grace
    /// period, or 5s.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_parser = duration)]
    drain: Option<Duration>,
    /// The grace period of the pod that this proxy runs in, in seconds.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS")]
    grace_period: Option<u64>,
    /// Cores that the container may use: the number of data threads, where that is not said.
    #[arg(long, env = "ZTUNNEL_CPU_LIMIT")]
    cpu_limit: Option<usize>,
    /// Cores that the container has asked for: the least number of data threads.
    #[arg(long, env = "ZTUNNEL_RESOURCE_CPU_REQUEST")]
    cpu_request: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Shared,
}

/// How many data threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerThreads {
    Number(usize),
    Percent(usize),
}

impl WorkerThreads {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse().map_err(|_| format!("{text:?} is no number and no percentage"));
        match text.strip_suffix('%') {
            Some(percent) => number(percent).map(Self::Percent),
            None => number(text).map(Self::Number),
        }
    }
}

impl Args {
    /// The command line and the environment, or the end of the process with the reason.
    pub(crate) fn read() -> (Self, Effective) {
        let read = Self::command().try_get_matches();
        let read = read.and_then(|found| Ok((Self::from_arg_matches(&found)?, Effective::of(&found))));
        read.unwrap_or_else(|e| {
            if e.use_stderr() {
                let code = error_code::control::SETTING;
                eprintln!("{code}: {} Next step: {}", code.what, code.next_step);
            }
            e.exit()
        })
    }

    /// What concerns the control plane. Ports and threads that PROXY_CONFIG says are used where no option does.
    pub(crate) fn settings(&mut self) -> Result<control::Settings, control::SettingError> {
        let settings = self.control.settings(&control::Context {
            has_mesh_file: self.mesh_file.is_some(),
            answers_dns: self.dns_capture,
            node_name: &self.node,
            cluster_id: &self.cluster_id,
            variables: std::env::vars_os()
                .filter_map(|(n, v)| n.into_string().ok().zip(v.into_string().ok()))
                .collect(),
        })?;
        let config = &settings.proxy_config;
        let port =
            |port: Option<u16>, address: SocketAddr| SocketAddr::new(address.ip(), port.unwrap_or(address.port()));
        self.admin_addr.get_or_insert(port(config.proxy_admin_port, ADMIN));
        self.stats_addr.get_or_insert(port(config.stats_port, STATS));
        self.workers = self.workers.or(config.concurrency.map(WorkerThreads::Number));
        Ok(settings)
    }

    /// Where admin interface and metrics are.
    pub(crate) fn own_addresses(&self) -> [SocketAddr; 2] {
        [self.admin_addr.unwrap_or(ADMIN), self.stats_addr.unwrap_or(STATS)]
    }

    /// How names are answered, if they are.
    pub(crate) fn dns_settings(&self) -> Option<dns::Settings> {
        self.dns_capture.then(|| self.name_servers())
    }

    /// What looks up names for the proxy itself.
    pub(crate) fn resolver(&self) -> dns::Resolver {
        self.name_servers().resolver()
    }

    fn name_servers(&self) -> dns::Settings {
        dns::Settings::new(&self.cluster_domain, self.dns_upstream.clone())
    }

    /// How long open connections may go on after SIGTERM.
    pub(crate) fn drain(&self) -> Duration {
        let before = |grace: u64| Duration::from_secs(grace.saturating_sub(if grace > 10 { 5 } else { 1 }).max(1));
        self.drain.or(self.grace_period.map(before)).unwrap_or(Duration::from_secs(5))
    }

    /// How many data threads on a machine with so many cores.
    pub(crate) fn worker_count(&self, cores: usize) -> usize {
        let asked_for = self.cpu_request.unwrap_or_default().min(cores);
        match self.workers {
            None => match self.cpu_limit {
                Some(limit) if limit > 0 => limit.max(asked_for),
                _ => cores.div_ceil(4).max(asked_for).max(2),
            },
            Some(WorkerThreads::Number(0)) => cores,
            Some(WorkerThreads::Number(n)) => n,
            Some(WorkerThreads::Percent(p)) => (cores * p).div_ceil(100).max(1),
        }
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 500ms, 5s or 2m");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_threads_are_read() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "5", "5 s", "-1s", "1d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        let count = |threads: &[&str], cores| {
            let args = ["underpass-proxy", "--mesh-file", "m"].iter().chain(threads);
            Args::try_parse_from(args).map(|a| a.worker_count(cores)).unwrap()
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
            Args::try_parse_from(args).map(|a| a.drain().as_secs()).unwrap()
        };
        assert_eq!(drain(&[]), 5);
        assert_eq!(drain(&["--grace-period", "30"]), 25);
        assert_eq!(drain(&["--grace-period", "10"]), 9);
        assert_eq!(drain(&["--grace-period", "1"]), 1);
        assert_eq!(drain(&["--grace-period", "30", "--drain", "2s"]), 2);
    }
}
