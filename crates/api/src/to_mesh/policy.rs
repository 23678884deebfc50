//! Conversion of policies. A part that is not understood makes what it is part of match in doubt;
//! see [`Match::not_understood`].

use mesh::policy::{Action, Match, PolicyScope, ServiceAccount, StringMatch, field};
use mesh::{Policy, Text};

use super::{MalformedResource, Notes, net, port, understood, value};
use crate::authorization as wire;
use crate::unknown_fields::FieldPath;

/// Paths to unknown fields, from the current message on.
type Unknown<'a> = Vec<&'a [(u32, usize)]>;

/// The paths that continue in an occurrence of a field.
fn within<'a>(unknown: &Unknown<'a>, number: u32, index: usize) -> Unknown<'a> {
    let inside = |path: &&'a [(u32, usize)]| {
        let (first, rest) = path.split_first()?;
        (*first == (number, index) && !rest.is_empty()).then_some(rest)
    };
    unknown.iter().filter_map(inside).collect()
}

/// The unknown fields of the current message itself.
fn own(unknown: &Unknown<'_>) -> Option<String> {
    let own = unknown.iter().filter(|path| path.len() == 1);
    let names: Vec<String> = own.map(|path| format!("field {}", path[0].0)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

pub(super) fn policy(a: wire::Authorization, unknown: &[FieldPath], notes: &mut Notes) -> Policy {
    let unknown: Unknown<'_> = unknown.iter().map(Vec::as_slice).collect();
    let scope = match understood(value("scope", a.scope), notes) {
        Some(wire::Scope::Global) => PolicyScope::Global,
        Some(wire::Scope::Namespace) => PolicyScope::Namespace,
        Some(wire::Scope::WorkloadSelector) => PolicyScope::WorkloadSelector,
        None => PolicyScope::widest_of(&a.namespace),
    };
    let action = match understood(value("action", a.action), notes) {
        Some(wire::Action::Allow) => Some(Action::Allow),
        Some(wire::Action::Deny) => Some(Action::Deny),
        None => None,
    };
    let mut rules: Vec<_> = a
        .rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| clauses(rule, index, &within(&unknown, 5, index), notes))
        .collect();
    let of_policy = own(&unknown).inspect(|fields| notes.push(format!("unknown {fields}")));
    let of_policy = of_policy.or_else(|| action.is_none().then(|| "the action".to_owned()));
    if let Some(what) = of_policy {
        rules = vec![vec![vec![Match::in_doubt(what)]]];
    }
    Policy {
        name: a.name.into(),
        namespace: a.namespace.into(),
        scope,
        action: action.unwrap_or(Action::Deny),
        rules,
        dry_run: a.dry_run,
    }
}

fn clauses(
    rule: wire::Rule,
    index: usize,
    unknown: &Unknown<'_>,
    notes: &mut Notes,
) -> Vec<Vec<Match>> {
    let number = index + 1;
    if let Some(fields) = own(unknown) {
        notes.push(format!("rule {number}: unknown {fields}"));
        return vec![vec![Match::in_doubt(fields)]];
    }
    let clauses = rule.clauses.into_iter().enumerate();
    clauses
        .map(|(at, clause)| matches(clause, number, &within(unknown, 1, at), notes))
        .collect()
}

fn matches(
    clause: wire::Clause,
    rule: usize,
    unknown: &Unknown<'_>,
    notes: &mut Notes,
) -> Vec<Match> {
    if let Some(fields) = own(unknown) {
        notes.push(format!("rule {rule}: unknown {fields} of a clause"));
        return vec![Match::in_doubt(fields)];
    }
    let matches = clause.matches.into_iter().enumerate();
    matches
        .map(|(at, m)| {
            let conversion = MatchConversion {
                rule,
                unknown: within(unknown, 2, at),
                notes,
                not_understood: Vec::new(),
            };
            conversion.convert(m)
        })
        .collect()
}

struct MatchConversion<'a, 'n> {
    /// Number of the rule, starting at 1.
    rule: usize,
    unknown: Unknown<'a>,
    notes: &'n mut Notes,
    not_understood: Vec<Text>,
}

impl MatchConversion<'_, '_> {
    fn convert(mut self, m: wire::Match) -> Match {
        if let Some(fields) = own(&self.unknown) {
            let rule = self.rule;
            self.notes
                .push(format!("rule {rule}: unknown {fields} of a match"));
            self.not_understood.push(fields.into());
        }
        let [namespaces, not_namespaces] = field::NAMESPACES;
        let [principals, not_principals] = field::PRINCIPALS;
        let [source_ips, not_source_ips] = field::SOURCE_IPS;
        let [destination_ips, not_destination_ips] = field::DESTINATION_IPS;
        let [destination_ports, not_destination_ports] = field::DESTINATION_PORTS;
        let [service_accounts, not_service_accounts] = field::SERVICE_ACCOUNTS;
        let ip = |name| move |n: wire::Network| net(name, &n.address, n.length);
        let number = |name| move |p| port(name, p);
        Match {
            namespaces: self.values(namespaces, 1, m.namespaces, text(namespaces)),
            not_namespaces: self.values(not_namespaces, 2, m.not_namespaces, text(not_namespaces)),
            principals: self.values(principals, 3, m.principals, text(principals)),
            not_principals: self.values(not_principals, 4, m.not_principals, text(not_principals)),
            source_ips: self.values(source_ips, 5, m.source_ips, ip(source_ips)),
            not_source_ips: self.values(not_source_ips, 6, m.not_source_ips, ip(not_source_ips)),
            destination_ips: self.values(
                destination_ips,
                7,
                m.destination_ips,
                ip(destination_ips),
            ),
            not_destination_ips: self.values(
                not_destination_ips,
                8,
                m.not_destination_ips,
                ip(not_destination_ips),
            ),
            destination_ports: self.values(
                destination_ports,
                9,
                m.destination_ports,
                number(destination_ports),
            ),
            not_destination_ports: self.values(
                not_destination_ports,
                10,
                m.not_destination_ports,
                number(not_destination_ports),
            ),
            service_accounts: self.values(service_accounts, 11, m.service_accounts, account),
            not_service_accounts: self.values(
                not_service_accounts,
                12,
                m.not_service_accounts,
                account,
            ),
            not_understood: self.not_understood,
        }
    }

    /// Converts the values of a field, and notes whether some are not understood.
    fn values<W, V>(
        &mut self,
        name: &'static str,
        number: u32,
        values: Vec<W>,
        convert: impl Fn(W) -> Result<V, MalformedResource>,
    ) -> Vec<V> {
        let mut converted = Vec::with_capacity(values.len());
        let mut in_doubt = None;
        for (index, value) in values.into_iter().enumerate() {
            let unknown = within(&self.unknown, number, index);
            if let Some(path) = unknown.first() {
                let inner = path[path.len() - 1].0;
                in_doubt = Some(format!("{name}: unknown field {inner}"));
                continue;
            }
            match convert(value) {
                Ok(value) => converted.push(value),
                Err(e) => in_doubt = Some(e.to_string()),
            }
        }
        if let Some(reason) = in_doubt {
            self.notes.push(format!("rule {}: {reason}", self.rule));
            self.not_understood.push(name.into());
        }
        converted
    }
}

fn text(
    field: &'static str,
) -> impl Fn(wire::StringMatch) -> Result<StringMatch, MalformedResource> {
    move |m| {
        Ok(
            match m.match_type.ok_or(MalformedResource::Missing(field))? {
                wire::MatchType::Exact(t) => StringMatch::Exact(t.into()),
                wire::MatchType::Prefix(t) => StringMatch::Prefix(t.into()),
                wire::MatchType::Suffix(t) => StringMatch::Suffix(t.into()),
                wire::MatchType::Presence(_) => StringMatch::Presence,
            },
        )
    }
}

fn account(a: wire::ServiceAccountMatch) -> Result<ServiceAccount, MalformedResource> {
    Ok(ServiceAccount {
        namespace: a.namespace.into(),
        service_account: a.service_account.into(),
    })
}
