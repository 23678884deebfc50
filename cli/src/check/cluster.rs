//! Checks of the whole cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_status::{PodState, PodStatus};
use error_code::check as checks;
use istio::annotation::REDIRECTION;
use kubernetes::Pod;
use mesh::enrol::{belongs_by_selectors, belongs_to_mesh};
use x509_parser::pem::Pem;

use super::report::{CheckOutcome, CheckReport};
use crate::cluster::{ClusterSnapshot, DaemonSet, Istiod, ReplicaStatus};
use crate::node::is_verified;

/// Minimum remaining validity of root certificates.
const MIN_ROOT_DAYS: i64 = 60;

/// Checks that Underpass is installed and rolled out.
pub(super) fn installation(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let programs = [
        ("underpass-agent", checks::AGENTS_READY),
        ("underpass-proxy", checks::PROXIES_READY),
    ];
    let mut missing = Vec::new();
    for (program, ready) in programs {
        match snapshot.running(program) {
            Some(set) => rolled_out(report, ready, set),
            None => missing.push(format!("no DaemonSet runs {program}")),
        }
    }
    let namespace = snapshot.namespace().map(|n| format!("namespace {n}"));
    report.fail_on(checks::INSTALLED, missing, namespace.unwrap_or_default());
}

fn rolled_out(report: &mut CheckReport, check: checks::Check, set: &DaemonSet) {
    let (updated, ReplicaStatus { desired, ready, .. }) = (set.updated, &set.replicas);
    let line = format!("{ready} of {desired} ready, {updated} of {desired} up to date");
    let finding = format!("{}: {line}", set.replicas.full_name());
    let finding = (!set.is_rolled_out()).then_some(finding);
    report.fail_on(check, finding, line);
}

/// Checks that no other component redirects pods.
pub(super) fn other_redirection(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let others = snapshot.daemon_sets.iter().filter(|set| {
        let name = set.replicas.name.as_str();
        matches!(name, "istio-cni-node" | "ztunnel") && !set.runs("underpass-proxy")
    });
    let lines = others.map(|set| format!("DaemonSet {}", set.replicas.full_name()));
    report.fail_on(checks::NOTHING_ELSE, lines, "");
}

/// Checks the control plane; `namespace` is the current or future namespace of the proxies.
pub(super) fn istiod(report: &mut CheckReport, snapshot: &ClusterSnapshot, namespace: &str) {
    let reason = match &snapshot.istiods {
        Ok(all) if !all.is_empty() => return deployed_istiods(report, all, namespace),
        Ok(_) => "no Deployment has the label app=istiod; istiod may run outside this cluster",
        Err(reason) => reason,
    };
    let outcome = CheckOutcome::Unknown(reason.to_owned());
    report.add(checks::ISTIOD_RUNNING, outcome);
}

fn deployed_istiods(report: &mut CheckReport, all: &[Istiod], namespace: &str) {
    let problems = |check: &dyn Fn(&Istiod) -> Option<String>| -> Vec<String> {
        let problem = |i: &Istiod| Some(format!("{}: {}", i.replicas.full_name(), check(i)?));
        all.iter().filter_map(problem).collect()
    };
    let images: BTreeSet<&str> = all.iter().map(|i| i.image.as_str()).collect();
    let down =
        |i: &Istiod| (i.replicas.ready == 0).then(|| format!("0 of {} ready", i.replicas.desired));
    let images = images.into_iter().collect::<Vec<_>>().join(", ");
    report.fail_on(checks::ISTIOD_RUNNING, problems(&down), images);
    let without_ambient = |i: &Istiod| {
        let value = i.env.get("PILOT_ENABLE_AMBIENT");
        let value = value.map_or("not set", String::as_str);
        (value != "true").then(|| format!("PILOT_ENABLE_AMBIENT is {value}"))
    };
    report.fail_on(checks::ISTIOD_AMBIENT, problems(&without_ambient), "");
    let account = format!("{namespace}/ztunnel");
    let without_trust = |i: &Istiod| {
        let trusted = i.env.get("CA_TRUSTED_NODE_ACCOUNTS");
        let trusted = trusted.map_or("", String::as_str);
        let is_trusted = trusted.split(',').any(|t| t.trim() == account);
        (!is_trusted).then(|| format!("CA_TRUSTED_NODE_ACCOUNTS is {trusted:?}"))
    };
    let findings = problems(&without_trust);
    report.fail_on(checks::ISTIOD_TRUSTS, findings, account.as_str());
}

/// Checks that sidecars, if there are any, do not wait for Istio's CNI plugin.
pub(super) fn sidecars(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let awaits = match &snapshot.sidecars_await_plugin {
        Ok(awaits) => *awaits,
        Err(reason) => {
            let outcome = CheckOutcome::Unknown(reason.clone());
            return report.add(checks::SIDECARS_START, outcome);
        }
    };
    let is_ambient = |labels: &BTreeMap<String, String>| {
        let mode = labels.get("istio.io/dataplane-mode");
        mode.is_some_and(|mode| mode == "ambient")
    };
    let injects = |labels: &BTreeMap<String, String>| {
        let enabled = labels
            .get("istio-injection")
            .is_some_and(|v| v == "enabled");
        enabled || labels.contains_key("istio.io/rev") && !is_ambient(labels)
    };
    let namespaces = snapshot.namespaces.iter();
    let namespaces = namespaces.filter(|(_, labels)| injects(labels));
    let namespaces = namespaces.map(|(name, _)| format!("namespace {name} requests sidecars"));
    let injected = |pod: &&Pod| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.is_some_and(|a| a.contains_key("sidecar.istio.io/status"))
    };
    let waiting = snapshot.pods.iter().filter(injected);
    let waiting = waiting.filter(|pod| pod.status.phase == "Pending");
    let waiting =
        waiting.map(|p| format!("{}/{} is Pending with a sidecar", p.namespace(), p.name()));
    let findings = namespaces.chain(waiting).filter(|_| awaits);
    report.warn_on(checks::SIDECARS_START, findings, "");
}

/// Checks the remaining validity of the root certificates.
pub(super) fn roots(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let outcome = match &snapshot.roots {
        Ok(Some(pem)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
            check_validity(pem, now)
        }
        Ok(None) => CheckOutcome::Unknown("ConfigMap istio-ca-root-cert not found".to_owned()),
        Err(reason) => CheckOutcome::Unknown(reason.clone()),
    };
    report.add(checks::ROOT_VALID, outcome);
}

/// Checks the certificate that expires first.
fn check_validity(pem: &str, now: i64) -> CheckOutcome {
    let failed = |problem: String| CheckOutcome::Failed(vec![problem]);
    let (expiry, subject) = match first_expiry(pem) {
        Ok(first) => first,
        Err(problem) => return failed(format!("ConfigMap istio-ca-root-cert {problem}")),
    };
    match (expiry - now) / 86_400 {
        _ if expiry <= now => failed(format!("{subject} has expired")),
        days if days < MIN_ROOT_DAYS => {
            CheckOutcome::Warning(vec![format!("{subject} expires in {days} days")])
        }
        days => CheckOutcome::Good(format!("{days} days")),
    }
}

/// The expiry and the subject of the certificate that expires first.
fn first_expiry(pem: &str) -> Result<(i64, String), &'static str> {
    let mut expiries = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|_| "is not PEM")?;
        let certificate = block
            .parse_x509()
            .map_err(|_| "has an invalid certificate")?;
        let not_after = certificate.validity().not_after;
        expiries.push((not_after.timestamp(), certificate.subject().to_string()));
    }
    expiries.into_iter().min().ok_or("is empty")
}

/// Checks that the pods selected for the mesh are enrolled, and annotated for istiod.
pub(super) fn pods(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let responding = snapshot.nodes.iter().filter_map(|n| Some((n, n.status()?)));
    let known: BTreeMap<(&str, &str, &str), &PodStatus> = responding
        .flat_map(|(node, status)| status.pods.iter().map(|p| (node.name.as_str(), p)))
        .map(|(node, p)| ((node, p.namespace.as_str(), p.name.as_str()), p))
        .collect();
    let mut missing = Vec::new();
    let mut skipped = Vec::new();
    let mut enrolled_count = 0;
    let mut mismatched = Vec::new();
    let mut uncaptured = Vec::new();
    for pod in snapshot.pods.iter().filter(|p| p.status.phase == "Running") {
        let (namespace, name, node) = (pod.namespace(), pod.name(), pod.spec.node_name.as_str());
        let status = known.get(&(node, namespace, name));
        let enrolled = status.filter(|s| s.state == PodState::Enrolled);
        let annotations = pod.metadata.annotations.as_ref();
        let annotation = annotations.and_then(|a| a.get(REDIRECTION));
        let annotated = annotation.is_some_and(|v| v == "enabled");
        let mismatch = match enrolled {
            None if annotated => Some("has the annotation but is not enrolled"),
            Some(status) if is_verified(status) && !annotated => {
                Some("is enrolled but lacks the annotation")
            }
            _ => None,
        };
        mismatched.extend(mismatch.map(|m| format!("{node}: {namespace}/{name} {m}")));
        if !is_selected(snapshot, pod) {
            continue;
        }
        uncaptured.extend(
            uncaptured_ports(pod).map(|ports| format!("{node}: {namespace}/{name}: {ports}")),
        );
        match status {
            Some(status) if status.state == PodState::Enrolled => enrolled_count += 1,
            Some(PodStatus {
                state: PodState::Skipped,
                reason,
                ..
            }) => {
                skipped.push(format!("{node}: {namespace}/{name} not enrolled: {reason}"));
            }
            _ => {
                let agent = snapshot.nodes.iter().find(|n| n.name == node);
                let reason = match agent.and_then(|n| n.agent.as_ref()) {
                    Some(Ok(_)) => "unknown to the agent",
                    Some(Err(_)) => "the agent does not respond",
                    None => "no agent on the node",
                };
                missing.push(format!("{node}: {namespace}/{name}: {reason}"));
            }
        }
    }
    let bad = CheckOutcome::failed_if(!missing.is_empty());
    let (findings, note) = (
        missing.into_iter().chain(skipped),
        format!("{enrolled_count} pods"),
    );
    report.add_findings(checks::PODS_JOINED, findings, bad, note);
    report.fail_on(checks::PODS_ANNOUNCED, mismatched, "");
    report.warn_on(checks::PROTOCOLS_CAPTURED, uncaptured, "");
}

/// The ports of other protocols than TCP that a pod declares.
fn uncaptured_ports(pod: &Pod) -> Option<String> {
    let ports = pod.spec.containers.iter().flat_map(|c| &c.ports);
    let others = ports.filter(|port| !matches!(port.protocol.as_str(), "" | "TCP"));
    let others: Vec<String> = others
        .map(|port| format!("{}/{}", port.container_port, port.protocol))
        .collect();
    (!others.is_empty()).then(|| others.join(", "))
}

/// Whether labels, or the agents' enablement selectors, and annotations select a pod for the mesh.
pub(super) fn is_selected(snapshot: &ClusterSnapshot, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let (namespace, host) = (pod.namespace(), pod.spec.host_network);
    let of_namespace = snapshot.namespaces.get(namespace);
    let belongs = match &snapshot.selectors {
        Some(selectors) => {
            let selected = of_namespace.and_then(|of| selectors.first_match(&labels, of));
            belongs_by_selectors(selected, &annotations, host)
        }
        None => belongs_to_mesh(of_namespace, &labels, &annotations, host),
    };
    belongs.outcome
}

#[cfg(test)]
mod tests {
    use agent_status::{
        CaptureStatus, HostProbesStatus, NodeStatus, VerificationState, VerificationStatus,
    };
    use serde_json::json;

    use super::*;
    use crate::cluster::NodeSnapshot;

    fn outcome(run: impl Fn(&mut CheckReport), check: checks::Check) -> (&'static str, String) {
        let mut report = CheckReport::default();
        run(&mut report);
        match report.of(check) {
            Some(CheckOutcome::Good(found)) => ("good", found.clone()),
            Some(CheckOutcome::Warning(found)) => ("warning", found.join("\n")),
            Some(CheckOutcome::Failed(found)) => ("failed", found.join("\n")),
            Some(CheckOutcome::Unknown(reason)) => ("unknown", reason.clone()),
            None => ("not run", String::new()),
        }
    }

    fn daemon_set(name: &str, command: &str, desired: u64, ready: u64) -> DaemonSet {
        let replicas = ReplicaStatus {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            desired,
            ready,
        };
        DaemonSet {
            replicas,
            updated: desired,
            commands: vec![command.to_owned()],
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn an_installation_needs_two_daemon_sets_and_no_others() {
        let mut snapshot = ClusterSnapshot::default();
        let of = |snapshot: &ClusterSnapshot, check| {
            outcome(
                |r| (installation(r, snapshot), other_redirection(r, snapshot)).0,
                check,
            )
        };
        assert_eq!(of(&snapshot, checks::INSTALLED).0, "failed");
        snapshot.daemon_sets = vec![
            daemon_set("underpass-cni-node", "/bin/underpass-agent", 2, 2),
            daemon_set("ztunnel", "/bin/underpass-proxy", 2, 1),
        ];
        assert_eq!(
            of(&snapshot, checks::INSTALLED),
            ("good", "namespace n".to_owned())
        );
        assert_eq!(of(&snapshot, checks::AGENTS_READY).0, "good");
        let partly = "n/ztunnel: 1 of 2 ready, 2 of 2 up to date".to_owned();
        assert_eq!(of(&snapshot, checks::PROXIES_READY), ("failed", partly));
        assert_eq!(of(&snapshot, checks::NOTHING_ELSE).0, "good");
        snapshot
            .daemon_sets
            .push(daemon_set("ztunnel", "/usr/local/bin/ztunnel", 1, 1));
        assert_eq!(
            of(&snapshot, checks::NOTHING_ELSE),
            ("failed", "DaemonSet n/ztunnel".to_owned())
        );
    }

    #[test]
    fn istiod_must_enable_ambient_and_trust_the_proxies() {
        let mut snapshot = ClusterSnapshot::default();
        let of =
            |snapshot: &ClusterSnapshot, check| outcome(|r| istiod(r, snapshot, "mesh"), check);
        assert_eq!(
            of(&snapshot, checks::ISTIOD_RUNNING).0,
            "unknown",
            "istiod may run outside the cluster"
        );
        let env = [
            ("PILOT_ENABLE_AMBIENT", "true"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "a/b, mesh/ztunnel"),
        ];
        let env: BTreeMap<String, String> = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let (namespace, name) = ("i".to_owned(), "istiod".to_owned());
        let replicas = ReplicaStatus {
            namespace,
            name,
            desired: 1,
            ready: 1,
        };
        let good = Istiod {
            replicas,
            image: "pilot:1".to_owned(),
            env,
        };
        snapshot.istiods = Ok(vec![good.clone()]);
        assert_eq!(
            of(&snapshot, checks::ISTIOD_RUNNING),
            ("good", "pilot:1".to_owned())
        );
        assert_eq!(
            (
                of(&snapshot, checks::ISTIOD_AMBIENT).0,
                of(&snapshot, checks::ISTIOD_TRUSTS).0
            ),
            ("good", "good")
        );
        snapshot.istiods = Ok(vec![Istiod {
            env: BTreeMap::new(),
            ..good
        }]);
        let unset = "i/istiod: PILOT_ENABLE_AMBIENT is not set".to_owned();
        assert_eq!(of(&snapshot, checks::ISTIOD_AMBIENT), ("failed", unset));
        assert_eq!(of(&snapshot, checks::ISTIOD_TRUSTS).0, "failed");
        snapshot.istiods = Err("forbidden".to_owned());
        assert_eq!(
            of(&snapshot, checks::ISTIOD_RUNNING),
            ("unknown", "forbidden".to_owned())
        );
    }

    #[test]
    fn sidecars_that_wait_for_istios_plugin_are_reported() {
        let of =
            |snapshot: &ClusterSnapshot| outcome(|r| sidecars(r, snapshot), checks::SIDECARS_START);
        let pod = json!({
            "metadata": {
                "namespace": "shop",
                "name": "side",
                "uid": "1",
                "annotations": { "sidecar.istio.io/status": "{}" },
            },
            "spec": {},
            "status": { "phase": "Pending" },
        });
        let labels = |name: &str, value: &str| BTreeMap::from([(name.into(), value.into())]);
        let mut snapshot = ClusterSnapshot {
            sidecars_await_plugin: Ok(true),
            ..ClusterSnapshot::default()
        };
        let ambient = labels("istio.io/dataplane-mode", "ambient");
        snapshot.namespaces.insert("mesh".to_owned(), ambient);
        assert_eq!(of(&snapshot).0, "good", "no sidecars");
        snapshot.pods = vec![serde_json::from_value(pod).unwrap()];
        let pending = "shop/side is Pending with a sidecar".to_owned();
        assert_eq!(of(&snapshot), ("warning", pending));
        snapshot.pods.clear();
        let injected = labels("istio-injection", "enabled");
        snapshot.namespaces.insert("shop".to_owned(), injected);
        let requested = "namespace shop requests sidecars".to_owned();
        assert_eq!(of(&snapshot), ("warning", requested));
        snapshot.sidecars_await_plugin = Ok(false);
        assert_eq!(of(&snapshot).0, "good", "istio-init redirects");
        snapshot.sidecars_await_plugin = Err("forbidden".to_owned());
        assert_eq!(of(&snapshot), ("unknown", "forbidden".to_owned()));
    }

    #[test]
    fn unavailable_data_is_unknown_and_not_a_failure() {
        let mut snapshot = ClusterSnapshot::default();
        let of = |snapshot: &ClusterSnapshot, check| {
            let run = |r: &mut CheckReport| {
                istiod(r, snapshot, "n");
                roots(r, snapshot);
            };
            outcome(run, check)
        };
        let (state, reason) = of(&snapshot, checks::ISTIOD_RUNNING);
        assert!(state == "unknown" && reason.contains("outside this cluster"));
        assert_eq!(of(&snapshot, checks::ISTIOD_AMBIENT).0, "not run");
        let reason = "ConfigMap istio-ca-root-cert not found".to_owned();
        assert_eq!(of(&snapshot, checks::ROOT_VALID), ("unknown", reason));
        snapshot.roots = Err("forbidden".to_owned());
        let forbidden = ("unknown", "forbidden".to_owned());
        assert_eq!(of(&snapshot, checks::ROOT_VALID), forbidden);
        let replicas = ReplicaStatus {
            namespace: "i".to_owned(),
            name: "istiod".to_owned(),
            desired: 2,
            ready: 0,
        };
        snapshot.istiods = Ok(vec![Istiod {
            replicas,
            image: "pilot:1".to_owned(),
            env: BTreeMap::new(),
        }]);
        let down = ("failed", "i/istiod: 0 of 2 ready".to_owned());
        assert_eq!(of(&snapshot, checks::ISTIOD_RUNNING), down);
    }

    #[test]
    fn expiring_roots_cause_a_warning() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let pem = parameters
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .pem();
        let end = rcgen::date_time_ymd(2027, 1, 1).unix_timestamp();
        assert_eq!(
            check_validity(&pem, end - 61 * 86_400),
            CheckOutcome::Good("61 days".to_owned())
        );
        assert!(matches!(
            check_validity(&pem, end - 59 * 86_400),
            CheckOutcome::Warning(_)
        ));
        assert!(matches!(check_validity(&pem, end), CheckOutcome::Failed(_)));
        for nonsense in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(
                matches!(check_validity(nonsense, 0), CheckOutcome::Failed(_)),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn enablement_selectors_replace_the_label() {
        let pod = json!({ "metadata": { "namespace": "shop", "labels": { "mesh": "on" } } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let label = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
        let mut snapshot = ClusterSnapshot {
            namespaces: [("shop".to_owned(), [label].into())].into(),
            ..ClusterSnapshot::default()
        };
        assert!(is_selected(&snapshot, &pod));
        for (value, expected) in [("on", true), ("off", false)] {
            let selectors = format!("[{{ podSelector: {{ matchLabels: {{ mesh: {value} }} }} }}]");
            snapshot.selectors = Some(selectors.parse().unwrap());
            assert_eq!(is_selected(&snapshot, &pod), expected, "{value}");
        }
    }

    #[test]
    fn declared_ports_of_protocols_that_are_not_captured_are_reported() {
        let pod = |ports: serde_json::Value| {
            let containers = json!([{ "name": "a" }, { "name": "b", "ports": ports }]);
            let pod = json!({ "metadata": {}, "spec": { "containers": containers } });
            uncaptured_ports(&serde_json::from_value(pod).unwrap())
        };
        let tcp = json!({ "containerPort": 80 });
        let [udp, sctp] =
            ["UDP", "SCTP"].map(|protocol| json!({ "containerPort": 53, "protocol": protocol }));
        assert_eq!(pod(json!([tcp])), None);
        let expected = Some("53/UDP, 53/SCTP".to_owned());
        assert_eq!(pod(json!([udp, tcp, sctp])), expected);
    }

    #[test]
    fn enrolled_pods_match_labels_and_annotations() {
        let status = |name: &str, state, verified| PodStatus {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: None,
            state,
            reason: "a proxy".to_owned(),
            reason_code: None,
            ips: Vec::new(),
            exempted_connections: 0,
            capabilities: Vec::new(),
            started_outside: None,
            exclusions: None,
            verification: Some(VerificationStatus {
                state: verified,
                reason: None,
                reason_code: None,
                for_ms: 0,
                last_repair: None,
                from_node: None,
            }),
        };
        let check_pod = |name: &str, node: &str, annotated: bool, status: Option<PodStatus>| {
            let annotations = if annotated {
                json!({ REDIRECTION: "enabled" })
            } else {
                json!({})
            };
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
                unready_code: None,
                plugin_missing: None,
                plugin_not_called: None,
                capture: CaptureStatus {
                    kind: String::new(),
                    why: String::new(),
                },
                proxies: Vec::new(),
                host_probes: HostProbesStatus {
                    state: String::new(),
                    addresses: 0,
                    reason: None,
                },
                pods: status.into_iter().collect(),
            };
            let node = |name: &str, agent| NodeSnapshot {
                name: name.to_owned(),
                agent,
                ..NodeSnapshot::default()
            };
            let labels =
                BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())]);
            let snapshot = ClusterSnapshot {
                pods: vec![serde_json::from_value(pod).unwrap()],
                namespaces: BTreeMap::from([("n".to_owned(), labels)]),
                nodes: vec![
                    node("a", Some(Ok(agent))),
                    node("b", None),
                    node("c", Some(Err(String::new()))),
                ],
                ..ClusterSnapshot::default()
            };
            [checks::PODS_JOINED, checks::PODS_ANNOUNCED]
                .map(|check| outcome(|r| pods(r, &snapshot), check))
        };
        let good = |text: &str| ("good", text.to_owned());
        let bad = |text: &str| ("failed", text.to_owned());
        let (enrolled, skipped) = (PodState::Enrolled, PodState::Skipped);
        let (verified, drifted) = (VerificationState::Verified, VerificationState::Drifted);
        assert_eq!(
            check_pod("p", "a", true, Some(status("p", enrolled, verified))),
            [good("1 pods"), good("")]
        );
        let lacking = bad("a: n/p is enrolled but lacks the annotation");
        assert_eq!(
            check_pod("p", "a", false, Some(status("p", enrolled, verified))),
            [good("1 pods"), lacking]
        );
        assert_eq!(
            check_pod("p", "a", true, Some(status("p", enrolled, drifted))),
            [good("1 pods"), good("")]
        );
        let warning = ("warning", "a: n/p not enrolled: a proxy".to_owned());
        assert_eq!(
            check_pod("p", "a", false, Some(status("p", skipped, verified))),
            [warning, good("")]
        );
        let [unknown, mismatched] = check_pod("p", "a", true, None);
        assert_eq!(unknown, bad("a: n/p: unknown to the agent"));
        assert_eq!(
            mismatched,
            bad("a: n/p has the annotation but is not enrolled")
        );
        assert_eq!(
            check_pod("p", "b", false, None)[0],
            bad("b: n/p: no agent on the node")
        );
        assert_eq!(
            check_pod("p", "c", false, None)[0],
            bad("c: n/p: the agent does not respond")
        );
    }
}
