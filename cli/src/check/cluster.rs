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
mod tests;
