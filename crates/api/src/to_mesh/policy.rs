//! Policies. One that is not understood whole is refused whole: half of a policy could allow what it was to deny.

use ipnet::IpNet;
use mesh::Policy;
use mesh::policy::{Action, Match, PolicyScope, ServiceAccount, StringMatch};

use super::{Malformed, net, port, value};
use crate::authorization as wire;

pub(super) fn policy(a: wire::Authorization) -> Result<Policy, Malformed> {
    let matches =
        |clause: wire::Clause| clause.matches.into_iter().map(connection_match).collect::<Result<Vec<_>, _>>();
    let clauses = |rule: wire::Rule| rule.clauses.into_iter().map(matches).collect::<Result<Vec<_>, _>>();
    Ok(Policy {
        name: a.name.into(),
        namespace: a.namespace.into(),
        scope: match value("scope", a.scope)? {
            wire::Scope::Global => PolicyScope::Global,
            wire::Scope::Namespace => PolicyScope::Namespace,
            wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
        },
        action: match value("action", a.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        },
        rules: a.rules.into_iter().map(clauses).collect::<Result<_, _>>()?,
        dry_run: a.dry_run,
    })
}

fn connection_match(m: wire::Match) -> Result<Match, Malformed> {
    Ok(Match {
        namespaces: texts("namespaces", m.namespaces)?,
        not_namespaces: texts("not_namespaces", m.not_namespaces)?,
        service_accounts: accounts(m.service_accounts),
        not_service_accounts: accounts(m.not_service_accounts),
        principals: texts("principals", m.principals)?,
        not_principals: texts("not_principals", m.not_principals)?,
        source_ips: nets("source_ips", &m.source_ips)?,
        not_source_ips: nets("not_source_ips", &m.not_source_ips)?,
        destination_ips: nets("destination_ips", &m.destination_ips)?,
        not_destination_ips: nets("not_destination_ips", &m.not_destination_ips)?,
        destination_ports: ports("destination_ports", &m.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &m.not_destination_ports)?,
    })
}

fn texts(field: &'static str, texts: Vec<wire::StringMatch>) -> Result<Vec<StringMatch>, Malformed> {
    let text = |m: wire::StringMatch| {
        Ok(match m.match_type.ok_or(Malformed::Missing(field))? {
            wire::MatchType::Exact(t) => StringMatch::Exact(t.into()),
            wire::MatchType::Prefix(t) => StringMatch::Prefix(t.into()),
            wire::MatchType::Suffix(t) => StringMatch::Suffix(t.into()),
            wire::MatchType::Presence(_) => StringMatch::Presence,
        })
    };
    texts.into_iter().map(text).collect()
}

fn accounts(accounts: Vec<wire::ServiceAccountMatch>) -> Vec<ServiceAccount> {
    let account = |a: wire::ServiceAccountMatch| ServiceAccount {
        namespace: a.namespace.into(),
        service_account: a.service_account.into(),
    };
    accounts.into_iter().map(account).collect()
}

fn nets(field: &'static str, networks: &[wire::Network]) -> Result<Vec<IpNet>, Malformed> {
    networks.iter().map(|n| net(field, &n.address, n.length)).collect()
}

fn ports(field: &'static str, ports: &[u32]) -> Result<Vec<u16>, Malformed> {
    ports.iter().map(|p| port(field, *p)).collect()
}
