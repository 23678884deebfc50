//! Compiled policies decide as the definition of policies does, which is written here as plainly as can be.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh::authorize::{Connection, Verdict, Why, authorize, check};
use mesh::policy::{Action, Match, PolicyScope, ServiceAccount, StringMatch};
use mesh::{Identity, Mesh, Policy, Text, Workload};
use proptest::prelude::*;

/// `(verdict, policy and rule that decided)`, by the definition.
fn naive(policies: &[Policy], workload: &Workload, c: &Connection) -> (Verdict, Option<(String, usize)>) {
    let known = |key: &Text| policies.iter().any(|p| p.key() == key.as_str());
    if !workload.authorization_policies.iter().all(known) {
        return (Verdict::Deny, None);
    }
    let global = policies.iter().filter(|p| p.scope == PolicyScope::Global);
    let local = policies.iter().filter(|p| p.scope == PolicyScope::Namespace && p.namespace == workload.namespace);
    let selected = workload.authorization_policies.iter().map(|key| policies.iter().find(|p| p.key() == key.as_str()));
    let mut applying: Vec<&Policy> = global.chain(local).chain(selected.flatten()).collect();
    applying.retain(|p| !p.dry_run);
    for action in [Action::Deny, Action::Allow] {
        for policy in applying.iter().filter(|p| p.action == action) {
            if let Some(rule) = policy.rules.iter().position(|rule| rule_holds(rule, c)) {
                let verdict = if action == Action::Deny { Verdict::Deny } else { Verdict::Allow };
                return (verdict, Some((policy.key(), rule)));
            }
        }
    }
    let any_allow = applying.iter().any(|p| p.action == Action::Allow);
    (if any_allow { Verdict::Deny } else { Verdict::Allow }, None)
}

fn rule_holds(clauses: &[Vec<Match>], c: &Connection) -> bool {
    clauses.iter().all(|clause| clause.is_empty() || clause.iter().any(|m| match_holds(m, c)))
}

fn match_holds(m: &Match, c: &Connection) -> bool {
    let text = |list: &[StringMatch], text: Option<&str>| text.is_some_and(|t| list.iter().any(|m| m.matches(t)));
    let ip = |list: &[IpNet], ip: IpAddr| list.iter().any(|net| net.contains(&ip));
    let account = |list: &[ServiceAccount]| {
        let same =
            |i: &Identity, a: &ServiceAccount| i.namespace == a.namespace && i.service_account == a.service_account;
        list.iter().any(|a| c.identity.as_ref().is_some_and(|i| same(i, a)))
    };
    let namespace = c.identity.as_ref().map(|i| i.namespace.as_str());
    let principal = c.identity.as_ref().map(Identity::principal);
    let mut said = false;
    let mut holds = true;
    let mut kind = |given: bool, matches: bool| {
        said |= given;
        holds &= !given || matches;
    };
    kind(!m.namespaces.is_empty(), text(&m.namespaces, namespace));
    kind(!m.not_namespaces.is_empty(), !text(&m.not_namespaces, namespace));
    kind(!m.principals.is_empty(), text(&m.principals, principal.as_deref()));
    kind(!m.not_principals.is_empty(), !text(&m.not_principals, principal.as_deref()));
    kind(!m.service_accounts.is_empty(), account(&m.service_accounts));
    kind(!m.not_service_accounts.is_empty(), !account(&m.not_service_accounts));
    kind(!m.source_ips.is_empty(), ip(&m.source_ips, c.client.ip()));
    kind(!m.not_source_ips.is_empty(), !ip(&m.not_source_ips, c.client.ip()));
    kind(!m.destination_ips.is_empty(), ip(&m.destination_ips, c.destination.ip()));
    kind(!m.not_destination_ips.is_empty(), !ip(&m.not_destination_ips, c.destination.ip()));
    kind(!m.destination_ports.is_empty(), m.destination_ports.contains(&c.destination.port()));
    kind(!m.not_destination_ports.is_empty(), !m.not_destination_ports.contains(&c.destination.port()));
    said && holds
}

/// Most often nothing, so that some matches are likely to hold.
fn list<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (prop::collection::vec(of, 1..4), prop::bool::weighted(0.2))
        .prop_map(|(all, given)| if given { all } else { vec![] })
}

fn words() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        prop::sample::select(vec!["a", "ab", "t/ns/a/sa/b", "t/ns/ab/sa/b", "b"])
            .prop_map(|t| StringMatch::Exact(t.into())),
        prop::sample::select(vec!["a", "t/", "t/ns/ab"]).prop_map(|t| StringMatch::Prefix(t.into())),
        prop::sample::select(vec!["b", "sa/a", "x"]).prop_map(|t| StringMatch::Suffix(t.into())),
        Just(StringMatch::Presence),
    ]
}

fn nets() -> impl Strategy<Value = IpNet> {
    prop::sample::select(vec![
        "10.0.0.0/8",
        "10.0.0.0/30",
        "10.0.0.1/32",
        "10.0.0.2/31",
        "0.0.0.0/0",
        "fd00::/64",
        "::/0",
    ])
    .prop_map(|net| net.parse().unwrap())
}

fn accounts() -> impl Strategy<Value = ServiceAccount> {
    let names = || prop::sample::select(vec!["a", "ab", "b"]);
    (names(), names()).prop_map(|(n, s)| ServiceAccount { namespace: n.into(), service_account: s.into() })
}

prop_compose! {
    fn matches()(
        (namespaces, not_namespaces) in (list(words()), list(words())),
        (principals, not_principals) in (list(words()), list(words())),
        (service_accounts, not_service_accounts) in (list(accounts()), list(accounts())),
        (source_ips, not_source_ips) in (list(nets()), list(nets())),
        (destination_ips, not_destination_ips) in (list(nets()), list(nets())),
        (destination_ports, not_destination_ports) in (list(79u16..82), list(79u16..82)),
    ) -> Match {
        Match {
            namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts,
            source_ips, not_source_ips, destination_ips, not_destination_ips, destination_ports, not_destination_ports,
        }
    }
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let scopes = prop::sample::select(vec![PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector]);
    let actions = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let rules = prop::collection::vec(prop::collection::vec(prop::collection::vec(matches(), 0..3), 0..3), 0..3);
    let namespaces = prop::sample::select(vec!["a", "b"]);
    let one = (scopes, actions, rules, namespaces, prop::bool::weighted(0.2));
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let policy = |(n, (scope, action, rules, namespace, dry_run)): (usize, _)| {
            let (name, namespace): (Text, Text) = (format!("p{n}").into(), <&str>::into(namespace));
            Policy { name, namespace, scope, action, rules, dry_run }
        };
        let mut all: Vec<Policy> = all.into_iter().enumerate().map(policy).collect();
        all.sort_by_key(Policy::key); // the order in which policies of one scope are looked at
        all
    })
}

prop_compose! {
    fn connection()(
        identity in prop::option::of((prop::sample::select(vec!["a", "ab"]), prop::sample::select(vec!["a", "b"]))),
        client in prop::sample::select(vec!["10.0.0.1:1", "10.0.0.3:1", "11.0.0.1:1", "[fd00::1]:1", "[fd01::1]:1"]),
        ip in prop::sample::select(vec!["10.0.0.2", "fd00::2"]),
        port in 79u16..83,
    ) -> Connection {
        let identity = identity.map(|(ns, sa)| format!("spiffe://t/ns/{ns}/sa/{sa}").parse().unwrap());
        let destination = SocketAddr::new(ip.parse().unwrap(), port).into();
        Connection { client: client.parse::<SocketAddr>().unwrap().into(), identity, destination }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn compiled_policies_decide_as_the_definition_does(
        policies in policies(),
        connection in connection(),
        selected in prop::collection::vec(0usize..6, 0..3),
    ) {
        // An index that no policy has stands for one that nobody knows.
        let key = |at: usize| policies.get(at).map_or("a/unknown".into(), |p| Text::from(p.key()));
        let workload = Workload {
            uid: "w".into(),
            namespace: "a".into(),
            authorization_policies: selected.into_iter().map(key).collect(),
            ..Workload::default()
        };
        let mesh = Mesh::new([workload.clone()], [], policies.clone(), []);
        let ruling = check(&mesh, &workload, &connection);
        let decided = ruling.rule().map(|rule| (rule.policy.to_string(), rule.index));
        prop_assert_eq!((ruling.verdict, decided), naive(&policies, &workload, &connection));
        let explained = authorize(&mesh, &workload, &connection);
        prop_assert_eq!(&explained.outcome, &ruling);
        prop_assert_eq!(explained.reason, ruling.to_string());
    }
}

#[test]
fn a_decision_says_which_rule_decided_and_what_was_considered() {
    let port = |port: u16| vec![vec![Match { destination_ports: vec![port], ..Match::default() }]];
    let policy = |name: &str, action, rules, dry_run| Policy {
        name: name.into(),
        namespace: "a".into(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run,
    };
    let workload = Workload { uid: "w".into(), namespace: "a".into(), ..Workload::default() };
    let policies = [
        policy("deny-1", Action::Deny, vec![port(1)], false),
        policy("trial", Action::Deny, vec![port(80)], true),
        policy("web", Action::Allow, vec![port(1), port(80)], false),
    ];
    let mesh = Mesh::new([workload.clone()], [], policies, []);
    let address = |a: &str| a.parse::<SocketAddr>().unwrap();
    let connection =
        Connection { client: address("10.0.0.1:1").into(), identity: None, destination: address("10.0.0.2:80").into() };
    let decision = authorize(&mesh, &workload, &connection);
    assert!(matches!(&decision.outcome.why, Why::Allowed(rule) if rule.policy == "a/web" && rule.index == 1));
    assert_eq!(decision.reason, "allowed by: a/web (rule 2)");
    assert_eq!(
        decision.considered,
        ["deny policy a/deny-1 does not match", "deny policy a/trial (dry run) matches by rule 1"]
    );
    let (action, rule) = decision.outcome.dry_run.unwrap();
    assert_eq!((action, rule.to_string().as_str()), (Action::Deny, "a/trial (rule 1)"));
}
