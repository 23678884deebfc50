//! Compiled policies decide as the definition of policies does, which is written here as plainly as
//! can be.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh::authorize::{Connection, RulingReason, Verdict, authorize, check};
use mesh::policy::{Action, Match, PolicyScope, ServiceAccount, StringMatch};
use mesh::{Identity, Mesh, MeshSettings, Policy, Text, TrustDomains, Workload};
use proptest::prelude::*;

/// Evaluates policies by their definition: the verdict, and the policy and rule that decided.
fn naive(
    policies: &[Policy],
    workload: &Workload,
    c: &Connection,
) -> (Verdict, Option<(String, usize)>) {
    let known = |key: &Text| policies.iter().any(|p| p.key() == key.as_str());
    if !workload.authorization_policies.iter().all(known) {
        return (Verdict::Deny, None);
    }
    let global = policies.iter().filter(|p| p.scope == PolicyScope::Global);
    let local = policies
        .iter()
        .filter(|p| p.scope == PolicyScope::Namespace && p.namespace == workload.namespace);
    let selected = workload
        .authorization_policies
        .iter()
        .map(|key| policies.iter().find(|p| p.key() == key.as_str()));
    let mut applying: Vec<&Policy> = global.chain(local).chain(selected.flatten()).collect();
    applying.retain(|p| !p.dry_run);
    for action in [Action::Deny, Action::Allow] {
        for policy in applying.iter().filter(|p| p.action == action) {
            if let Some(rule) = policy.rules.iter().position(|rule| rule_holds(rule, c)) {
                let verdict = if action == Action::Deny {
                    Verdict::Deny
                } else {
                    Verdict::Allow
                };
                return (verdict, Some((policy.key(), rule)));
            }
        }
    }
    let any_allow = applying.iter().any(|p| p.action == Action::Allow);
    (
        if any_allow {
            Verdict::Deny
        } else {
            Verdict::Allow
        },
        None,
    )
}

fn rule_holds(clauses: &[Vec<Match>], c: &Connection) -> bool {
    clauses
        .iter()
        .all(|clause| clause.is_empty() || clause.iter().any(|m| match_holds(m, c)))
}

fn match_holds(m: &Match, c: &Connection) -> bool {
    let text = |list: &[StringMatch], text: Option<&str>| {
        text.is_some_and(|t| list.iter().any(|m| m.matches(t)))
    };
    let ip = |list: &[IpNet], ip: IpAddr| list.iter().any(|net| net.contains(&ip));
    let account = |list: &[ServiceAccount]| {
        let same = |i: &Identity, a: &ServiceAccount| {
            i.namespace == a.namespace && i.service_account == a.service_account
        };
        list.iter()
            .any(|a| c.identity.as_ref().is_some_and(|i| same(i, a)))
    };
    let namespace = c.identity.as_ref().map(|i| i.namespace.as_str());
    let principal = c.identity.as_ref().map(Identity::principal);
    let mut any_given = false;
    let mut holds = true;
    let mut kind = |given: bool, matches: bool| {
        any_given |= given;
        holds &= !given || matches;
    };
    kind(!m.namespaces.is_empty(), text(&m.namespaces, namespace));
    kind(
        !m.not_namespaces.is_empty(),
        !text(&m.not_namespaces, namespace),
    );
    kind(
        !m.principals.is_empty(),
        text(&m.principals, principal.as_deref()),
    );
    kind(
        !m.not_principals.is_empty(),
        !text(&m.not_principals, principal.as_deref()),
    );
    kind(!m.service_accounts.is_empty(), account(&m.service_accounts));
    kind(
        !m.not_service_accounts.is_empty(),
        !account(&m.not_service_accounts),
    );
    kind(!m.source_ips.is_empty(), ip(&m.source_ips, c.client.ip()));
    kind(
        !m.not_source_ips.is_empty(),
        !ip(&m.not_source_ips, c.client.ip()),
    );
    kind(
        !m.destination_ips.is_empty(),
        ip(&m.destination_ips, c.destination.ip()),
    );
    kind(
        !m.not_destination_ips.is_empty(),
        !ip(&m.not_destination_ips, c.destination.ip()),
    );
    kind(
        !m.destination_ports.is_empty(),
        m.destination_ports.contains(&c.destination.port()),
    );
    kind(
        !m.not_destination_ports.is_empty(),
        !m.not_destination_ports.contains(&c.destination.port()),
    );
    any_given && holds
}

/// Usually an empty list, so that some matches are likely to hold.
fn list<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (prop::collection::vec(of, 1..4), prop::bool::weighted(0.2))
        .prop_map(|(all, given)| if given { all } else { vec![] })
}

fn words() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        prop::sample::select(vec!["a", "ab", "t/ns/a/sa/b", "t/ns/ab/sa/b", "b"])
            .prop_map(|t| StringMatch::Exact(t.into())),
        prop::sample::select(vec!["a", "t/", "t/ns/ab"])
            .prop_map(|t| StringMatch::Prefix(t.into())),
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
    (names(), names()).prop_map(|(n, s)| ServiceAccount {
        namespace: n.into(),
        service_account: s.into(),
    })
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
            namespaces, not_namespaces,
            principals, not_principals,
            service_accounts, not_service_accounts,
            source_ips, not_source_ips,
            destination_ips, not_destination_ips,
            destination_ports, not_destination_ports,
            not_understood: vec![],
        }
    }
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let scopes = prop::sample::select(vec![
        PolicyScope::Global,
        PolicyScope::Namespace,
        PolicyScope::WorkloadSelector,
    ]);
    let actions = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let rules = prop::collection::vec(
        prop::collection::vec(prop::collection::vec(matches(), 0..3), 0..3),
        0..3,
    );
    let namespaces = prop::sample::select(vec!["a", "b"]);
    let one = (
        scopes,
        actions,
        rules,
        namespaces,
        prop::bool::weighted(0.2),
    );
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let policy = |(n, (scope, action, rules, namespace, dry_run)): (usize, _)| {
            let (name, namespace): (Text, Text) = (format!("p{n}").into(), <&str>::into(namespace));
            Policy {
                name,
                namespace,
                scope,
                action,
                rules,
                dry_run,
            }
        };
        let mut all: Vec<Policy> = all.into_iter().enumerate().map(policy).collect();
        all.sort_by_key(Policy::key); // the order in which policies of one scope are evaluated
        all
    })
}

prop_compose! {
    fn connection()(
        identity in prop::option::of((
            prop::sample::select(vec!["a", "ab"]),
            prop::sample::select(vec!["a", "b"]),
        )),
        client in prop::sample::select(vec![
            "10.0.0.1:1", "10.0.0.3:1", "11.0.0.1:1", "[fd00::1]:1", "[fd01::1]:1",
        ]),
        ip in prop::sample::select(vec!["10.0.0.2", "fd00::2"]),
        port in 79u16..83,
    ) -> Connection {
        let identity =
            identity.map(|(ns, sa)| format!("spiffe://t/ns/{ns}/sa/{sa}").parse().unwrap());
        let destination = SocketAddr::new(ip.parse().unwrap(), port).into();
        Connection { client: client.parse::<SocketAddr>().unwrap().into(), identity, destination }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn compiled_policies_agree_with_naive_evaluation(
        policies in policies(),
        connection in connection(),
        selected in prop::collection::vec(0usize..6, 0..3),
    ) {
        // An index out of range stands for an unknown policy.
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
        prop_assert_eq!((ruling.verdict(), decided), naive(&policies, &workload, &connection));
        let explained = authorize(&mesh, &workload, &connection);
        prop_assert_eq!(&explained.outcome, &ruling);
        prop_assert_eq!(explained.reason, ruling.to_string());
    }
}

#[test]
fn a_decision_names_the_deciding_rule_and_considered_policies() {
    let port = |port: u16| {
        vec![vec![Match {
            destination_ports: vec![port],
            ..Match::default()
        }]]
    };
    let policy = |name: &str, action, rules, dry_run| Policy {
        name: name.into(),
        namespace: "a".into(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run,
    };
    let workload = Workload {
        uid: "w".into(),
        namespace: "a".into(),
        ..Workload::default()
    };
    let policies = [
        policy("deny-1", Action::Deny, vec![port(1)], false),
        policy("dry-run", Action::Deny, vec![port(80)], true),
        policy("web", Action::Allow, vec![port(1), port(80)], false),
    ];
    let mesh = Mesh::new([workload.clone()], [], policies, []);
    let address = |a: &str| a.parse::<SocketAddr>().unwrap();
    let connection = Connection {
        client: address("10.0.0.1:1").into(),
        identity: None,
        destination: address("10.0.0.2:80").into(),
    };
    let decision = authorize(&mesh, &workload, &connection);
    assert!(matches!(
        &decision.outcome.reason,
        RulingReason::Allowed(rule) if rule.policy == "a/web" && rule.index == 1
    ));
    assert_eq!(decision.reason, "allowed by: a/web (rule 2)");
    assert_eq!(
        decision.considered,
        [
            "deny policy a/deny-1 does not match",
            "deny policy a/dry-run (dry run) matches by rule 1"
        ]
    );
    let trials: Vec<String> = decision
        .outcome
        .dry_run
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(trials, ["Deny by a/dry-run (rule 1)"]);
}

/// A policy of one rule with one match, for namespace `a`.
fn policy_of(name: &str, action: Action, m: Match, dry_run: bool) -> Policy {
    Policy {
        name: name.into(),
        namespace: "a".into(),
        scope: PolicyScope::Namespace,
        action,
        rules: vec![vec![vec![m]]],
        dry_run,
    }
}

/// The ruling for a connection from 10.0.0.1 to port 80 of a workload in namespace `a`.
fn ruling(policies: &[Policy]) -> mesh::authorize::Ruling {
    let workload = Workload {
        uid: "w".into(),
        name: "w".into(),
        namespace: "a".into(),
        ..Workload::default()
    };
    let mesh = Mesh::new([workload.clone()], [], policies.to_vec(), []);
    let address = |a: &str| a.parse::<SocketAddr>().unwrap().into();
    let connection = Connection {
        client: address("10.0.0.1:1"),
        identity: None,
        destination: "10.0.0.2:80".parse::<SocketAddr>().unwrap().into(),
    };
    check(&mesh, &workload, &connection)
}

#[test]
fn what_is_not_understood_denies_and_never_allows() {
    let ip = |net: &str| vec![net.parse::<IpNet>().unwrap()];
    let source = |net: &str, part: &str| Match {
        source_ips: ip(net),
        not_understood: vec![part.into()],
        ..Match::default()
    };
    let not_source = |net: &str| Match {
        not_source_ips: ip(net),
        not_understood: vec!["not_source_ips".into()],
        ..Match::default()
    };
    // The match, what a deny policy with it does, what an allow policy does.
    for (m, deny, allow) in [
        (source("10.0.0.0/8", "source_ips"), "certain", "certain"),
        (source("11.0.0.0/8", "source_ips"), "doubt", "doubt"),
        (source("10.0.0.0/8", "field 13"), "doubt", "doubt"),
        (source("11.0.0.0/8", "field 13"), "no", "no"),
        (source("11.0.0.0/8", "destination_ports"), "no", "no"),
        (not_source("10.0.0.0/8"), "no", "no"),
        (not_source("11.0.0.0/8"), "doubt", "doubt"),
        (Match::in_doubt("field 13"), "doubt", "doubt"),
    ] {
        let denied = match ruling(&[policy_of("p", Action::Deny, m.clone(), false)]).reason {
            RulingReason::Denied(_) => "certain",
            RulingReason::DeniedInDoubt(..) => "doubt",
            RulingReason::NoAllowPolicy => "no",
            other => panic!("{other:?}"),
        };
        assert_eq!(denied, deny, "deny {m:?}");
        let allowed = match ruling(&[policy_of("p", Action::Allow, m.clone(), false)]).reason {
            RulingReason::Allowed(_) => "certain",
            RulingReason::NotAllowedInDoubt(..) => "doubt",
            RulingReason::NoneAllowed => "no",
            other => panic!("{other:?}"),
        };
        assert_eq!(allowed, allow, "allow {m:?}");
    }
    let text = ruling(&[policy_of(
        "p",
        Action::Deny,
        Match::in_doubt("field 13"),
        false,
    )]);
    assert_eq!(
        text.to_string(),
        "denied by: a/p (rule 1), in which this version does not understand: field 13"
    );
    let placeholder = ruling(&[Policy::placeholder("a/unusable")]);
    assert_eq!(placeholder.verdict(), Verdict::Deny);
    assert_eq!(
        ruling(&[Policy::placeholder("b/unusable")]).verdict(),
        Verdict::Allow
    );
    assert_eq!(
        ruling(&[Policy::placeholder("istio-system/unusable")]).verdict(),
        Verdict::Deny
    );
}

#[test]
fn each_policy_on_trial_is_reported_for_itself() {
    let port = |port| Match {
        destination_ports: vec![port],
        ..Match::default()
    };
    let trials = |policies: &[Policy]| -> Vec<String> {
        ruling(policies)
            .dry_run
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let deny = |name, p, trial| policy_of(name, Action::Deny, port(p), trial);
    let allow = |name, p, trial| policy_of(name, Action::Allow, port(p), trial);
    assert_eq!(
        trials(&[
            deny("d1", 80, true),
            deny("d2", 80, true),
            deny("d3", 81, true),
            allow("a1", 80, true),
            allow("a2", 81, true),
        ]),
        [
            "Deny by a/d1 (rule 1)",
            "Deny by a/d2 (rule 1)",
            "Allow by a/a1 (rule 1)",
            "Deny by a/a2: an allow policy, and no rule matches",
        ]
    );
    // An enforced policy that decides hides no trial, and one that allows saves the connection.
    assert_eq!(
        trials(&[
            deny("d", 80, false),
            deny("d2", 80, true),
            allow("a", 81, true)
        ]),
        ["Deny by a/d2 (rule 1)"]
    );
    assert_eq!(
        trials(&[allow("a", 80, false), allow("a2", 81, true)]),
        [""; 0]
    );
    assert_eq!(
        trials(&[
            allow("a", 81, false),
            allow("a2", 80, true),
            allow("a3", 82, true)
        ]),
        ["Allow by a/a2 (rule 1)"]
    );
}

#[test]
fn aliases_and_cluster_local_in_policies_mean_the_own_trust_domain() {
    let workload = Workload {
        uid: "w".into(),
        name: "w".into(),
        namespace: "a".into(),
        trust_domain: "new.example".into(),
        ..Workload::default()
    };
    let allows = |principal: StringMatch, client: &str, aliases: &[&str]| {
        let m = Match {
            principals: vec![principal],
            ..Match::default()
        };
        let policies = [policy_of("p", Action::Allow, m, false)];
        let mut mesh = Mesh::new([workload.clone()], [], policies, []);
        let aliases: Vec<String> = aliases.iter().map(|a| (*a).to_owned()).collect();
        mesh.set(MeshSettings {
            trust_domains: TrustDomains::new("new.example", &aliases).into(),
            ..MeshSettings::default()
        });
        let connection = Connection {
            client: "10.0.0.1:1".parse::<SocketAddr>().unwrap().into(),
            identity: Some(format!("spiffe://{client}/ns/a/sa/b").parse().unwrap()),
            destination: "10.0.0.2:80".parse::<SocketAddr>().unwrap().into(),
        };
        check(&mesh, &workload, &connection).verdict() == Verdict::Allow
    };
    let exact = |domain: &str| StringMatch::Exact(format!("{domain}/ns/a/sa/b").into());
    let old = &["old.example"][..];
    // The trust domain in the policy, that of the client, the aliases, and whether it may connect.
    for (policy, client, aliases, expected) in [
        ("new.example", "new.example", &[][..], true),
        ("cluster.local", "new.example", &[], true),
        ("cluster.local", "old.example", &[], false),
        ("new.example", "old.example", &[], false),
        ("old.example", "new.example", &[], false),
        ("new.example", "old.example", old, true),
        ("old.example", "new.example", old, true),
        ("cluster.local", "old.example", old, true),
        ("other.example", "new.example", old, false),
        ("new.example", "other.example", old, false),
        ("cluster.local", "other.example", old, false),
    ] {
        let case = format!("{policy} in the policy, {client} as client, {aliases:?}");
        assert_eq!(allows(exact(policy), client, aliases), expected, "{case}");
    }
    let prefix = StringMatch::Prefix("cluster.local/ns/a/".into());
    assert!(allows(prefix, "old.example", old));
}

#[test]
fn a_principal_that_can_never_match_is_named() {
    let why = |principal: StringMatch| {
        let m = Match {
            principals: vec![principal],
            ..Match::default()
        };
        let domains = TrustDomains::new("new.example", &["old.example".to_owned()]);
        let policy = policy_of("p", Action::Allow, m, false);
        policy.impossible_principal(&domains, Some("new.example"))
    };
    for possible in ["new.example", "old.example", "cluster.local"] {
        let principal = StringMatch::Exact(format!("{possible}/ns/a/sa/b").into());
        assert_eq!(why(principal), None, "{possible}");
    }
    assert_eq!(why(StringMatch::Prefix("new.example/ns/a/".into())), None);
    assert_eq!(why(StringMatch::Suffix("/sa/b".into())), None);
    assert_eq!(
        why(StringMatch::Exact("spiffe://new.example/ns/a/sa/b".into())).unwrap(),
        "rule 1: principal \"spiffe://new.example/ns/a/sa/b\" can never match: it begins with \
         spiffe://, unlike principals in policies"
    );
    let foreign = StringMatch::Exact("x.example/ns/a/sa/b".into());
    assert!(
        why(foreign)
            .unwrap()
            .ends_with("trust domain new.example or an alias of it")
    );
    for malformed in ["a/b", "new.example/ns/a/sa/", "sa/b"] {
        assert!(
            why(StringMatch::Exact(malformed.into())).is_some(),
            "{malformed}"
        );
    }
}
