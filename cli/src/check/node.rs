//! Checks of nodes: of this node, or of all nodes of a cluster.

use agent_status::{NodeStatus, PodState, UnreadyReason};
use error_code::check as checks;
use error_code::control::NO_CRL;
use serde_json::Value;

use super::report::{CheckOutcome, CheckReport};
use crate::cluster::NodeSnapshot;
use crate::node::{Summary, bypasses, exhausted_budgets, is_verified, verdict};

/// Clock differences that cause a warning or a failure, in milliseconds. istiod's certificates are
/// valid from two minutes before they are issued.
const CLOCK_WARNING_MS: i64 = 10_000;
const CLOCK_FAILURE_MS: i64 = 120_000;

/// Checks agents and proxies; `expected` is the version that they should have.
pub(super) fn check_nodes(report: &mut CheckReport, nodes: &[NodeSnapshot], expected: &str) {
    versions(report, nodes, expected);
    agents(report, nodes);
    clocks(report, nodes);
    proxies(report, nodes);
    certificates(report, nodes);
    capabilities(report, nodes);
    verified(report, nodes);
    budgets(report, nodes);
}

fn responding_agents(nodes: &[NodeSnapshot]) -> impl Iterator<Item = (&NodeSnapshot, &NodeStatus)> {
    nodes.iter().filter_map(|n| Some((n, n.status()?)))
}

fn responding_proxies(nodes: &[NodeSnapshot]) -> impl Iterator<Item = (&NodeSnapshot, &Value)> {
    let all = nodes
        .iter()
        .flat_map(|n| n.proxies.iter().map(move |p| (n, p)));
    all.filter_map(|(n, p)| Some((n, p.as_ref().ok()?)))
}

fn versions(report: &mut CheckReport, nodes: &[NodeSnapshot], expected: &str) {
    let mismatch = |node: &NodeSnapshot, what: &str, version: &str| {
        let finding = || format!("{}: {what} is {version}, CLI is {expected}", node.name);
        (version != expected).then(finding)
    };
    let agents = responding_agents(nodes).filter_map(|(n, s)| mismatch(n, "agent", &s.version));
    let proxies = responding_proxies(nodes)
        .filter_map(|(n, p)| mismatch(n, "proxy", p["version"].as_str().unwrap_or("?")));
    report.warn_on(checks::SAME_VERSION, agents.chain(proxies), expected);
}

fn agents(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let count = responding_agents(nodes).count();
    let problems = |check: &dyn Fn(&NodeStatus) -> Option<String>| -> Vec<String> {
        let problem = |(n, s): (&NodeSnapshot, _)| Some(format!("{}: {}", n.name, check(s)?));
        responding_agents(nodes).filter_map(problem).collect()
    };
    let silent = nodes.iter().filter_map(|n| match &n.agent {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(format!("{}: {reason}", n.name)),
        None => Some(format!("{}: no agent", n.name)),
    });
    // Virtual nodes and nodes of other operating systems have no agent.
    let has_failed = nodes.iter().any(|n| matches!(n.agent, Some(Err(_))));
    let bad = CheckOutcome::failed_if(has_failed);
    let note = format!("{count} of {}", nodes.len());
    report.add_findings(checks::AGENT_ANSWERS, silent, bad, note);
    let nodes_of = |count: usize| match count {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    let unchained = problems(&|s| s.plugin_missing.clone());
    report.fail_on(checks::PLUGIN_CHAINED, unchained, nodes_of(count));
    let missed = |s: &NodeStatus| {
        let missed = s.plugin_not_called.as_ref()?;
        let (pods, last) = (missed.pods, &missed.last);
        Some(format!(
            "not called for {pods} pods since its last ADD, the last one {last}"
        ))
    };
    report.fail_on(checks::PLUGIN_CALLED, problems(&missed), nodes_of(count));
    let unserved = |s: &NodeStatus| match &s.proxies[..] {
        [] => Some("no proxy is connected to the agent".to_owned()),
        all if !all.iter().any(|p| p.synced) => Some("no proxy is synced yet".to_owned()),
        _ if s.unready_code == Some(UnreadyReason::PluginNotCalled) => None,
        _ => s.unready.clone().filter(|_| s.plugin_missing.is_none()),
    };
    report.fail_on(checks::PROXY_SERVES, problems(&unserved), nodes_of(count));
    let translated = |s: &NodeStatus| {
        (s.capture.kind != "routed").then(|| format!("{}: {}", s.capture.kind, s.capture.why))
    };
    report.warn_on(checks::CAPTURE, problems(&translated), nodes_of(count));
    let blocked = |s: &NodeStatus| {
        let reason = s.host_probes.reason.as_deref().unwrap_or("no reason given");
        (s.host_probes.state == "failed").then(|| reason.to_owned())
    };
    let off = responding_agents(nodes).filter(|(_, s)| s.host_probes.state == "off");
    let note = match off.count() {
        0 => nodes_of(count),
        off => format!("disabled on {}", nodes_of(off)),
    };
    report.fail_on(checks::HOST_PROBES, problems(&blocked), note);
}

fn clocks(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let known = nodes
        .iter()
        .filter_map(|n| Some((&n.name, n.clock_ahead_ms?)));
    let known: Vec<(&String, i64)> = known.collect();
    let Some(largest) = known.iter().map(|(_, ahead)| ahead.abs()).max() else {
        return;
    };
    let wrong = known
        .iter()
        .filter(|(_, ahead)| ahead.abs() > CLOCK_WARNING_MS);
    let lines = wrong.map(|(name, ahead)| {
        let direction = if *ahead > 0 { "ahead of" } else { "behind" };
        format!("{name}: {} s {direction} this machine", ahead.abs() / 1000)
    });
    let bad = CheckOutcome::failed_if(largest > CLOCK_FAILURE_MS);
    report.add_findings(checks::CLOCK, lines, bad, "");
}

fn proxies(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let silent = nodes.iter().flat_map(|n| {
        let reasons = n.proxies.iter().filter_map(|p| p.as_ref().err());
        reasons.map(move |reason| format!("{}: {reason}", n.name))
    });
    let count = responding_proxies(nodes).count();
    report.fail_on(checks::PROXY_ANSWERS, silent, format!("{count} of {count}"));

    let mut disconnected = Vec::new();
    let mut rejected = Vec::new();
    let mut line = String::from("no proxy responded");
    for (NodeSnapshot { name, .. }, proxy) in responding_proxies(nodes) {
        let plane = &proxy["controlPlane"];
        match plane["line"].as_str() {
            None => line = "mesh from a file".to_owned(),
            Some(_) if plane["connected"] == true && plane["synced"] == true => {
                let address = plane["address"].as_str().unwrap_or("?");
                line = format!("{count} of {count}, {address}");
            }
            Some(problem) => disconnected.push(format!("{name}: {problem}")),
        }
        for (resource, reason) in plane["rejected"].as_object().into_iter().flatten() {
            let reason = reason.as_str().unwrap_or("?");
            rejected.push(format!("{name}: {resource}: {reason}"));
        }
        for (resource, notice) in plane["notices"].as_object().into_iter().flatten() {
            let notice = notice.as_str().unwrap_or("?");
            rejected.push(format!("{name}: {resource}: {notice}"));
        }
        for (field, resource) in plane["ignoredFields"].as_object().into_iter().flatten() {
            let resource = resource.as_str().unwrap_or("?");
            rejected.push(format!("{name}: ignores unknown {field}, as in {resource}"));
        }
    }
    report.fail_on(checks::ISTIOD_CONNECTED, disconnected, line);
    report.warn_on(checks::STATE_ACCEPTED, rejected, "");
}

fn certificates(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let (mut count, mut findings, mut has_invalid) = (0, Vec::new(), false);
    for (NodeSnapshot { name, .. }, proxy) in responding_proxies(nodes) {
        for certificate in proxy["certificates"].as_array().into_iter().flatten() {
            count += 1;
            let text = |key: &str| certificate[key].as_str();
            let (state, trouble) = (text("state").unwrap_or("?"), text("trouble"));
            has_invalid |= state != "Available";
            if state != "Available" || trouble.is_some() {
                let trouble = trouble.map(|t| format!(": {t}")).unwrap_or_default();
                let identity = text("identity").unwrap_or("?");
                findings.push(format!("{name}: {identity} is {state}{trouble}"));
            }
        }
        let ignored = proxy["trust"]["ignored"].as_array().into_iter().flatten();
        let ignored = ignored.filter_map(Value::as_str);
        findings.extend(ignored.map(|why| format!("{name}: ignores a root certificate: {why}")));
        let revocation = proxy["revocationTrouble"].as_str();
        has_invalid |= revocation.is_some_and(|why| why.contains(NO_CRL.code));
        findings.extend(revocation.map(|why| format!("{name}: {why}")));
    }
    let note = format!("{count} certificates");
    let bad = CheckOutcome::failed_if(has_invalid);
    report.add_findings(checks::CERTIFICATES_VALID, findings, bad, note);
}

/// Names pods whose specification adds capabilities; those with a default are only counted.
fn capabilities(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let pods = || responding_agents(nodes).flat_map(|(_, s)| s.pods.iter());
    let enrolled = || pods().filter(|p| p.state == PodState::Enrolled);
    let lines = enrolled().filter_map(|pod| {
        let added = pod.capabilities.iter().filter(|c| !c.added.is_empty());
        let added: Vec<String> = added
            .map(|c| format!("{}: {}", c.container, c.added.join(", ")))
            .collect();
        let name = format!("{}/{}", pod.namespace, pod.name);
        (!added.is_empty()).then(|| format!("{name}: {}", added.join("; ")))
    });
    let by_default = enrolled().filter(|p| p.capabilities.iter().any(|c| c.default_net_raw));
    let note = match by_default.count() {
        0 => String::new(),
        count => format!("{count} with NET_RAW by default"),
    };
    report.warn_on(checks::POD_CAPABILITIES, lines, note);
}

fn verified(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let pods = || responding_agents(nodes).flat_map(|(n, s)| s.pods.iter().map(move |p| (n, p)));
    let summary: Summary = pods().map(|(_, pod)| pod).collect();
    let wrong = pods().filter(|(_, p)| p.state == PodState::Enrolled && !is_verified(p));
    let lines = wrong.map(|(n, p)| format!("{}: {}", n.name, verdict(p)));
    report.fail_on(checks::PODS_VERIFIED, lines, summary.counts());
    let bypassing = pods().filter_map(|(n, p)| Some(format!("{}: {}", n.name, bypasses(p)?)));
    report.warn_on(checks::NOTHING_EXCLUDED, bypassing, "");
}

/// Names pods that have exhausted a budget of their proxy, or had until a few minutes ago.
fn budgets(report: &mut CheckReport, nodes: &[NodeSnapshot]) {
    let lines = responding_proxies(nodes).flat_map(|(node, proxy)| {
        let exhausted = exhausted_budgets(proxy);
        exhausted.map(move |line| format!("{}: {line}", node.name))
    });
    report.warn_on(checks::WITHIN_BUDGETS, lines, "");
}

#[cfg(test)]
mod tests {
    use agent_status::{CaptureStatus, HostProbesStatus, PluginNotCalled, ProxyStatus};
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> NodeSnapshot {
        let status = NodeStatus {
            node: name.to_owned(),
            version: "1".to_owned(),
            time_ms: Some(1),
            unready: None,
            unready_code: None,
            plugin_missing: None,
            plugin_not_called: None,
            capture: CaptureStatus {
                kind: "routed".to_owned(),
                why: String::new(),
            },
            proxies: vec![ProxyStatus {
                pid: 1,
                synced: true,
            }],
            host_probes: HostProbesStatus {
                state: "in place".to_owned(),
                addresses: 0,
                reason: None,
            },
            pods: Vec::new(),
        };
        let proxy = json!({
            "version": "1",
            "controlPlane": {
                "line": "connected",
                "connected": true,
                "synced": true,
                "address": "https://istiod",
                "rejected": {},
            },
            "certificates": [{ "identity": "spiffe://a/ns/b/sa/c", "state": "Available" }],
        });
        NodeSnapshot {
            name: name.to_owned(),
            agent: Some(Ok(status)),
            clock_ahead_ms: Some(0),
            proxies: vec![Ok(proxy)],
        }
    }

    fn check(nodes: &[NodeSnapshot]) -> CheckReport {
        let mut report = CheckReport::default();
        check_nodes(&mut report, nodes, "1");
        report
    }

    #[test]
    fn healthy_nodes_pass_all_checks() {
        let report = check(&[node("a"), node("b")]);
        assert!(report.is_good(), "{report}");
        assert_eq!(
            report.of(checks::AGENT_ANSWERS),
            Some(&CheckOutcome::Good("2 of 2".to_owned()))
        );
        assert_eq!(
            report.of(checks::ISTIOD_CONNECTED),
            Some(&CheckOutcome::Good("2 of 2, https://istiod".to_owned()))
        );
        assert!(!report.to_string().contains('‼'), "{report}");
    }

    #[test]
    fn problems_are_reported_by_node() {
        let found = |change: &dyn Fn(&mut NodeSnapshot), id: checks::Check| {
            let mut wrong = node("b");
            change(&mut wrong);
            match check(&[node("a"), wrong]).of(id) {
                Some(CheckOutcome::Failed(lines)) => ("failed", lines.join("\n")),
                Some(CheckOutcome::Warning(lines)) => ("warning", lines.join("\n")),
                other => panic!("{id}: {other:?}"),
            }
        };
        let agent = |n: &mut NodeSnapshot, change: &dyn Fn(&mut NodeStatus)| {
            if let Some(Ok(status)) = &mut n.agent {
                change(status);
            }
        };
        let proxy = |n: &mut NodeSnapshot, pointer: &str, value: Value| {
            if let Ok(status) = &mut n.proxies[0] {
                *status.pointer_mut(pointer).unwrap() = value;
            }
        };
        let silent = |n: &mut NodeSnapshot| n.agent = Some(Err("refused".to_owned()));
        assert_eq!(
            found(&silent, checks::AGENT_ANSWERS),
            ("failed", "b: refused".to_owned())
        );
        let none = |n: &mut NodeSnapshot| n.agent = None;
        assert_eq!(
            found(&none, checks::AGENT_ANSWERS),
            ("warning", "b: no agent".to_owned())
        );
        let unchained =
            |n: &mut NodeSnapshot| agent(n, &|s| s.plugin_missing = Some("no conflist".to_owned()));
        assert_eq!(
            found(&unchained, checks::PLUGIN_CHAINED),
            ("failed", "b: no conflist".to_owned())
        );
        let missed = |n: &mut NodeSnapshot, pods, unready_code| {
            agent(n, &|s| {
                s.plugin_not_called = Some(PluginNotCalled {
                    pods,
                    last: "shop/web".to_owned(),
                });
                s.unready_code = unready_code;
                s.unready = unready_code.map(|_| "UP-AGENT-026".to_owned());
            })
        };
        let finding = |n: u32| {
            format!("b: not called for {n} pods since its last ADD, the last one shop/web")
        };
        assert_eq!(
            found(&|n| missed(n, 1, None), checks::PLUGIN_CALLED),
            ("failed", finding(1))
        );
        let unready = |n: &mut NodeSnapshot| missed(n, 2, Some(UnreadyReason::PluginNotCalled));
        assert_eq!(
            found(&unready, checks::PLUGIN_CALLED),
            ("failed", finding(2))
        );
        let mut wrong = node("b");
        unready(&mut wrong);
        let served = check(&[wrong]);
        assert!(
            matches!(served.of(checks::PROXY_SERVES), Some(CheckOutcome::Good(_))),
            "{served}"
        );
        let alone = |n: &mut NodeSnapshot| agent(n, &|s| s.proxies.clear());
        assert_eq!(found(&alone, checks::PROXY_SERVES).0, "failed");
        let unsynced =
            |n: &mut NodeSnapshot| agent(n, &|s| s.unready = Some("pods not synced".to_owned()));
        assert_eq!(
            found(&unsynced, checks::PROXY_SERVES),
            ("failed", "b: pods not synced".to_owned())
        );
        let nat = |n: &mut NodeSnapshot| agent(n, &|s| s.capture.kind = "nat".to_owned());
        assert_eq!(found(&nat, checks::CAPTURE).0, "warning");
        let probes =
            |n: &mut NodeSnapshot| agent(n, &|s| s.host_probes.state = "failed".to_owned());
        assert_eq!(found(&probes, checks::HOST_PROBES).0, "failed");
        let old = |n: &mut NodeSnapshot| agent(n, &|s| s.version = "0".to_owned());
        assert_eq!(
            found(&old, checks::SAME_VERSION),
            ("warning", "b: agent is 0, CLI is 1".to_owned())
        );
        let late = |n: &mut NodeSnapshot| n.clock_ahead_ms = Some(-11_000);
        assert_eq!(
            found(&late, checks::CLOCK),
            ("warning", "b: 11 s behind this machine".to_owned())
        );
        let very_late = |n: &mut NodeSnapshot| n.clock_ahead_ms = Some(200_000);
        assert_eq!(
            found(&very_late, checks::CLOCK),
            ("failed", "b: 200 s ahead of this machine".to_owned())
        );
        let quiet = |n: &mut NodeSnapshot| n.proxies[0] = Err("no route".to_owned());
        assert_eq!(
            found(&quiet, checks::PROXY_ANSWERS),
            ("failed", "b: no route".to_owned())
        );
        let disconnected = |n: &mut NodeSnapshot| proxy(n, "/controlPlane/connected", json!(false));
        assert_eq!(
            found(&disconnected, checks::ISTIOD_CONNECTED),
            ("failed", "b: connected".to_owned())
        );
        let nacked = |n: &mut NodeSnapshot| {
            proxy(
                n,
                "/controlPlane/rejected",
                json!({ "ns/policy": "no action" }),
            )
        };
        assert_eq!(
            found(&nacked, checks::STATE_ACCEPTED),
            ("warning", "b: ns/policy: no action".to_owned())
        );
        let waiting =
            |n: &mut NodeSnapshot| proxy(n, "/certificates/0/state", json!("Initializing"));
        assert_eq!(
            found(&waiting, checks::CERTIFICATES_VALID),
            (
                "failed",
                "b: spiffe://a/ns/b/sa/c is Initializing".to_owned()
            )
        );
        let renewing = |n: &mut NodeSnapshot| {
            proxy(
                n,
                "/certificates/0",
                json!({ "state": "Available", "identity": "x", "trouble": "refused" }),
            )
        };
        assert_eq!(
            found(&renewing, checks::CERTIFICATES_VALID),
            ("warning", "b: x is Available: refused".to_owned())
        );
        let revocation = |trouble: &str| {
            let set = |n: &mut NodeSnapshot| {
                if let Ok(status) = &mut n.proxies[0] {
                    status["revocationTrouble"] = json!(trouble);
                }
            };
            found(&set, checks::CERTIFICATES_VALID)
        };
        let stale = "UP-CONTROL-010: crl.pem: invalid; the previous lists stay in effect";
        assert_eq!(revocation(stale), ("warning", format!("b: {stale}")));
        let none = "UP-CONTROL-014: crl.pem: invalid; no version of it is in effect";
        assert_eq!(revocation(none), ("failed", format!("b: {none}")));
        let ignored = |n: &mut NodeSnapshot| {
            if let Ok(status) = &mut n.proxies[0] {
                status["trust"] = json!({ "roots": [], "ignored": ["CN=old: BadDer"] });
            }
        };
        assert_eq!(
            found(&ignored, checks::CERTIFICATES_VALID),
            (
                "warning",
                "b: ignores a root certificate: CN=old: BadDer".to_owned()
            )
        );
        let greedy = |n: &mut NodeSnapshot| {
            if let Ok(status) = &mut n.proxies[0] {
                let exhausted = [json!({ "line": "10 open connections, limit 10" })];
                let pod = json!({ "namespace": "n", "name": "p", "exhaustedBudgets": exhausted });
                status["pods"] = json!([pod]);
            }
        };
        let line = "b: budget of n/p: 10 open connections, limit 10";
        assert_eq!(
            found(&greedy, checks::WITHIN_BUDGETS),
            ("warning", line.to_owned())
        );
        let old_proxy = |n: &mut NodeSnapshot| proxy(n, "/version", json!("0"));
        assert_eq!(
            found(&old_proxy, checks::SAME_VERSION),
            ("warning", "b: proxy is 0, CLI is 1".to_owned())
        );
        let unsynced = |n: &mut NodeSnapshot| agent(n, &|s| s.proxies[0].synced = false);
        assert_eq!(
            found(&unsynced, checks::PROXY_SERVES),
            ("failed", "b: no proxy is synced yet".to_owned())
        );
        let unverified = |n: &mut NodeSnapshot| {
            agent(n, &|s| {
                s.pods.push(agent_status::PodStatus {
                    namespace: "n".to_owned(),
                    name: "p".to_owned(),
                    uid: None,
                    state: PodState::Enrolled,
                    reason: String::new(),
                    reason_code: None,
                    ips: Vec::new(),
                    exempted_connections: 0,
                    capabilities: Vec::new(),
                    started_outside: None,
                    exclusions: None,
                    verification: None,
                })
            })
        };
        assert_eq!(
            found(&unverified, checks::PODS_VERIFIED),
            ("failed", "b: n/p: unverified: not checked yet".to_owned())
        );
    }

    #[test]
    fn pods_with_added_capabilities_are_named() {
        let node_with = |pods: &[agent_status::PodStatus]| {
            let mut with = node("a");
            if let Some(Ok(status)) = &mut with.agent {
                status.pods = pods.to_vec();
            }
            with
        };
        let capabilities = |added: &[&str], default_net_raw| agent_status::ContainerCapabilities {
            container: "main".to_owned(),
            added: added.iter().map(|a| (*a).to_owned()).collect(),
            default_net_raw,
        };
        let pod = |name: &str, capabilities| agent_status::PodStatus {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: None,
            state: PodState::Enrolled,
            reason: String::new(),
            reason_code: None,
            ips: Vec::new(),
            exempted_connections: 0,
            capabilities: vec![capabilities],
            started_outside: None,
            exclusions: None,
            verification: None,
        };
        let pods = [
            pod("plain", capabilities(&[], true)),
            pod("admin", capabilities(&["NET_ADMIN"], true)),
        ];
        let expected = CheckOutcome::Warning(vec!["n/admin: main: NET_ADMIN".to_owned()]);
        let report = check(&[node_with(&pods)]);
        assert_eq!(report.of(checks::POD_CAPABILITIES), Some(&expected));
        let text = crate::node::capabilities(&pods).unwrap();
        assert!(
            text.contains("1 pods with added") && text.contains("1 more"),
            "{text}"
        );
        let report = check(&[node_with(&pods[..1])]);
        let expected = CheckOutcome::Good("1 with NET_RAW by default".to_owned());
        assert_eq!(report.of(checks::POD_CAPABILITIES), Some(&expected));
    }

    #[test]
    fn optional_features_that_are_off_pass() {
        let mut off = node("a");
        if let Some(Ok(status)) = &mut off.agent {
            status.host_probes.state = "off".to_owned();
        }
        off.clock_ahead_ms = None;
        off.proxies[0].as_mut().unwrap()["controlPlane"] = Value::Null;
        let report = check(&[off]);
        let good = |text: &str| Some(CheckOutcome::Good(text.to_owned()));
        assert_eq!(
            report.of(checks::HOST_PROBES),
            good("disabled on 1 node").as_ref()
        );
        assert_eq!(
            report.of(checks::ISTIOD_CONNECTED),
            good("mesh from a file").as_ref()
        );
        assert_eq!(report.of(checks::CLOCK), None);
    }
}
