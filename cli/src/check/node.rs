//! What is looked at on every node, of one or of many.

use agent_status::{NodeStatus, PodState};
use error_code::check as checks;
use serde_json::Value;

use super::report::{Outcome, Report};
use crate::cluster::NodeSeen;
use crate::node::{Summary, is_verified, verdict};

/// A clock that is so many milliseconds wrong is worth a word; istiod's certificates begin two minutes before they are made.
const CLOCK_WARNING_MS: i64 = 10_000;
const CLOCK_FAILURE_MS: i64 = 120_000;

/// Looks at agents and proxies; `same` is the version that they should have.
pub(super) fn judge(report: &mut Report, nodes: &[NodeSeen], same: &str) {
    versions(report, nodes, same);
    agents(report, nodes);
    clocks(report, nodes);
    proxies(report, nodes);
    verified(report, nodes);
}

fn answers(nodes: &[NodeSeen]) -> impl Iterator<Item = (&NodeSeen, &NodeStatus)> {
    nodes.iter().filter_map(|n| Some((n, n.agent.as_ref()?.as_ref().ok()?)))
}

fn served(nodes: &[NodeSeen]) -> impl Iterator<Item = (&NodeSeen, &Value)> {
    nodes.iter().flat_map(|n| n.proxies.iter().filter_map(move |p| Some((n, p.as_ref().ok()?))))
}

fn versions(report: &mut Report, nodes: &[NodeSeen], same: &str) {
    let other = |node: &NodeSeen, what: &str, version: &str| {
        (version != same).then(|| format!("{}: the {what} is {version}, this command {same}", node.name))
    };
    let agents = answers(nodes).filter_map(|(n, s)| other(n, "agent", &s.version));
    let proxies = served(nodes).filter_map(|(n, p)| other(n, "proxy", p["version"].as_str().unwrap_or("?")));
    report.add(checks::SAME_VERSION, Outcome::warn_unless(agents.chain(proxies).collect(), same));
}

fn agents(report: &mut Report, nodes: &[NodeSeen]) {
    let count = answers(nodes).count();
    let of = |found: &dyn Fn(&NodeStatus) -> Option<String>| -> Vec<String> {
        answers(nodes).filter_map(|(n, s)| Some(format!("{}: {}", n.name, found(s)?))).collect()
    };
    let silent = nodes.iter().filter_map(|n| match &n.agent {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(format!("{}: {why}", n.name)),
        None => Some(format!("{}: there is none", n.name)),
    });
    let many = format!("{count} of {}", nodes.len());
    // Not every node needs one: virtual nodes, and those of other systems.
    let fails = nodes.iter().any(|n| matches!(n.agent, Some(Err(_))));
    let silent: Vec<String> = silent.collect();
    let outcome = if fails { Outcome::Failed(silent) } else { Outcome::warn_unless(silent, many) };
    report.add(checks::AGENT_ANSWERS, outcome);
    let nodes_of = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    report.add(checks::PLUGIN_CHAINED, Outcome::unless(of(&|s| s.plugin_missing.clone()), nodes_of(count)));
    let unserved = |s: &NodeStatus| match &s.proxies[..] {
        [] => Some("no proxy is connected to the agent".to_owned()),
        all if !all.iter().any(|p| p.synced) => Some("no proxy has taken every pod yet".to_owned()),
        _ => s.unready.clone().filter(|_| s.plugin_missing.is_none()),
    };
    report.add(checks::PROXY_SERVES, Outcome::unless(of(&unserved), nodes_of(count)));
    let translated =
        |s: &NodeStatus| (s.capture.kind != "routed").then(|| format!("{}: {}", s.capture.kind, s.capture.why));
    report.add(checks::CAPTURE, Outcome::warn_unless(of(&translated), nodes_of(count)));
    let blocked = |s: &NodeStatus| {
        let reason = s.host_probes.reason.as_deref().unwrap_or("no reason is told");
        (s.host_probes.state == "failed").then(|| reason.to_owned())
    };
    let off = answers(nodes).filter(|(_, s)| s.host_probes.state == "off").count();
    let note = if off == 0 { nodes_of(count) } else { format!("switched off on {}", nodes_of(off)) };
    report.add(checks::HOST_PROBES, Outcome::unless(of(&blocked), note));
}

fn clocks(report: &mut Report, nodes: &[NodeSeen]) {
    let wrong: Vec<(&str, i64)> = nodes
        .iter()
        .filter_map(|n| Some((n.name.as_str(), n.clock_ahead_ms?)))
        .filter(|(_, ahead)| ahead.abs() > CLOCK_WARNING_MS)
        .collect();
    let told = |(name, ahead): &(&str, i64)| {
        format!("{name}: {} s {} of this one", ahead.abs() / 1000, if *ahead > 0 { "ahead" } else { "behind" })
    };
    let lines: Vec<String> = wrong.iter().map(told).collect();
    if !nodes.iter().any(|n| n.clock_ahead_ms.is_some()) {
        return;
    }
    report.add(
        checks::CLOCK,
        if wrong.iter().any(|(_, ahead)| ahead.abs() > CLOCK_FAILURE_MS) {
            Outcome::Failed(lines)
        } else {
            Outcome::warn_unless(lines, "")
        },
    );
}

fn proxies(report: &mut Report, nodes: &[NodeSeen]) {
    let silent: Vec<String> = nodes
        .iter()
        .flat_map(|n| n.proxies.iter().filter_map(|p| Some(format!("{}: {}", n.name, p.as_ref().err()?))))
        .collect();
    let count = served(nodes).count();
    report.add(checks::PROXY_ANSWERS, Outcome::unless(silent, format!("{count} of {count}")));

    let mut apart = Vec::new();
    let mut rejected = Vec::new();
    let mut invalid = Vec::new();
    let mut certificates = 0;
    let mut line = String::from("no proxy has been asked");
    for (node, proxy) in served(nodes) {
        let plane = &proxy["controlPlane"];
        match plane["line"].as_str() {
            None => line = "mesh from a file".to_owned(),
            Some(_) if plane["connected"] == true && plane["synced"] == true => {
                line = format!("{count} of {count}, {}", plane["address"].as_str().unwrap_or("?"));
            }
            Some(said) => apart.push(format!("{}: {said}", node.name)),
        }
        let of = plane["rejected"].as_object().into_iter().flatten();
        rejected.extend(of.map(|(name, why)| format!("{}: {name}: {}", node.name, why.as_str().unwrap_or("?"))));
        for certificate in proxy["certificates"].as_array().into_iter().flatten() {
            certificates += 1;
            let state = certificate["state"].as_str().unwrap_or("?");
            if state != "Available" || certificate["trouble"].is_string() {
                let trouble = certificate["trouble"].as_str().map(|t| format!(": {t}")).unwrap_or_default();
                let identity = certificate["identity"].as_str().unwrap_or("?");
                invalid.push((state == "Available", format!("{}: {identity} is {state}{trouble}", node.name)));
            }
        }
        invalid.extend(proxy["revocationTrouble"].as_str().map(|why| (true, format!("{}: {why}", node.name))));
    }
    report.add(checks::ISTIOD_CONNECTED, Outcome::unless(apart, line));
    report.add(checks::STATE_ACCEPTED, Outcome::warn_unless(rejected, ""));
    let still_valid = invalid.iter().all(|(valid, _)| *valid);
    let lines: Vec<String> = invalid.into_iter().map(|(_, line)| line).collect();
    let note = format!("{certificates} certificates");
    let outcome = if still_valid { Outcome::warn_unless(lines, note) } else { Outcome::Failed(lines) };
    report.add(checks::CERTIFICATES_VALID, outcome);
}

fn verified(report: &mut Report, nodes: &[NodeSeen]) {
    let summary: Summary = answers(nodes).flat_map(|(_, s)| &s.pods).collect();
    let is_not = |pod: &&agent_status::PodStatus| pod.state == PodState::Enrolled && !is_verified(pod);
    let lines =
        answers(nodes).flat_map(|(n, s)| s.pods.iter().filter(is_not).map(|p| format!("{}: {}", n.name, verdict(p))));
    report.add(checks::PODS_VERIFIED, Outcome::unless(lines.collect(), summary.counts()));
}

#[cfg(test)]
mod tests {
    use agent_status::{CaptureStatus, HostProbesStatus, ProxyStatus};
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> NodeSeen {
        let status = NodeStatus {
            node: name.to_owned(),
            version: "1".to_owned(),
            time_ms: Some(1),
            unready: None,
            plugin_missing: None,
            capture: CaptureStatus { kind: "routed".to_owned(), why: String::new() },
            proxies: vec![ProxyStatus { pid: 1, synced: true }],
            host_probes: HostProbesStatus { state: "in place".to_owned(), addresses: 0, reason: None },
            pods: Vec::new(),
        };
        let proxy = json!({
            "version": "1",
            "controlPlane": { "line": "connected", "connected": true, "synced": true, "address": "https://istiod", "rejected": {} },
            "certificates": [{ "identity": "spiffe://a/ns/b/sa/c", "state": "Available" }],
        });
        NodeSeen { name: name.to_owned(), agent: Some(Ok(status)), clock_ahead_ms: Some(0), proxies: vec![Ok(proxy)] }
    }

    fn judged(nodes: &[NodeSeen]) -> Report {
        let mut report = Report::default();
        judge(&mut report, nodes, "1");
        report
    }

    #[test]
    fn a_node_in_order_has_nothing_to_tell() {
        let report = judged(&[node("a"), node("b")]);
        assert!(report.is_good(), "{report}");
        assert_eq!(report.of(checks::AGENT_ANSWERS), Some(&Outcome::Good("2 of 2".to_owned())));
        assert_eq!(report.of(checks::ISTIOD_CONNECTED), Some(&Outcome::Good("2 of 2, https://istiod".to_owned())));
        assert!(!report.to_string().contains('‼'), "{report}");
    }

    #[test]
    fn what_is_wrong_is_told_by_node() {
        let found = |change: &dyn Fn(&mut NodeSeen), check: checks::Check| {
            let mut wrong = node("b");
            change(&mut wrong);
            match judged(&[node("a"), wrong]).of(check) {
                Some(Outcome::Failed(lines)) => ("failed", lines.join("\n")),
                Some(Outcome::Warning(lines)) => ("warning", lines.join("\n")),
                other => panic!("{check}: {other:?}"),
            }
        };
        let agent = |n: &mut NodeSeen, change: &dyn Fn(&mut NodeStatus)| {
            if let Some(Ok(status)) = &mut n.agent {
                change(status);
            }
        };
        let proxy = |n: &mut NodeSeen, pointer: &str, value: Value| {
            if let Ok(status) = &mut n.proxies[0] {
                *status.pointer_mut(pointer).unwrap() = value;
            }
        };
        let silent = |n: &mut NodeSeen| n.agent = Some(Err("refused".to_owned()));
        assert_eq!(found(&silent, checks::AGENT_ANSWERS), ("failed", "b: refused".to_owned()));
        let none = |n: &mut NodeSeen| n.agent = None;
        assert_eq!(found(&none, checks::AGENT_ANSWERS), ("warning", "b: there is none".to_owned()));
        let unchained = |n: &mut NodeSeen| agent(n, &|s| s.plugin_missing = Some("no conflist".to_owned()));
        assert_eq!(found(&unchained, checks::PLUGIN_CHAINED), ("failed", "b: no conflist".to_owned()));
        let alone = |n: &mut NodeSeen| agent(n, &|s| s.proxies.clear());
        assert_eq!(found(&alone, checks::PROXY_SERVES).0, "failed");
        let unsynced = |n: &mut NodeSeen| agent(n, &|s| s.unready = Some("not told all pods".to_owned()));
        assert_eq!(found(&unsynced, checks::PROXY_SERVES), ("failed", "b: not told all pods".to_owned()));
        let nat = |n: &mut NodeSeen| agent(n, &|s| s.capture.kind = "nat".to_owned());
        assert_eq!(found(&nat, checks::CAPTURE).0, "warning");
        let probes = |n: &mut NodeSeen| agent(n, &|s| s.host_probes.state = "failed".to_owned());
        assert_eq!(found(&probes, checks::HOST_PROBES).0, "failed");
        let old = |n: &mut NodeSeen| agent(n, &|s| s.version = "0".to_owned());
        assert_eq!(found(&old, checks::SAME_VERSION), ("warning", "b: the agent is 0, this command 1".to_owned()));
        let late = |n: &mut NodeSeen| n.clock_ahead_ms = Some(-11_000);
        assert_eq!(found(&late, checks::CLOCK), ("warning", "b: 11 s behind of this one".to_owned()));
        let very_late = |n: &mut NodeSeen| n.clock_ahead_ms = Some(200_000);
        assert_eq!(found(&very_late, checks::CLOCK), ("failed", "b: 200 s ahead of this one".to_owned()));
        let quiet = |n: &mut NodeSeen| n.proxies[0] = Err("no route".to_owned());
        assert_eq!(found(&quiet, checks::PROXY_ANSWERS), ("failed", "b: no route".to_owned()));
        let apart = |n: &mut NodeSeen| proxy(n, "/controlPlane/connected", json!(false));
        assert_eq!(found(&apart, checks::ISTIOD_CONNECTED), ("failed", "b: connected".to_owned()));
        let nacked = |n: &mut NodeSeen| proxy(n, "/controlPlane/rejected", json!({ "ns/policy": "no action" }));
        assert_eq!(found(&nacked, checks::STATE_ACCEPTED), ("warning", "b: ns/policy: no action".to_owned()));
        let waiting = |n: &mut NodeSeen| proxy(n, "/certificates/0/state", json!("Initializing"));
        assert_eq!(
            found(&waiting, checks::CERTIFICATES_VALID),
            ("failed", "b: spiffe://a/ns/b/sa/c is Initializing".to_owned())
        );
    }
}
