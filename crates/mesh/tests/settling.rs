//! Whatever the order, the split and the repetition of pushes, the mesh in the end is the same, and
//! no decision on the way is one that neither the old nor the new configuration makes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mesh::authorize::{Connection, RulingReason, Verdict, check};
use mesh::policy::{Action, Match, PolicyScope};
use mesh::route::route;
use mesh::workload::Protocol;
use mesh::{
    Mesh, OrigDst, Policy, Ports, Removal, Resource, Service, SettlingStore, Text, Workload,
};
use proptest::prelude::*;

/// Longer than anything waits.
const SETTLED: Duration = Duration::from_secs(10);
const POLICIES: usize = 4;

/// A configuration, by resource name.
#[derive(Debug, Clone, Default, PartialEq)]
struct Config {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
    policies: BTreeMap<String, Policy>,
}

impl Config {
    fn mesh(&self) -> Mesh {
        Mesh::new(
            self.workloads.values().cloned(),
            self.services.values().cloned(),
            self.policies.values().cloned(),
            [],
        )
    }
}

/// A change of one resource.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a few of them, in tests
enum Change {
    Put(Resource),
    RemoveAddress(String),
    RemovePolicy(String),
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

prop_compose! {
    /// Pods of two clusters with the same names; some share an address.
    fn workload()(
        n in 0u8..4,
        cluster in prop::sample::select(vec!["one", "two"]),
        address in 0u8..6,
        is_in_mesh in any::<bool>(),
        service in prop::option::of(0u8..2),
        policies in prop::collection::btree_set(0..POLICIES, 0..3),
    ) -> Workload {
        Workload {
            uid: format!("{cluster}//Pod/a/pod-{n}").into(),
            name: format!("pod-{n}").into(),
            namespace: "a".into(),
            cluster_id: cluster.into(),
            workload_ips: vec![ip(address)],
            protocol: if is_in_mesh { Protocol::Hbone } else { Protocol::Tcp },
            services: service
                .map(|s| (Text::from(format!("a/s{s}")), Ports::default()))
                .into_iter()
                .collect(),
            authorization_policies: policies.iter().map(|p| format!("a/p{p}").into()).collect(),
            ..Workload::default()
        }
    }
}

prop_compose! {
    fn service()(
        n in 0u8..2,
        vip in prop::sample::select(vec!["/10.96.0.1", "/10.96.0.2", "/10.0.0.0/29"]),
    ) -> Service {
        Service {
            name: format!("s{n}").into(),
            namespace: "a".into(),
            hostname: format!("s{n}").into(),
            vips: vec![vip.parse().unwrap()],
            ports: [(80, 8080)].into_iter().collect(),
            ..Service::default()
        }
    }
}

prop_compose! {
    fn policy()(
        n in 0..POLICIES,
        scope in prop::sample::select(vec![
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::WorkloadSelector,
            PolicyScope::WorkloadSelector,
        ]),
        action in prop::sample::select(vec![Action::Allow, Action::Deny]),
        port in 80u16..82,
    ) -> Policy {
        let destination_ports = vec![port];
        Policy {
            name: format!("p{n}").into(),
            namespace: "a".into(),
            scope,
            action,
            rules: vec![vec![vec![Match { destination_ports, ..Match::default() }]]],
            dry_run: false,
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let uid = |(n, cluster)| Change::RemoveAddress(format!("{cluster}//Pod/a/pod-{n}"));
    prop_oneof![
        4 => workload().prop_map(|w| Change::Put(Resource::Workload(w))),
        1 => service().prop_map(|s| Change::Put(Resource::Service(s))),
        4 => policy().prop_map(|p| Change::Put(Resource::Policy(p))),
        1 => (0u8..4, prop::sample::select(vec!["one", "two"])).prop_map(uid),
        1 => (0u8..2).prop_map(|n| Change::RemoveAddress(format!("a/s{n}"))),
        2 => (0..POLICIES).prop_map(|n| Change::RemovePolicy(format!("a/p{n}"))),
    ]
}

fn apply_to_config(config: &mut Config, change: &Change) {
    match change.clone() {
        Change::Put(Resource::Workload(w)) => {
            config.workloads.insert(w.uid.to_string(), w);
        }
        Change::Put(Resource::Service(s)) => {
            config.services.insert(s.key(), s);
        }
        Change::Put(Resource::Policy(p)) => {
            config.policies.insert(p.key(), p);
        }
        Change::Put(other) => panic!("{other:?}"),
        Change::RemoveAddress(name) => {
            config.workloads.remove(&name);
            config.services.remove(&name);
        }
        Change::RemovePolicy(key) => {
            config.policies.remove(&key);
        }
    }
}

fn push(store: &mut SettlingStore, changes: &[Change], now: Instant) {
    let (mut upserts, mut removed) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Put(resource) => upserts.push(resource.clone()),
            Change::RemoveAddress(name) => removed.push(Removal::Address(name)),
            Change::RemovePolicy(key) => removed.push(Removal::Policy(key)),
        }
    }
    store.apply(upserts, removed, now);
}

fn connection(port: u16) -> Connection {
    let address = |port| SocketAddr::new(ip(9), port).into();
    Connection {
        client: address(1),
        identity: None,
        destination: SocketAddr::new(ip(9), port).into(),
    }
}

/// The ruling of each workload for connections to some ports.
fn rulings(mesh: &Mesh) -> BTreeMap<(String, u16), RulingReason> {
    let of = |w: &std::sync::Arc<Workload>| {
        let ruling = |port| check(mesh, w, &connection(port)).reason;
        [80, 81, 82].map(|port| ((w.uid.to_string(), port), ruling(port)))
    };
    mesh.workloads().flat_map(of).collect()
}

/// All decisions, as text.
fn decisions(mesh: &Mesh) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = rulings(mesh)
        .into_iter()
        .map(|(key, reason)| (format!("{key:?}"), format!("{reason:?}")))
        .collect();
    let source = Workload {
        namespace: "a".into(),
        ..Workload::default()
    };
    let pods = (0..6).map(ip);
    let vips = [1, 2].map(|n| Ipv4Addr::new(10, 96, 0, n).into());
    for to in pods.chain(vips) {
        let at = |random| route(mesh, &source, OrigDst((to, 80).into()), random, &[]).outcome;
        let routes: std::collections::BTreeSet<String> =
            (0..16).map(|random| format!("{:?}", at(random))).collect();
        all.insert(format!("route to {to}"), format!("{routes:?}"));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A history: changes in pushes of random sizes, some of which are repeated at once, and
    /// reconnects, after which everything is sent again in another order.
    #[test]
    fn the_end_does_not_depend_on_the_history(
        history in prop::collection::vec(
            (prop::collection::vec(change(), 1..4), 0u64..3000, any::<bool>(), 0u8..8),
            1..25,
        ),
        order in any::<u64>(),
    ) {
        let mut now = Instant::now();
        let (mut store, mut config) = (SettlingStore::default(), Config::default());
        for (changes, pause, is_repeated, reconnect) in &history {
            // Resources of both types never share a push, and each is named once.
            for change in changes {
                apply_to_config(&mut config, change);
                push(&mut store, std::slice::from_ref(change), now);
                if *is_repeated {
                    push(&mut store, std::slice::from_ref(change), now);
                }
            }
            if *reconnect == 0 {
                let mut everything: Vec<Change> = all_of(&config);
                let by = usize::try_from(order % 7).unwrap() % everything.len().max(1);
                everything.rotate_left(by);
                push(&mut store, &everything, now);
            }
            now += Duration::from_millis(*pause);
            store.expire(now);
        }
        store.expire(now + SETTLED);
        prop_assert_eq!(store.deadline(), None);
        prop_assert_eq!(decisions(&store.snapshot()), decisions(&config.mesh()));
    }

    /// One change of the configuration, which arrives in pushes of one resource each, in any order.
    #[test]
    fn no_ruling_on_the_way_is_one_of_neither_configuration(
        changes in prop::collection::vec(change(), 0..20),
        edit in edit(),
        order in any::<u64>(),
    ) {
        let mut before = Config::default();
        changes.iter().for_each(|change| apply_to_config(&mut before, change));
        // Each workload exists, and no policy is missing.
        let known = before.policies.clone();
        for w in before.workloads.values_mut() {
            w.authorization_policies.retain(|key| known.contains_key(key.as_str()));
        }
        let mut after = before.clone();
        edit.apply(&mut after);
        let mut now = Instant::now();
        let mut store = SettlingStore::default();
        push(&mut store, &all_of(&before), now);
        now += SETTLED;
        store.expire(now);
        let (old, new) = (rulings(&before.mesh()), rulings(&after.mesh()));
        let mut pushes = difference(&before, &after);
        // A policy whose rules and selection change at once: workloads first, as istiod sends them.
        // Otherwise it could wait only if every change of rules did.
        let is_known = |p: &Policy| before.policies.contains_key(&p.key());
        let is_compound = matches!(&edit, Edit::Put(p, _) if is_known(p));
        if !is_compound {
            let by = usize::try_from(order % 5).unwrap() % pushes.len().max(1);
            pushes.rotate_left(by);
            if order % 2 == 0 {
                pushes.reverse();
            }
        }
        for one in &pushes {
            push(&mut store, std::slice::from_ref(one), now);
            now += Duration::from_millis(50);
            for (key, ruling) in rulings(&store.snapshot()) {
                let verdict = |reason: &RulingReason| verdict(reason);
                let expected = [old.get(&key).map(verdict), new.get(&key).map(verdict)];
                prop_assert!(
                    expected.contains(&Some(verdict(&ruling))),
                    "{:?}: {:?}, expected one of {:?} after {:?}", key, ruling, expected, one
                );
            }
        }
        store.expire(now + SETTLED);
        prop_assert_eq!(rulings(&store.snapshot()), new);
    }
}

fn verdict(reason: &RulingReason) -> Verdict {
    let ruling = mesh::authorize::Ruling {
        reason: reason.clone(),
        dry_run: Vec::new(),
    };
    ruling.verdict()
}

/// A change of the configuration that concerns one policy.
#[derive(Debug, Clone)]
enum Edit {
    /// The policy is created or replaced; these pods list it.
    Put(Policy, Vec<u8>),
    /// The policy is deleted.
    Delete(usize),
    /// The labels of these pods change, so that they list this policy only.
    Select(usize, Vec<u8>),
}

fn edit() -> impl Strategy<Value = Edit> {
    let pods = || prop::collection::vec(0u8..4, 0..4);
    prop_oneof![
        3 => (policy(), pods()).prop_map(|(p, pods)| Edit::Put(p, pods)),
        2 => (0..POLICIES).prop_map(Edit::Delete),
        1 => (0..POLICIES, pods()).prop_map(|(p, pods)| Edit::Select(p, pods)),
    ]
}

impl Edit {
    fn apply(&self, config: &mut Config) {
        let is_of =
            |w: &Workload, pods: &[u8]| pods.iter().any(|n| w.name.as_str() == format!("pod-{n}"));
        match self {
            Self::Put(policy, pods) => {
                let key = Text::from(policy.key());
                for w in config.workloads.values_mut() {
                    w.authorization_policies.retain(|k| *k != key);
                    if policy.scope == PolicyScope::WorkloadSelector && is_of(w, pods) {
                        w.authorization_policies.push(key.clone());
                    }
                }
                config.policies.insert(policy.key(), policy.clone());
            }
            Self::Delete(n) => {
                let key = format!("a/p{n}");
                config.policies.remove(&key);
                for w in config.workloads.values_mut() {
                    w.authorization_policies.retain(|k| k.as_str() != key);
                }
            }
            Self::Select(n, pods) => {
                let key = format!("a/p{n}");
                if config.policies.contains_key(&key) {
                    for w in config.workloads.values_mut().filter(|w| is_of(w, pods)) {
                        w.authorization_policies = vec![key.as_str().into()];
                    }
                }
            }
        }
    }
}

fn all_of(config: &Config) -> Vec<Change> {
    let workloads = config.workloads.values().cloned().map(Resource::Workload);
    let services = config.services.values().cloned().map(Resource::Service);
    let policies = config.policies.values().cloned().map(Resource::Policy);
    let all = workloads.chain(services).chain(policies);
    all.map(Change::Put).collect()
}

/// The changes from one configuration to another, of which each concerns one resource.
fn difference(before: &Config, after: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    for (uid, w) in &after.workloads {
        if before.workloads.get(uid) != Some(w) {
            changes.push(Change::Put(Resource::Workload(w.clone())));
        }
    }
    for (key, p) in &after.policies {
        if before.policies.get(key) != Some(p) {
            changes.push(Change::Put(Resource::Policy(p.clone())));
        }
    }
    let gone = before
        .policies
        .keys()
        .filter(|k| !after.policies.contains_key(*k));
    changes.extend(gone.map(|key| Change::RemovePolicy(key.clone())));
    changes
}

#[test]
fn a_policy_that_never_arrives_denies_after_five_seconds() {
    let workload = |policies: &[&str]| {
        Resource::Workload(Workload {
            uid: "w".into(),
            name: "w".into(),
            namespace: "a".into(),
            authorization_policies: policies.iter().map(|p| Text::from(*p)).collect(),
            ..Workload::default()
        })
    };
    let start = Instant::now();
    let mut store = SettlingStore::default();
    store.apply([workload(&[])], [], start);
    let ruling =
        |store: &mut SettlingStore| rulings(&store.snapshot())[&("w".to_owned(), 80)].clone();
    for second in 0..5 {
        // Changes in between do not prolong the wait.
        let now = start + Duration::from_secs(second);
        store.apply([workload(&["a/p0"])], [], now);
        store.expire(now);
        assert_eq!(
            ruling(&mut store),
            RulingReason::NoAllowPolicy,
            "{second} s"
        );
    }
    assert_eq!(store.deadline(), Some(start + Duration::from_secs(5)));
    assert!(store.expire(start + Duration::from_secs(5)));
    assert_eq!(
        ruling(&mut store),
        RulingReason::UnknownPolicy("a/p0".into())
    );
    assert_eq!(store.deadline(), None);
}
