//! What is looked at of a cluster as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_status::{PodState, PodStatus};
use error_code::check as checks;
use kubernetes::Pod;
use mesh::enrol::{REDIRECTION, belongs};
use x509_parser::pem::Pem;

use super::report::{Outcome, Report};
use crate::cluster::{DaemonSet, Istiod, Running, Seen};
use crate::node::is_verified;

/// Roots that end sooner are told.
const ROOT_DAYS: i64 = 60;

/// Looks at the installation: what runs, and how far it is.
pub(super) fn installation(report: &mut Report, seen: &Seen) {
    let (agents, proxies) = (seen.agents(), seen.proxies());
    let mut missing = Vec::new();
    if agents.is_none() {
        missing.push("no DaemonSet runs underpass-agent".to_owned());
    }
    if proxies.is_none() {
        missing.push("no DaemonSet runs underpass-proxy".to_owned());
    }
    let namespace = seen.namespace().map(|n| format!("namespace {n}")).unwrap_or_default();
    report.add(checks::INSTALLED, Outcome::unless(missing, namespace));
    if let Some(agents) = agents {
        report.add(checks::AGENTS_READY, rolled_out(agents));
    }
    if let Some(proxies) = proxies {
        report.add(checks::PROXIES_READY, rolled_out(proxies));
    }
}

fn rolled_out(set: &DaemonSet) -> Outcome {
    let Running { namespace, name, wanted, ready } = &set.running;
    let line = format!("{ready} of {wanted} ready, {} of {wanted} up to date", set.updated);
    if set.is_rolled_out() { Outcome::Good(line) } else { Outcome::Failed(vec![format!("{namespace}/{name}: {line}")]) }
}

/// Looks for others that redirect pods.
pub(super) fn others(report: &mut Report, seen: &Seen) {
    let of_others = seen.daemon_sets.iter().filter(|set| {
        let name = set.running.name.as_str();
        matches!(name, "istio-cni-node" | "ztunnel") && !set.runs("underpass-proxy")
    });
    let lines = of_others.map(|set| format!("DaemonSet {}/{}", set.running.namespace, set.running.name));
    report.add(checks::NOTHING_ELSE, Outcome::unless(lines.collect(), ""));
}

/// Looks at the control plane; `namespace` is where the proxies are, or will be.
pub(super) fn istiod(report: &mut Report, seen: &Seen, namespace: &str) {
    let all = match &seen.istiods {
        Ok(all) => all,
        Err(why) => return report.add(checks::ISTIOD_RUNNING, Outcome::Unknown(why.clone())),
    };
    if all.is_empty() {
        let why = "no Deployment of this cluster has the label app=istiod; it may run elsewhere";
        return report.add(checks::ISTIOD_RUNNING, Outcome::Unknown(why.to_owned()));
    }
    let name = |i: &Istiod| format!("{}/{}", i.running.namespace, i.running.name);
    let of = |wrong: &dyn Fn(&Istiod) -> Option<String>| -> Vec<String> {
        all.iter().filter_map(|i| Some(format!("{}: {}", name(i), wrong(i)?))).collect()
    };
    let images: BTreeSet<&str> = all.iter().map(|i| i.image.as_str()).collect();
    let down = |i: &Istiod| (i.running.ready == 0).then(|| format!("0 of {} ready", i.running.wanted));
    let images = images.into_iter().collect::<Vec<_>>().join(", ");
    report.add(checks::ISTIOD_RUNNING, Outcome::unless(of(&down), images));
    let sidecars_only = |i: &Istiod| {
        let value = i.env.get("PILOT_ENABLE_AMBIENT").map_or("not set", String::as_str);
        (value != "true").then(|| format!("PILOT_ENABLE_AMBIENT is {value}"))
    };
    report.add(checks::ISTIOD_AMBIENT, Outcome::unless(of(&sidecars_only), ""));
    let account = format!("{namespace}/ztunnel");
    let strangers = |i: &Istiod| {
        let trusted = i.env.get("CA_TRUSTED_NODE_ACCOUNTS").map_or("", String::as_str);
        (!trusted.split(',').any(|t| t.trim() == account)).then(|| format!("CA_TRUSTED_NODE_ACCOUNTS is {trusted:?}"))
    };
    report.add(checks::ISTIOD_TRUSTS, Outcome::unless(of(&strangers), account.clone()));
}

/// Looks at how long the roots last.
pub(super) fn roots(report: &mut Report, seen: &Seen) {
    let pem = match &seen.roots {
        Ok(Some(pem)) => pem,
        Ok(None) => {
            let why = "there is no ConfigMap istio-ca-root-cert";
            return report.add(checks::ROOT_VALID, Outcome::Unknown(why.to_owned()));
        }
        Err(why) => return report.add(checks::ROOT_VALID, Outcome::Unknown(why.clone())),
    };
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    report.add(checks::ROOT_VALID, lasting(pem, now));
}

/// The first root to end decides.
fn lasting(pem: &str, now: i64) -> Outcome {
    let mut soonest: Option<(i64, String)> = None;
    for read in Pem::iter_from_buffer(pem.as_bytes()) {
        let Ok(block) = read else {
            return Outcome::Failed(vec!["ConfigMap istio-ca-root-cert is not PEM".to_owned()]);
        };
        let Ok(certificate) = block.parse_x509() else {
            return Outcome::Failed(vec![
                "ConfigMap istio-ca-root-cert has something that is no certificate".to_owned(),
            ]);
        };
        let end = (certificate.validity().not_after.timestamp(), certificate.subject().to_string());
        soonest = Some(soonest.map_or_else(|| end.clone(), |other| other.min(end.clone())));
    }
    let Some((end, subject)) = soonest else {
        return Outcome::Failed(vec!["ConfigMap istio-ca-root-cert is empty".to_owned()]);
    };
    let days = (end - now) / 86_400;
    if end <= now {
        Outcome::Failed(vec![format!("{subject} has expired")])
    } else if days < ROOT_DAYS {
        Outcome::Warning(vec![format!("{subject} expires in {days} days")])
    } else {
        Outcome::Good(format!("{days} days"))
    }
}

/// Looks at whether the pods that should be in the mesh are, and whether istiod is told.
pub(super) fn pods(report: &mut Report, seen: &Seen) {
    let known: BTreeMap<(&str, &str, &str), &PodStatus> = seen
        .nodes
        .iter()
        .filter_map(|n| Some((n.name.as_str(), n.agent.as_ref()?.as_ref().ok()?)))
        .flat_map(|(node, status)| status.pods.iter().map(move |p| ((node, p.namespace.as_str(), p.name.as_str()), p)))
        .collect();
    let mut outside = Vec::new();
    let mut on_purpose = Vec::new();
    let mut joined = 0;
    let mut unannounced = Vec::new();
    for pod in seen.pods.iter().filter(|p| p.status.phase == "Running") {
        let (namespace, name, node) = (pod.namespace(), pod.name(), pod.spec.node_name.as_str());
        let status = known.get(&(node, namespace, name));
        let enrolled = status.filter(|s| s.state == PodState::Enrolled);
        let announced =
            pod.metadata.annotations.as_ref().and_then(|a| a.get(REDIRECTION)).is_some_and(|v| v == "enabled");
        let is = match enrolled {
            None if announced => Some("is announced, and not in the mesh"),
            Some(status) if is_verified(status) && !announced => Some("is in the mesh, and not announced"),
            _ => None,
        };
        unannounced.extend(is.map(|is| format!("{node}: {namespace}/{name} {is}")));
        if !wanted(seen, pod) {
            continue;
        }
        match (enrolled, status) {
            (Some(_), _) => joined += 1,
            (None, Some(status)) if status.state == PodState::Skipped => {
                on_purpose.push(format!("{node}: {namespace}/{name} stays outside: {}", status.reason));
            }
            (None, _) => {
                let agent = seen.nodes.iter().find(|n| n.name == node).map(|n| &n.agent);
                let why = match agent {
                    Some(Some(Ok(_))) => "its agent does not know it",
                    Some(Some(Err(_))) => "its agent does not answer",
                    _ => "there is no agent on its node",
                };
                outside.push(format!("{node}: {namespace}/{name}: {why}"));
            }
        }
    }
    let joined = format!("{joined} pods");
    let outcome = match outside.is_empty() {
        true => Outcome::warn_unless(on_purpose, joined),
        false => Outcome::Failed(outside.into_iter().chain(on_purpose).collect()),
    };
    report.add(checks::PODS_JOINED, outcome);
    report.add(checks::PODS_ANNOUNCED, Outcome::unless(unannounced, ""));
}

/// Whether the labels say that a pod belongs to the mesh.
fn wanted(seen: &Seen, pod: &Pod) -> bool {
    let nothing = BTreeMap::new();
    let of = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_else(|| nothing.clone());
    let (labels, annotations) = (of(&pod.metadata.labels), of(&pod.metadata.annotations));
    belongs(seen.namespaces.get(pod.namespace()), &labels, &annotations, pod.spec.host_network).outcome
}

#[cfg(test)]
mod tests {
    use agent_status::{CaptureStatus, HostProbesStatus, NodeStatus, VerificationState, VerificationStatus};
    use serde_json::json;

    use super::*;
    use crate::cluster::NodeSeen;

    fn outcome(judge: impl Fn(&mut Report), check: checks::Check) -> (&'static str, String) {
        let mut report = Report::default();
        judge(&mut report);
        match report.of(check) {
            Some(Outcome::Good(found)) => ("good", found.clone()),
            Some(Outcome::Warning(found)) => ("warning", found.join("\n")),
            Some(Outcome::Failed(found)) => ("failed", found.join("\n")),
            Some(Outcome::Unknown(why)) => ("unknown", why.clone()),
            None => ("not made", String::new()),
        }
    }

    fn daemon_set(name: &str, command: &str, wanted: u64, ready: u64) -> DaemonSet {
        let running = Running { namespace: "n".to_owned(), name: name.to_owned(), wanted, ready };
        DaemonSet { running, updated: wanted, commands: vec![command.to_owned()] }
    }

    #[test]
    fn an_installation_is_two_daemon_sets_and_nobody_elses() {
        let mut seen = Seen::default();
        let of = |seen: &Seen, check| outcome(|r| (installation(r, seen), others(r, seen)).0, check);
        assert_eq!(of(&seen, checks::INSTALLED).0, "failed");
        seen.daemon_sets = vec![
            daemon_set("underpass-cni-node", "/bin/underpass-agent", 2, 2),
            daemon_set("ztunnel", "/bin/underpass-proxy", 2, 1),
        ];
        assert_eq!(of(&seen, checks::INSTALLED), ("good", "namespace n".to_owned()));
        assert_eq!(of(&seen, checks::AGENTS_READY).0, "good");
        let partly = "n/ztunnel: 1 of 2 ready, 2 of 2 up to date".to_owned();
        assert_eq!(of(&seen, checks::PROXIES_READY), ("failed", partly));
        assert_eq!(of(&seen, checks::NOTHING_ELSE).0, "good");
        seen.daemon_sets.push(daemon_set("ztunnel", "/usr/local/bin/ztunnel", 1, 1));
        assert_eq!(of(&seen, checks::NOTHING_ELSE), ("failed", "DaemonSet n/ztunnel".to_owned()));
    }

    #[test]
    fn istiod_has_to_serve_ambient_meshes_and_trust_the_proxies() {
        let mut seen = Seen::default();
        let of = |seen: &Seen, check| outcome(|r| istiod(r, seen, "mesh"), check);
        assert_eq!(of(&seen, checks::ISTIOD_RUNNING).0, "unknown", "it may run elsewhere");
        let env = [("PILOT_ENABLE_AMBIENT", "true"), ("CA_TRUSTED_NODE_ACCOUNTS", "a/b, mesh/ztunnel")];
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let running = Running { namespace: "i".to_owned(), name: "istiod".to_owned(), wanted: 1, ready: 1 };
        let good = Istiod { running, image: "pilot:1".to_owned(), env };
        seen.istiods = Ok(vec![good.clone()]);
        assert_eq!(of(&seen, checks::ISTIOD_RUNNING), ("good", "pilot:1".to_owned()));
        assert_eq!((of(&seen, checks::ISTIOD_AMBIENT).0, of(&seen, checks::ISTIOD_TRUSTS).0), ("good", "good"));
        seen.istiods = Ok(vec![Istiod { env: BTreeMap::new(), ..good }]);
        let unset = "i/istiod: PILOT_ENABLE_AMBIENT is not set".to_owned();
        assert_eq!(of(&seen, checks::ISTIOD_AMBIENT), ("failed", unset));
        assert_eq!(of(&seen, checks::ISTIOD_TRUSTS).0, "failed");
        seen.istiods = Err("forbidden".to_owned());
        assert_eq!(of(&seen, checks::ISTIOD_RUNNING), ("unknown", "forbidden".to_owned()));
    }

    #[test]
    fn roots_are_told_before_they_end() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let pem = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let end = rcgen::date_time_ymd(2027, 1, 1).unix_timestamp();
        assert_eq!(lasting(&pem, end - 61 * 86_400), Outcome::Good("61 days".to_owned()));
        assert!(matches!(lasting(&pem, end - 59 * 86_400), Outcome::Warning(_)));
        assert!(matches!(lasting(&pem, end), Outcome::Failed(_)));
        for nonsense in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(lasting(nonsense, 0), Outcome::Failed(_)), "{nonsense}");
        }
    }

    #[test]
    fn pods_are_where_their_labels_and_their_annotation_say() {
        let status = |name: &str, state, verified| PodStatus {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: None,
            state,
            reason: "a proxy".to_owned(),
            ips: Vec::new(),
            exempted_connections: 0,
            verification: Some(VerificationStatus { state: verified, reason: None, for_ms: 0, last_repair: None }),
        };
        let judged = |name: &str, node: &str, announced: bool, of_agent: Option<PodStatus>| {
            let annotations = if announced { json!({ REDIRECTION: "enabled" }) } else { json!({}) };
            let pod = json!({
                "metadata": { "namespace": "n", "name": name, "annotations": annotations },
                "spec": { "nodeName": node },
                "status": { "phase": "Running" },
            });
            let agent = NodeStatus {
                node: "a".to_owned(),
                version: String::new(),
                time_ms: None,
                unready: None,
                plugin_missing: None,
                capture: CaptureStatus { kind: String::new(), why: String::new() },
                proxies: Vec::new(),
                host_probes: HostProbesStatus { state: String::new(), addresses: 0, reason: None },
                pods: of_agent.into_iter().collect(),
            };
            let node = |name: &str, agent| NodeSeen { name: name.to_owned(), agent, ..NodeSeen::default() };
            let labels = BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())]);
            let seen = Seen {
                pods: vec![serde_json::from_value(pod).unwrap()],
                namespaces: BTreeMap::from([("n".to_owned(), labels)]),
                nodes: vec![node("a", Some(Ok(agent))), node("b", None), node("c", Some(Err(String::new())))],
                ..Seen::default()
            };
            [checks::PODS_JOINED, checks::PODS_ANNOUNCED].map(|check| outcome(|r| pods(r, &seen), check))
        };
        let good = |text: &str| ("good", text.to_owned());
        let bad = |text: &str| ("failed", text.to_owned());
        let (enrolled, skipped) = (PodState::Enrolled, PodState::Skipped);
        let (verified, drifted) = (VerificationState::Verified, VerificationState::Drifted);
        assert_eq!(judged("p", "a", true, Some(status("p", enrolled, verified))), [good("1 pods"), good("")]);
        let unannounced = bad("a: n/p is in the mesh, and not announced");
        assert_eq!(judged("p", "a", false, Some(status("p", enrolled, verified))), [good("1 pods"), unannounced]);
        assert_eq!(judged("p", "a", true, Some(status("p", enrolled, drifted))), [good("1 pods"), good("")]);
        let aside = ("warning", "a: n/p stays outside: a proxy".to_owned());
        assert_eq!(judged("p", "a", false, Some(status("p", skipped, verified))), [aside, good("")]);
        let [unknown, announced] = judged("p", "a", true, None);
        assert_eq!(unknown, bad("a: n/p: its agent does not know it"));
        assert_eq!(announced, bad("a: n/p is announced, and not in the mesh"));
        assert_eq!(judged("p", "b", false, None)[0], bad("b: n/p: there is no agent on its node"));
        assert_eq!(judged("p", "c", false, None)[0], bad("c: n/p: its agent does not answer"));
    }
}
