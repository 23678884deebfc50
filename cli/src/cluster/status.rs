//! `underpass status --cluster`: one line per node.

use std::process::ExitCode;

use agent_status::{PodState, PodStatus};
use error_code::cli as codes;
use serde_json::{Value, json};

use super::{Api, ClusterSnapshot, NodeSnapshot, Target, take_snapshot};
use crate::admin_client::block_on;
use crate::failure::failure;
use crate::node::{Summary, exhausted_budgets, is_verified, table};
use crate::output::{exit_code, print, print_json};
use crate::table::Table;

/// Prints a line per node and a summary of the pods. The exit code is a failure if an enrolled pod
/// is not verified or an agent does not respond.
pub(crate) fn status(target: &Target, as_json: bool, all: bool) -> anyhow::Result<ExitCode> {
    let snapshot = block_on(async { take_snapshot(&Api::connect(target).await?).await });
    let snapshot = snapshot.map_err(|e| failure(&codes::NO_CLUSTER, format!("{e:#}")))?;
    let statuses = || snapshot.nodes.iter().filter_map(NodeSnapshot::status);
    let pods = || statuses().flat_map(|status| &status.pods);
    let summary: Summary = pods().collect();
    if as_json {
        print_json(&json_of(&snapshot))?;
    } else {
        print(nodes(&snapshot.nodes));
        print(format_args!("\n{summary}"));
        for line in budgets(&snapshot.nodes) {
            print(line);
        }
        if all {
            let pods: Vec<PodStatus> = pods().cloned().collect();
            print(format_args!("\n{}", table(&pods)));
        }
    }
    let mut agents = snapshot.nodes.iter().filter_map(|n| n.agent.as_ref());
    let all_respond = statuses().next().is_some() && agents.all(Result::is_ok);
    Ok(exit_code(all_respond && summary.all_verified()))
}

fn nodes(nodes: &[NodeSnapshot]) -> String {
    let unready = |is_ready: bool| if is_ready { "" } else { ", not ready" };
    let agent = |node: &NodeSnapshot| match &node.agent {
        None => "none".to_owned(),
        Some(Err(_)) => "no response".to_owned(),
        Some(Ok(status)) => format!("{}{}", status.version, unready(status.unready.is_none())),
    };
    let proxy = |proxy: &Value| {
        let version = proxy["version"].as_str().unwrap_or("?");
        format!("{version}{}", unready(proxy["ready"] == true))
    };
    let istiod = |proxy: &Value| match &proxy["controlPlane"] {
        Value::Null => "none".to_owned(),
        plane if plane["connected"] == true && plane["synced"] == true => "connected".to_owned(),
        plane => format!("disconnected, state {} s old", plane["stateAgeS"]),
    };
    let is_enrolled = |p: &&PodStatus| p.state == PodState::Enrolled;
    Table::of(nodes)
        .column("NODE", |n| n.name.clone())
        .column("AGENT", |n| agent(n))
        .column("PROXY", |n| per_proxy(n, proxy))
        .column("ISTIOD", |n| per_proxy(n, istiod))
        .column("CAPTURE", |n| capture(n).to_owned())
        .column("ENROLLED", |n| count(n, is_enrolled))
        .column("VERIFIED", |n| {
            count(n, |p| is_enrolled(p) && is_verified(p))
        })
        .column("SKIPPED", |n| count(n, |p| p.state == PodState::Skipped))
        .text()
}

fn capture(node: &NodeSnapshot) -> &str {
    node.status().map_or("-", |s| s.capture.kind.as_str())
}

/// Renders the number of pods of a node that match, if its agent responds.
fn count(node: &NodeSnapshot, matches: impl Fn(&&PodStatus) -> bool) -> String {
    let count = node.status().map(|s| s.pods.iter().filter(matches).count());
    count.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

/// Renders a cell with one entry per proxy of a node.
fn per_proxy(node: &NodeSnapshot, render: impl Fn(&Value) -> String) -> String {
    if node.proxies.is_empty() {
        return "none".to_owned();
    }
    let each = node.proxies.iter().map(|proxy| match proxy {
        Ok(status) => render(status),
        Err(_) => "no response".to_owned(),
    });
    each.collect::<Vec<_>>().join("; ")
}

/// Renders the budgets that pods of each node have exhausted.
fn budgets(nodes: &[NodeSnapshot]) -> impl Iterator<Item = String> {
    nodes.iter().flat_map(|node| {
        let statuses = node.proxies.iter().flatten();
        let lines = statuses.flat_map(exhausted_budgets);
        lines.map(move |line| format!("{}: {line}", node.name))
    })
}

fn json_of(snapshot: &ClusterSnapshot) -> Value {
    let node = |node: &NodeSnapshot| {
        let proxy = |p: &Result<Value, String>| match p {
            Ok(status) => status.clone(),
            Err(reason) => json!({ "error": reason }),
        };
        let agent = match &node.agent {
            None => Value::Null,
            Some(Ok(status)) => json!(status),
            Some(Err(reason)) => json!({ "error": reason }),
        };
        json!({
            "node": node.name,
            "agent": agent,
            "proxies": node.proxies.iter().map(proxy).collect::<Vec<_>>(),
        })
    };
    json!({
        "kubernetes": snapshot.version,
        "nodes": snapshot.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_a_line() {
        let proxy = json!({
            "version": "1",
            "ready": true,
            "controlPlane": { "connected": true, "synced": true },
            "pods": [{
                "namespace": "ns",
                "name": "greedy",
                "exhaustedBudgets": [{ "line": "10 open connections, limit 10" }],
            }],
        });
        let disconnected = json!({
            "version": "2",
            "ready": false,
            "controlPlane": { "connected": false, "stateAgeS": 7 },
        });
        let node_snapshots = [
            NodeSnapshot {
                name: "b".to_owned(),
                agent: None,
                clock_ahead_ms: None,
                proxies: Vec::new(),
            },
            NodeSnapshot {
                name: "a".to_owned(),
                agent: Some(Err("refused".to_owned())),
                clock_ahead_ms: None,
                proxies: vec![Ok(proxy), Ok(disconnected)],
            },
        ];
        let text = nodes(&node_snapshots);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1].join(" "),
            "a no response 1; 2, not ready connected; disconnected, state 7 s old - - - -"
        );
        assert_eq!(lines[2].join(" "), "b none none none - - - -");
        assert!(
            budgets(&node_snapshots).eq(["a: budget of ns/greedy: 10 open connections, limit 10"])
        );
    }
}
