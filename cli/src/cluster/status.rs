//! `underpass status --cluster`: every node in a line.

use std::process::ExitCode;

use agent_status::{NodeStatus, PodState};
use error_code::cli as codes;
use serde_json::{Value, json};

use super::{Api, NodeSeen, Seen, Target, look};
use crate::failure::failure;
use crate::node::{Summary, is_verified, table};
use crate::table::Table;

/// Prints a line for every node, and how many pods are really in the mesh. Fails when one is enrolled and not verified, or
/// when an agent does not answer.
pub(crate) fn status(target: &Target, as_json: bool, all: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime
        .block_on(async { look(&Api::connect(target.kubeconfig.as_deref(), target.context.as_deref()).await?).await });
    let seen = seen.map_err(|e| failure(&codes::NO_CLUSTER, format!("{e:#}")))?;
    let pods = || seen.nodes.iter().filter_map(agent).flat_map(|a| &a.pods);
    let summary: Summary = pods().collect();
    if as_json {
        println!("{}", serde_json::to_string_pretty(&json_of(&seen))?);
    } else {
        print!("{}", nodes(&seen.nodes).text());
        println!("\n{summary}");
        if all {
            println!("\n{}", table(&pods().cloned().collect::<Vec<_>>()));
        }
    }
    let answered =
        seen.nodes.iter().all(|n| !matches!(n.agent, Some(Err(_)))) && seen.nodes.iter().any(|n| n.agent.is_some());
    Ok(if answered && summary.all_verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn agent(node: &NodeSeen) -> Option<&NodeStatus> {
    node.agent.as_ref()?.as_ref().ok()
}

fn nodes(nodes: &[NodeSeen]) -> Table {
    Table::new(
        &["NODE", "AGENT", "PROXY", "ISTIOD", "CAPTURE", "ENROLLED", "VERIFIED", "SKIPPED"],
        nodes.iter().map(|node| {
            let (version, capture) = match &node.agent {
                None => ("none".to_owned(), "-".to_owned()),
                Some(Err(_)) => ("silent".to_owned(), "-".to_owned()),
                Some(Ok(status)) => {
                    let ready = if status.unready.is_some() { ", not ready" } else { "" };
                    (format!("{}{ready}", status.version), status.capture.kind.clone())
                }
            };
            let count = |is: &dyn Fn(&agent_status::PodStatus) -> bool| {
                agent(node).map_or_else(|| "-".to_owned(), |a| a.pods.iter().filter(|p| is(p)).count().to_string())
            };
            vec![
                node.name.clone(),
                version,
                joined(node, |p| {
                    let ready = if p["ready"] == true { "" } else { ", not ready" };
                    format!("{}{ready}", p["version"].as_str().unwrap_or("?"))
                }),
                joined(node, |p| match &p["controlPlane"] {
                    Value::Null => "none".to_owned(),
                    plane if plane["connected"] == true && plane["synced"] == true => "connected".to_owned(),
                    plane => format!("away, state {} s old", plane["stateAgeS"]),
                }),
                capture,
                count(&|p| p.state == PodState::Enrolled),
                count(&|p| p.state == PodState::Enrolled && is_verified(p)),
                count(&|p| p.state == PodState::Skipped),
            ]
        }),
    )
}

/// The same of each proxy of a node.
fn joined(node: &NodeSeen, told: impl Fn(&Value) -> String) -> String {
    if node.proxies.is_empty() {
        return "none".to_owned();
    }
    let each = node.proxies.iter().map(|p| p.as_ref().map_or_else(|_| "silent".to_owned(), &told));
    each.collect::<Vec<_>>().join("; ")
}

fn json_of(seen: &Seen) -> Value {
    let node = |node: &NodeSeen| {
        let proxy = |p: &Result<Value, String>| match p {
            Ok(status) => status.clone(),
            Err(why) => json!({ "error": why }),
        };
        let agent = match &node.agent {
            None => Value::Null,
            Some(Ok(status)) => json!(status),
            Some(Err(why)) => json!({ "error": why }),
        };
        json!({ "node": node.name, "agent": agent, "proxies": node.proxies.iter().map(proxy).collect::<Vec<_>>() })
    };
    json!({ "kubernetes": seen.version, "nodes": seen.nodes.iter().map(node).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_line_whatever_answers_on_it() {
        let proxy = json!({ "version": "1", "ready": true, "controlPlane": { "connected": true, "synced": true } });
        let away = json!({ "version": "2", "ready": false, "controlPlane": { "connected": false, "stateAgeS": 7 } });
        let seen = [
            NodeSeen { name: "b".to_owned(), agent: None, clock_ahead_ms: None, proxies: Vec::new() },
            NodeSeen {
                name: "a".to_owned(),
                agent: Some(Err("refused".to_owned())),
                clock_ahead_ms: None,
                proxies: vec![Ok(proxy), Ok(away)],
            },
        ];
        let text = nodes(&seen).text();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1].join(" "), "a silent 1; 2, not ready connected; away, state 7 s old - - - -");
        assert_eq!(lines[2].join(" "), "b none none none - - - -");
    }
}
