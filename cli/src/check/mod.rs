//! `underpass check`: whether all is well, and what to do where it is not.

mod cluster;
mod node;
mod report;
mod rights;

use std::process::ExitCode;
use std::time::Duration;

use agent_status::NodeStatus;
use error_code::check as checks;
use error_code::cli as codes;
use http::Method;
use serde_json::Value;

use self::report::{Outcome, Report};
use crate::ask::{ask, read};
use crate::cluster::{Api, NodeSeen, Target, look, until};
use crate::failure::failure;
use crate::proxy_of_node::ask_proxy;

/// What is checked, and how it is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// This node, by its agent and its proxy. So it is without a kubeconfig.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context", "pre"])]
    node: bool,
    /// Whether Underpass can be installed, before it is.
    #[arg(long)]
    pre: bool,
    /// With --pre: the namespace it will be installed in.
    #[arg(long, default_value = "istio-system")]
    namespace: String,
    /// Check again for so many seconds, until all is well.
    #[arg(long, default_value_t = 0)]
    wait: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The agent's admin address, with --node.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value_t = agent_status::DEFAULT_ADMIN)]
    agent: std::net::SocketAddr,
    /// The proxy's admin address, with --node.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = crate::proxy::ADMIN)]
    proxy: std::net::SocketAddr,
}

/// Checks, and prints what was found. Fails when something is not as it should be.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let made = || {
        if args.node || !(args.pre || args.target.is_there()) { Ok(this_node(args)) } else { whole_cluster(args) }
    };
    let report = until(Duration::from_secs(args.wait), made, Report::is_good)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        println!("{report}");
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn this_node(args: &Args) -> Report {
    let first_line = |e: anyhow::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    let agent = || -> anyhow::Result<NodeStatus> {
        let (status, body) = ask(Method::GET, args.agent, "/status")?;
        read(status, &body)
    };
    let proxy = || -> anyhow::Result<Value> {
        let (status, body) = ask_proxy(args.proxy, "/status")?;
        read(status, &body)
    };
    let agent = agent().map_err(first_line);
    let name = agent.as_ref().map_or_else(|_| "this node".to_owned(), |a| a.node.clone());
    let seen = NodeSeen { name, agent: Some(agent), clock_ahead_ms: None, proxies: vec![proxy().map_err(first_line)] };
    let mut report = Report::default();
    node::judge(&mut report, &[seen], env!("CARGO_PKG_VERSION"));
    report
}

fn whole_cluster(args: &Args) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut report = Report::default();
        let connected = Api::connect(args.target.kubeconfig.as_deref(), args.target.context.as_deref());
        let api = connected.await.map_err(|e| failure(&codes::NO_CLUSTER, format!("{e:#}")))?;
        let refused = rights::of_this_user(&api, args.pre, &args.namespace).await;
        let refused = refused.map_err(|e| failure(&codes::NO_CLUSTER, format!("{e:#}")))?;
        let check = if args.pre { checks::MAY_INSTALL } else { checks::API_PERMISSIONS };
        report.add(check, Outcome::unless(refused, ""));
        let seen = match look(&api).await {
            Ok(seen) => seen,
            // What was refused has been told.
            Err(_) if !report.is_good() => return Ok(report),
            Err(e) => return Err(failure(&codes::NO_CLUSTER, format!("{e:#}"))),
        };
        report.add(checks::API_REACHABLE, Outcome::Good(seen.version.clone()));
        cluster::others(&mut report, &seen);
        cluster::istiod(&mut report, &seen, seen.namespace().unwrap_or(&args.namespace));
        cluster::roots(&mut report, &seen);
        if args.pre {
            return Ok(report);
        }
        cluster::installation(&mut report, &seen);
        if let Some(namespace) = seen.namespace() {
            report.add(checks::AGENT_PERMISSIONS, rights::of_agents(&api, namespace).await);
            node::judge(&mut report, &seen.nodes, env!("CARGO_PKG_VERSION"));
            cluster::pods(&mut report, &seen);
        }
        Ok(report)
    })
}
