//! Whether a connection may reach a workload.

use std::net::IpAddr;

use crate::address::{ClientAddr, PodAddr};
use crate::decision::Decision;
use crate::identity::Identity;
use crate::policy::{Action, Match, Policy, ServiceAccount, StringMatch};
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// What policies look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub client: ClientAddr,
    /// The client's identity, if a certificate proved one.
    pub identity: Option<Identity>,
    /// Where it goes in the pod.
    pub destination: PodAddr,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// Decides whether a connection may reach `workload` now: deny policies first, then allow policies, and a policy that the
/// workload refers to and nobody knows denies.
pub fn authorize(mesh: &Mesh, workload: &Workload, connection: &Connection) -> Decision<Verdict> {
    let mut considered = Vec::new();
    let (policies, unknown) = mesh.policies_of(workload);
    if let Some(key) = unknown.first() {
        return Decision::new(Verdict::Deny, format!("policy {key} is referred to and unknown"));
    }
    let matching = |policy: &Policy| policy.rules.iter().position(|rule| rule_matches(rule, connection));
    let dry = |policy: &Policy, considered: &mut Vec<String>| {
        if let Some(rule) = matching(policy) {
            considered.push(format!(
                "{:?} policy {} (dry run) matches by rule {}",
                policy.action,
                policy.key(),
                rule + 1
            ));
        }
    };
    for policy in policies.iter().filter(|p| p.action == Action::Deny) {
        if policy.dry_run {
            dry(policy, &mut considered);
            continue;
        }
        if matching(policy).is_some() {
            return Decision::new(Verdict::Deny, format!("explicitly denied by: {}", policy.key())).after(considered);
        }
        considered.push(format!("deny policy {} does not match", policy.key()));
    }
    let mut any_allow = false;
    for policy in policies.iter().filter(|p| p.action == Action::Allow) {
        if policy.dry_run {
            dry(policy, &mut considered);
            continue;
        }
        any_allow = true;
        if let Some(rule) = matching(policy) {
            let reason = format!("allowed by: {} (rule {})", policy.key(), rule + 1);
            return Decision::new(Verdict::Allow, reason).after(considered);
        }
        considered.push(format!("allow policy {} does not match", policy.key()));
    }
    if any_allow {
        Decision::new(Verdict::Deny, "allow policies exist, but none allowed").after(considered)
    } else {
        Decision::new(Verdict::Allow, "no allow policy exists").after(considered)
    }
}

/// All clauses must hold; an empty clause does. A rule without clauses holds too.
fn rule_matches(clauses: &[Vec<Match>], connection: &Connection) -> bool {
    clauses.iter().all(|clause| clause.is_empty() || clause.iter().any(|m| match_matches(m, connection)))
}

/// Every kind that is given must hold; a match that gives none never does.
fn match_matches(m: &Match, c: &Connection) -> bool {
    let namespace = c.identity.as_ref().map(|i| i.namespace.as_str());
    let principal = c.identity.as_ref().map(Identity::principal);
    let text = |matches: &[StringMatch], text: Option<&str>| matches.iter().any(|m| text.is_some_and(|t| m.matches(t)));
    let account = |list: &[ServiceAccount]| {
        let same =
            |i: &Identity, s: &ServiceAccount| i.namespace == s.namespace && i.service_account == s.service_account;
        list.iter().any(|s| c.identity.as_ref().is_some_and(|i| same(i, s)))
    };
    let within = |nets: &[ipnet::IpNet], ip: IpAddr| nets.iter().any(|n| n.contains(&ip));
    let kinds = [
        (!m.namespaces.is_empty(), text(&m.namespaces, namespace)),
        (!m.not_namespaces.is_empty(), !text(&m.not_namespaces, namespace)),
        (!m.service_accounts.is_empty(), account(&m.service_accounts)),
        (!m.not_service_accounts.is_empty(), !account(&m.not_service_accounts)),
        (!m.principals.is_empty(), text(&m.principals, principal.as_deref())),
        (!m.not_principals.is_empty(), !text(&m.not_principals, principal.as_deref())),
        (!m.source_ips.is_empty(), within(&m.source_ips, c.client.ip())),
        (!m.not_source_ips.is_empty(), !within(&m.not_source_ips, c.client.ip())),
        (!m.destination_ips.is_empty(), within(&m.destination_ips, c.destination.ip())),
        (!m.not_destination_ips.is_empty(), !within(&m.not_destination_ips, c.destination.ip())),
        (!m.destination_ports.is_empty(), m.destination_ports.contains(&c.destination.port())),
        (!m.not_destination_ports.is_empty(), !m.not_destination_ports.contains(&c.destination.port())),
    ];
    let mut given = kinds.iter().filter(|(given, _)| *given).peekable();
    given.peek().is_some() && given.all(|(_, holds)| *holds)
}
