//! Checks of NetworkPolicies: those that cut connections of the mesh, with the lines to add.
//!
//! The mesh changes what a policy sees. Between two pods of the mesh, the destination port is that
//! of HBONE, and the kubelet's probes come from an address of their own. Whether the cluster's
//! network plugin enforces policies is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use error_code::check as checks;
use istio::port::HBONE;
use istio::probe::SOURCES;
use kubernetes::{Labels, Pod};

use super::cluster::is_selected;
use super::report::{CheckOutcome, CheckReport};
use crate::cluster::{ClusterSnapshot, Direction, NetworkPolicy, PolicyPod, Rule};

/// Checks the policies of all namespaces.
pub(super) fn check(report: &mut CheckReport, snapshot: &ClusterSnapshot) {
    let policies = match &snapshot.network_policies {
        Ok(policies) => policies,
        Err(reason) => {
            report.add(
                checks::POLICIES_ALLOW_HBONE,
                CheckOutcome::Unknown(reason.clone()),
            );
            return;
        }
    };
    let is_running = |pod: &&Pod| pod.status.phase == "Running" && is_selected(snapshot, pod);
    let pods: Vec<&Pod> = snapshot.pods.iter().filter(is_running).collect();
    let mesh = MeshPods::new(&pods, &snapshot.namespaces);
    let note = format!("{} policies", policies.len());
    report.fail_on(
        checks::POLICIES_ALLOW_HBONE,
        mesh.without_hbone(policies),
        note,
    );
    let translates = |status: &agent_status::NodeStatus| status.host_probes.state != "off";
    let mut nodes = snapshot.nodes.iter().filter_map(|node| node.status());
    if nodes.any(translates) {
        report.warn_on(
            checks::POLICIES_ALLOW_PROBES,
            mesh.without_probes(policies),
            "",
        );
    }
}

/// The pods of the mesh, one of each kind: policies cannot tell pods with the same labels apart.
struct MeshPods<'a> {
    kinds: Vec<(PolicyPod<'a>, &'a Pod)>,
    namespaces: &'a BTreeMap<String, Labels>,
}

impl<'a> MeshPods<'a> {
    fn new(pods: &[&'a Pod], namespaces: &'a BTreeMap<String, Labels>) -> Self {
        static NONE: Labels = Labels::new();
        let mut kinds = BTreeMap::new();
        for pod in pods {
            let labels = pod.metadata.labels.as_ref().unwrap_or(&NONE);
            kinds.entry((pod.namespace(), labels)).or_insert(*pod);
        }
        let kind = |((namespace, labels), pod)| (PolicyPod { namespace, labels }, pod);
        Self {
            kinds: kinds.into_iter().map(kind).collect(),
            namespaces,
        }
    }

    /// Policies that allow connections between two pods of the mesh, but not the tunnel in which
    /// these connections arrive.
    fn without_hbone(&self, policies: &[NetworkPolicy]) -> Vec<String> {
        let mut findings = BTreeMap::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for (pod, example) in &self.kinds {
                let isolating = isolating(policies, *pod, direction);
                let rules = rules(&isolating, direction);
                for (other, other_example) in &self.kinds {
                    let naming = rules.iter().filter(|(policy, rule)| {
                        rule.names_pod(policy.namespace(), *other, self.namespaces)
                    });
                    let naming: Vec<_> = naming.collect();
                    if naming.iter().any(|(_, rule)| rule.allows_port(HBONE, None)) {
                        continue;
                    }
                    for (policy, rule) in naming {
                        let Some(port) = rule.port_besides(HBONE) else {
                            continue;
                        };
                        let finding =
                            || tunnel_finding(policy, direction, &port, example, other_example);
                        let key = (policy.full_name(), direction);
                        findings.entry(key).or_insert_with(finding);
                    }
                }
            }
        }
        findings.into_values().collect()
    }

    /// Policies that isolate pods with network probes, and do not allow the address from which the
    /// probes come.
    fn without_probes(&self, policies: &[NetworkPolicy]) -> Vec<String> {
        let mut findings = BTreeMap::new();
        for (pod, example) in &self.kinds {
            let isolating = isolating(policies, *pod, Direction::Ingress);
            let rules = rules(&isolating, Direction::Ingress);
            let families: BTreeSet<bool> = example
                .status
                .pod_ips
                .iter()
                .map(|address| address.ip.is_ipv4())
                .collect();
            let sources = SOURCES.iter().filter(|s| families.contains(&s.is_ipv4()));
            let sources: Vec<&IpAddr> = sources.collect();
            for (number, name) in example.spec.probed_ports() {
                let is_allowed = |source: &IpAddr| {
                    let allows =
                        |rule: &Rule| rule.names_address(*source) && rule.allows_port(number, name);
                    rules.iter().any(|(_, rule)| allows(rule))
                };
                if sources.iter().all(|source| is_allowed(source)) {
                    continue;
                }
                for policy in &isolating {
                    let finding = || probe_finding(policy, number, example, &sources);
                    findings.entry(policy.full_name()).or_insert_with(finding);
                }
            }
        }
        findings.into_values().collect()
    }
}

/// The policies that isolate a pod.
fn isolating<'p>(
    policies: &'p [NetworkPolicy],
    pod: PolicyPod<'_>,
    direction: Direction,
) -> Vec<&'p NetworkPolicy> {
    let isolating = policies.iter().filter(|p| p.isolates(pod, direction));
    isolating.collect()
}

/// What policies allow, all together.
fn rules<'p>(
    policies: &[&'p NetworkPolicy],
    direction: Direction,
) -> Vec<(&'p NetworkPolicy, &'p Rule)> {
    let rules = policies.iter();
    rules
        .flat_map(|policy| policy.rules(direction).iter().map(|rule| (*policy, rule)))
        .collect()
}

fn tunnel_finding(
    policy: &NetworkPolicy,
    direction: Direction,
    port: &str,
    pod: &Pod,
    other: &Pod,
) -> String {
    let [pod, other] = [pod, other].map(|pod| format!("{}/{}", pod.namespace(), pod.name()));
    let of = policy.full_name();
    let (list, allowed) = match direction {
        Direction::Ingress => ("ingress", format!("{other} may connect to {port} of {pod}")),
        Direction::Egress => ("egress", format!("{pod} may connect to {port} of {other}")),
    };
    format!(
        "{of}: {allowed}, but not to port {HBONE}, through which the mesh connects. Add to the \
         ports of this {list} rule:\n- port: {HBONE}\n  protocol: TCP"
    )
}

fn probe_finding(policy: &NetworkPolicy, port: u16, pod: &Pod, sources: &[&IpAddr]) -> String {
    let blocks = sources.iter().map(|source| {
        let length = if source.is_ipv4() { 32 } else { 128 };
        format!("\n  - ipBlock:\n      cidr: {source}/{length}")
    });
    let (of, name) = (policy.full_name(), pod.name());
    let (namespace, blocks) = (pod.namespace(), blocks.collect::<String>());
    format!(
        "{of}: the kubelet's probes of port {port} of {namespace}/{name} are not allowed. Add this \
         ingress rule:\n- from:{blocks}\n  ports:\n  - port: {port}\n    protocol: TCP"
    )
}

#[cfg(test)]
mod tests;
