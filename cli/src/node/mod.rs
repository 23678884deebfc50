//! Commands about this node, answered by its agent.

mod proxy_status;
mod summary;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use agent_status::{NodeStatus, PodState, PodStatus, ProxyStatus, VerificationState};
use error_code::cli as codes;
use http::{Method, StatusCode};

use crate::admin_client::{node_status, request};
use crate::failure::failure;
use crate::output::{exit_code, print, print_as, print_json};
use crate::proxy_client::query_proxy;

pub(crate) use proxy_status::exhausted_budgets;
pub(crate) use summary::{Summary, bypasses, is_verified, verdict};

/// Options of commands that query the agent.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// Admin address of the agent.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value_t = agent_status::DEFAULT_ADMIN)]
    agent: SocketAddr,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints the state of the pods and the proxy's connection to its control plane. The exit code is a
/// failure if an enrolled pod is not verified.
pub(crate) fn status(args: &AgentArgs, proxy: SocketAddr, all: bool) -> anyhow::Result<ExitCode> {
    let node = node_status(args.agent)?;
    let proxy_status = query_proxy(proxy, "/status").and_then(|response| response.decode());
    let summary: Summary = node.pods.iter().collect();
    if args.json {
        let mut value = serde_json::to_value(&node)?;
        value["proxyStatus"] = proxy_status.unwrap_or_default();
        print_json(&value)?;
    } else {
        print(header(&node));
        let proxy_status = proxy_status.as_ref().map_err(ToString::to_string);
        print(proxy_status::lines(proxy_status).join("\n"));
        print(&summary);
        if let Some(line) = capabilities(&node.pods) {
            print(line);
        }
        if all {
            print(format_args!("\n{}", table(&node.pods)));
        }
    }
    Ok(exit_code(summary.all_verified()))
}

/// Counts the enrolled pods that can change or bypass their capture; `--all` names them.
pub(crate) fn capabilities(pods: &[PodStatus]) -> Option<String> {
    let enrolled = || pods.iter().filter(|p| p.state == PodState::Enrolled);
    let has_added = |p: &&PodStatus| p.capabilities.iter().any(|c| !c.added.is_empty());
    let added = enrolled().filter(has_added).count();
    let default = enrolled().filter(|p| !p.capabilities.is_empty()).count() - added;
    (added + default > 0).then(|| {
        format!(
            "capabilities: {added} pods with added ones that can bypass the capture, \
             {default} more with NET_RAW by default"
        )
    })
}

/// Has the agent verify a pod now, and prints the result.
pub(crate) fn verify(args: &AgentArgs, pod: &str) -> anyhow::Result<ExitCode> {
    let (namespace, name) = match pod.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => find_by_name(args.agent, pod)?,
    };
    // Valid pod names need no escaping in a query.
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    let is_name = |s: &str| !s.is_empty() && s.bytes().all(is_plain);
    if !is_name(&namespace) || !is_name(&name) {
        let detail = format!("invalid pod {pod:?}: expected NAME or NAMESPACE/NAME");
        return Err(failure(&codes::NO_SUCH_POD, detail));
    }
    let path = format!("/verify?pod={namespace}/{name}");
    let response = request(Method::POST, args.agent, &path)?;
    if response.status == StatusCode::NOT_FOUND {
        return Err(failure(&codes::NO_SUCH_POD, response.text()));
    }
    let pod: PodStatus = response.decode()?;
    print_as(args.json, &pod, || verification(&pod))?;
    Ok(exit_code(is_verified(&pod)))
}

/// Renders the result of a verification, with the last repair.
fn verification(pod: &PodStatus) -> String {
    let verification = pod.verification.as_ref();
    let verdict = match verification.and_then(|v| v.from_node) {
        Some(false) => format!("{}, not probed from the node", verdict(pod)),
        _ => verdict(pod),
    };
    let Some(repair) = verification.and_then(|v| v.last_repair.as_ref()) else {
        return verdict;
    };
    let ago = Duration::from_millis(repair.ago_ms);
    let (what, by) = (&repair.what, &repair.by);
    format!("{verdict}\nrepaired {ago:.1?} ago: {what}; changed by {by}")
}

fn find_by_name(agent: SocketAddr, name: &str) -> anyhow::Result<(String, String)> {
    let pods = node_status(agent)?.pods;
    let found: Vec<&PodStatus> = pods
        .iter()
        .filter(|p| p.state == PodState::Enrolled && p.name == name)
        .collect();
    match found[..] {
        [pod] => Ok((pod.namespace.clone(), pod.name.clone())),
        [] => Err(failure(&codes::NO_SUCH_POD, name)),
        _ => {
            let namespaces: Vec<&str> = found.iter().map(|p| p.namespace.as_str()).collect();
            let detail = format!("{name} exists in namespaces {}", namespaces.join(", "));
            Err(failure(&codes::NO_SUCH_POD, detail))
        }
    }
}

fn header(node: &NodeStatus) -> String {
    let proxy = |p: &ProxyStatus| {
        let synced = if p.synced { "" } else { ", not synced yet" };
        format!("pid {}{synced}", p.pid)
    };
    let proxies: Vec<String> = match &node.proxies[..] {
        [] => vec!["not connected".to_owned()],
        proxies => proxies.iter().map(proxy).collect(),
    };
    let proxies = proxies.join("; ");
    let probes = &node.host_probes;
    let probes = match &probes.reason {
        Some(reason) => format!("{}: {reason}", probes.state),
        None if probes.state == "off" => probes.state.clone(),
        None => format!("{}, {} addresses", probes.state, probes.addresses),
    };
    format!(
        "node {}, agent {}\ncapture: {} ({})\nproxy: {proxies}\nhost probes: {probes}",
        node.node, node.version, node.capture.kind, node.capture.why
    )
}

pub(crate) fn table(pods: &[PodStatus]) -> String {
    let mut text = format!("{:<32} {:<11} {:<28} REASON", "POD", "STATE", "ADDRESSES");
    for pod in pods {
        let state = match (pod.state, &pod.verification) {
            (PodState::Enrolled, Some(v)) => v.state.as_str(),
            (PodState::Enrolled, None) => VerificationState::Unverified.as_str(),
            (PodState::Leaving, _) => "leaving",
            (PodState::Skipped, _) => "skipped",
        };
        let (name, ips) = (format!("{}/{}", pod.namespace, pod.name), joined(&pod.ips));
        let capabilities = match &pod.capabilities[..] {
            [] => String::new(),
            all => format!(" ({})", texts(all).join("; ")),
        };
        let reason = format!("{}{capabilities}", pod.reason);
        text += &format!("\n{name:<32} {state:<11} {ips:<28} {reason}");
    }
    text
}

/// Renders addresses in one cell of a table.
pub(crate) fn joined(ips: &[IpAddr]) -> String {
    texts(ips).join(" ")
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}
