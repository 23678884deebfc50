//! What a person asks about the node that they are on: the agent answers.

mod serving;
mod summary;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use agent_status::{NodeStatus, PodState, PodStatus, VerificationState};
use error_code::cli as codes;
use http::{Method, StatusCode};

use crate::ask::{ask, read};
use crate::failure::failure;

pub(crate) use summary::{Summary, is_verified, verdict};

/// Where the agent is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Asked {
    /// The agent's admin address.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value_t = agent_status::DEFAULT_ADMIN)]
    agent: SocketAddr,
    /// The agent's own words, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the agent says of its node, asked in the network namespace of the calling thread.
///
/// # Errors
/// [`codes::NO_ANSWER`], [`codes::STRANGE_ANSWER`]
pub(crate) fn node_status(agent: SocketAddr) -> anyhow::Result<NodeStatus> {
    let (status, body) = ask(Method::GET, agent, "/status")?;
    read(status, &body)
}

/// Prints who is in the mesh and whether that was measured, and how the proxy stands with its control plane. Fails when a
/// pod is enrolled and not verified.
pub(crate) fn status(asked: &Asked, proxy: SocketAddr, all: bool) -> anyhow::Result<ExitCode> {
    let node = node_status(asked.agent)?;
    let serving = serving::ask_proxy(proxy);
    let summary: Summary = node.pods.iter().collect();
    if asked.json {
        let mut value = serde_json::to_value(&node)?;
        value["proxyStatus"] = serving.unwrap_or_default();
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!("{}", about(&node));
        println!("{}", serving::lines(serving.as_ref().map_err(ToString::to_string)).join("\n"));
        println!("{summary}");
        if all {
            println!("\n{}", table(&node.pods));
        }
    }
    Ok(exit(summary.all_verified()))
}

/// Has the agent look at a pod now, and prints what it has found.
pub(crate) fn verify(asked: &Asked, pod: &str) -> anyhow::Result<ExitCode> {
    let (namespace, name) = match pod.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => by_name(asked.agent, pod)?,
    };
    // Anything else in a query would have to be escaped, and is no name of a pod.
    let is_name = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if !is_name(&namespace) || !is_name(&name) {
        return Err(failure(&codes::NO_SUCH_POD, format!("{pod:?} is not of the form NAME or NAMESPACE/NAME")));
    }
    let (status, body) = ask(Method::POST, asked.agent, &format!("/verify?pod={namespace}/{name}"))?;
    if status == StatusCode::NOT_FOUND {
        return Err(failure(&codes::NO_SUCH_POD, String::from_utf8_lossy(&body).trim()));
    }
    let pod: PodStatus = read(status, &body)?;
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&pod)?);
    } else {
        println!("{}", summary::verdict(&pod));
        if let Some(repair) = pod.verification.as_ref().and_then(|v| v.last_repair.as_ref()) {
            let ago = Duration::from_millis(repair.ago_ms);
            println!("put right {ago:.1?} ago: {}; changed by {}", repair.what, repair.by);
        }
    }
    Ok(exit(summary::is_verified(&pod)))
}

fn by_name(agent: SocketAddr, name: &str) -> anyhow::Result<(String, String)> {
    let pods = node_status(agent)?.pods;
    let found: Vec<&PodStatus> = pods.iter().filter(|p| p.state == PodState::Enrolled && p.name == name).collect();
    match found[..] {
        [pod] => Ok((pod.namespace.clone(), pod.name.clone())),
        [] => Err(failure(&codes::NO_SUCH_POD, name)),
        _ => {
            let namespaces: Vec<&str> = found.iter().map(|p| p.namespace.as_str()).collect();
            Err(failure(&codes::NO_SUCH_POD, format!("{name} is in the namespaces {}", namespaces.join(", "))))
        }
    }
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn about(node: &NodeStatus) -> String {
    let proxies: Vec<String> = node
        .proxies
        .iter()
        .map(|p| format!("pid {}{}", p.pid, if p.synced { "" } else { ", has not taken every pod yet" }))
        .collect();
    let proxies = if proxies.is_empty() { "none is connected".to_owned() } else { proxies.join("; ") };
    let probes = &node.host_probes;
    let probes = match &probes.reason {
        Some(reason) => format!("{}: {reason}", probes.state),
        None if probes.state == "off" => probes.state.clone(),
        None => format!("{}, for {} addresses", probes.state, probes.addresses),
    };
    format!(
        "node {}, agent {}\ncapture {}: {}\nproxy {proxies}\nhost probes {probes}",
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
        let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
        let name = format!("{}/{}", pod.namespace, pod.name);
        text += &format!("\n{name:<32} {state:<11} {:<28} {}", ips.join(" "), pod.reason);
    }
    text
}
