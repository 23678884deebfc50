//! `underpass check`: checks an installation and suggests fixes.

mod cluster;
mod network_policies;
mod node;
mod permissions;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use error_code::check as checks;
use error_code::cli as codes;

use self::report::{CheckOutcome, CheckReport};
use crate::admin_client::{block_on, node_status};
use crate::cluster::{Api, NodeSnapshot, Target, retry_until, take_snapshot};
use crate::failure::failure;
use crate::output::{exit_code, print_as};
use crate::proxy_client::query_proxy;

/// Options of `underpass check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Check only this node, by querying its agent and proxy. Default if there is no kubeconfig.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context", "pre"])]
    node: bool,
    /// Check whether Underpass can be installed.
    #[arg(long)]
    pre: bool,
    /// Namespace to install into, with --pre.
    #[arg(long, default_value = "istio-system")]
    namespace: String,
    /// Retry until no check fails, for up to this many seconds.
    #[arg(long, default_value_t = 0)]
    wait: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Admin address of the agent, with --node.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value_t = agent_status::DEFAULT_ADMIN)]
    agent: std::net::SocketAddr,
    /// Admin address of the proxy, with --node.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = crate::proxy::ADMIN)]
    proxy: std::net::SocketAddr,
}

/// Runs the checks and prints the report. The exit code is a failure if a check fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let run_checks = || {
        if args.node || !(args.pre || args.target.is_available()) {
            Ok(check_node(args))
        } else {
            block_on(check_cluster(args))
        }
    };
    let timeout = Duration::from_secs(args.wait);
    let report = retry_until(timeout, run_checks, CheckReport::is_good)?;
    print_as(args.json, &report.json(), || &report)?;
    Ok(exit_code(report.is_good()))
}

fn check_node(args: &Args) -> CheckReport {
    let first_line = |e: anyhow::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    let agent = node_status(args.agent).map_err(first_line);
    let proxy = query_proxy(args.proxy, "/status").and_then(|response| response.decode());
    let name = agent.as_ref().map_or("this node", |a| a.node.as_str());
    let snapshot = NodeSnapshot {
        name: name.to_owned(),
        agent: Some(agent),
        clock_ahead_ms: None,
        proxies: vec![proxy.map_err(first_line)],
    };
    let mut report = CheckReport::default();
    node::check_nodes(&mut report, &[snapshot], env!("CARGO_PKG_VERSION"));
    report
}

async fn check_cluster(args: &Args) -> anyhow::Result<CheckReport> {
    let no_cluster = |e: anyhow::Error| failure(&codes::NO_CLUSTER, format!("{e:#}"));
    let mut report = CheckReport::default();
    let api = Api::connect(&args.target).await.map_err(no_cluster)?;
    let missing = permissions::missing_for_user(&api, args.pre, &args.namespace).await;
    let check = if args.pre {
        checks::MAY_INSTALL
    } else {
        checks::API_PERMISSIONS
    };
    report.fail_on(check, missing.map_err(no_cluster)?, "");
    let snapshot = match take_snapshot(&api).await {
        Ok(snapshot) => snapshot,
        // The report has the missing permissions already.
        Err(_) if !report.is_good() => return Ok(report),
        Err(e) => return Err(no_cluster(e)),
    };
    let version = CheckOutcome::Good(snapshot.version.clone());
    report.add(checks::API_REACHABLE, version);
    cluster::other_redirection(&mut report, &snapshot);
    let namespace = snapshot.namespace().unwrap_or(&args.namespace);
    cluster::istiod(&mut report, &snapshot, namespace);
    cluster::sidecars(&mut report, &snapshot);
    cluster::roots(&mut report, &snapshot);
    if args.pre {
        return Ok(report);
    }
    cluster::installation(&mut report, &snapshot);
    if let Some(namespace) = snapshot.namespace() {
        permissions::check_agents(&mut report, &api, namespace).await;
        node::check_nodes(&mut report, &snapshot.nodes, env!("CARGO_PKG_VERSION"));
        cluster::pods(&mut report, &snapshot);
        network_policies::check(&mut report, &snapshot);
    }
    Ok(report)
}
