//! A store changed step by step equals one built at once, and snapshots never change.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh::policy::{Action, PolicyScope};
use mesh::route::{Route, route};
use mesh::service::{LoadBalancer, LoadBalancerMode, Scope};
use mesh::workload::{HealthStatus, Locality};
use mesh::{Mesh, OrigDst, Policy, Ports, Removal, Resource, Service, Store, Text, Workload};
use proptest::prelude::*;

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a few of them, in tests
enum Step {
    Put(Resource),
    RemoveAddress(String),
    RemovePolicy(String),
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

prop_compose! {
    fn workload()(
        n in 0u8..12,
        address in prop::option::weighted(0.9, 0u8..12),
        services in prop::collection::btree_set(0u8..4, 0..3),
        own_port in prop::option::of(8080u16..8083),
        region in prop::sample::select(vec!["east", "west"]),
        healthy in prop::bool::weighted(0.8),
        capacity in 0u32..3,
        policy in prop::option::of(0u8..4),
    ) -> Resource {
        let ports: Ports = own_port.map(|p| (80, p)).into_iter().collect();
        Resource::Workload(Workload {
            uid: format!("uid-{n}").into(),
            name: format!("pod-{}", n / 2).into(),
            namespace: "a".into(),
            workload_ips: address.map(ip).into_iter().collect(),
            services: services.iter().map(|s| (format!("a/s{s}").into(), ports.clone())).collect(),
            locality: Locality { region: region.into(), ..Locality::default() },
            status: if healthy { HealthStatus::Healthy } else { HealthStatus::Unhealthy },
            authorization_policies: policy.map(|p| format!("a/p{p}").into()).into_iter().collect(),
            capacity,
            ..Workload::default()
        })
    }
}

prop_compose! {
    fn service()(
        n in 0u8..4,
        vip in prop::sample::select(vec![
            "/10.96.0.1", "/10.96.0.2", "/10.96.0.0/24", "/10.96.0.0/16",
        ]),
        failover in any::<bool>(),
        canonical in any::<bool>(),
    ) -> Resource {
        let mode = if failover { LoadBalancerMode::Failover } else { LoadBalancerMode::Standard };
        Resource::Service(Service {
            name: format!("s{n}").into(),
            namespace: "a".into(),
            hostname: format!("s{n}").into(),
            vips: vec![vip.parse().unwrap()],
            ports: [(80, 8080)].into_iter().collect(),
            load_balancer: LoadBalancer {
                routing_preferences: vec![Scope::Region],
                mode,
                ..LoadBalancer::default()
            },
            canonical,
            ..Service::default()
        })
    }
}

prop_compose! {
    fn policy()(
        n in 0u8..4,
        scope in prop::sample::select(vec![
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::WorkloadSelector,
        ]),
        action in prop::sample::select(vec![Action::Allow, Action::Deny]),
    ) -> Resource {
        let (name, namespace) = (format!("p{n}").into(), "a".into());
        Resource::Policy(Policy {
            name,
            namespace,
            scope,
            action,
            rules: vec![vec![]],
            dry_run: false,
        })
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => workload().prop_map(Step::Put),
        2 => service().prop_map(Step::Put),
        1 => policy().prop_map(Step::Put),
        2 => (0u8..12).prop_map(|n| Step::RemoveAddress(format!("uid-{n}"))),
        1 => (0u8..4).prop_map(|n| Step::RemoveAddress(format!("a/s{n}"))),
        1 => (0u8..4).prop_map(|n| Step::RemovePolicy(format!("a/p{n}"))),
    ]
}

/// The results of all lookups, as text. Random choices are taken at many points, so that their
/// order does not matter.
fn lookups(mesh: &Mesh) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let key = |s: &Arc<Service>| s.key();
    let region = |region: &str| Workload {
        namespace: "a".into(),
        locality: Locality {
            region: region.into(),
            ..Locality::default()
        },
        ..Workload::default()
    };
    for last in 0..12 {
        let found = mesh.workload_by_ip("", ip(last)).map(|w| &w.uid);
        all.insert(format!("address {last}"), format!("{found:?}"));
        let vip = Ipv4Addr::new(10, 96, 0, last).into();
        all.insert(
            format!("vip {last}"),
            format!("{:?}", mesh.service_by_vip("", vip, "a").map(key)),
        );
        for from in ["east", "west"] {
            let to =
                |random| route(mesh, &region(from), OrigDst((vip, 80).into()), random, &[]).outcome;
            let to: std::collections::BTreeSet<String> =
                (0..24).map(to).map(|r| format!("{r:?}")).collect();
            all.insert(format!("route from {from} to {last}"), format!("{to:?}"));
        }
    }
    for n in 0..6 {
        let mut uids: Vec<&Text> = mesh
            .workloads_by_name("a", &format!("pod-{n}"))
            .iter()
            .map(|w| &w.uid)
            .collect();
        uids.sort();
        all.insert(format!("name {n}"), format!("{uids:?}"));
    }
    all.insert(
        "workloads".into(),
        format!("{:?}", mesh.workloads().collect::<Vec<_>>()),
    );
    all.insert(
        "services".into(),
        format!("{:?}", mesh.services().collect::<Vec<_>>()),
    );
    all.insert(
        "policies".into(),
        format!("{:?}", mesh.policies().collect::<Vec<_>>()),
    );
    let staged = mesh.staged_services().into_iter().map(|(key, mut uids)| {
        uids.sort();
        (key, uids)
    });
    all.insert("staged".into(), format!("{:?}", staged.collect::<Vec<_>>()));
    let of = |w: &Arc<Workload>| mesh::authorize::check(mesh, w, &connection()).to_string();
    all.insert(
        "rulings".into(),
        format!("{:?}", mesh.workloads().map(of).collect::<Vec<_>>()),
    );
    all
}

fn connection() -> mesh::authorize::Connection {
    let address = std::net::SocketAddr::new(ip(1), 80);
    mesh::authorize::Connection {
        client: address.into(),
        identity: None,
        destination: address.into(),
    }
}

fn apply(store: &mut Store, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Put(resource) => store.apply([resource.clone()], []),
            Step::RemoveAddress(name) => store.apply([], [Removal::Address(name)]),
            Step::RemovePolicy(key) => store.apply([], [Removal::Policy(key)]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn stepwise_updates_equal_a_mesh_built_at_once(
        before in prop::collection::vec(step(), 0..40),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let mut store = Store::default();
        apply(&mut store, &before);
        let snapshot = store.snapshot();
        let seen = lookups(&snapshot);
        apply(&mut store, &after);
        prop_assert_eq!(seen, lookups(&snapshot), "a snapshot changed");
        let now = store.snapshot();
        fn copies<'a, T: Clone + 'a>(all: impl Iterator<Item = &'a Arc<T>>) -> Vec<T> {
            all.map(|x| T::clone(x)).collect()
        }
        let at_once = Mesh::new(
            copies(now.workloads()),
            copies(now.services()),
            copies(now.policies()),
            [],
        );
        prop_assert_eq!(lookups(&now), lookups(&at_once));
    }
}

#[test]
fn workloads_may_arrive_before_their_service_and_outlive_it() {
    let workload = Workload {
        uid: "w".into(),
        workload_ips: vec![ip(1)],
        services: [(Text::from("a/s"), Ports::default())]
            .into_iter()
            .collect(),
        ..Workload::default()
    };
    let service = Service {
        namespace: "a".into(),
        hostname: "s".into(),
        vips: vec!["/10.96.0.1".parse().unwrap()],
        ports: [(80, 8080)].into_iter().collect(),
        ..Service::default()
    };
    let mut store = Store::default();
    store.apply([Resource::Workload(workload)], []);
    assert_eq!(store.snapshot().staged_services().len(), 1);
    let to = |store: &mut Store| {
        let vip = OrigDst("10.96.0.1:80".parse().unwrap());
        route(&store.snapshot(), &Workload::default(), vip, 0, &[]).outcome
    };
    for _ in 0..2 {
        assert!(
            matches!(to(&mut store), Route::Direct { workload: None, .. }),
            "unknown address"
        );
        store.apply([Resource::Service(service.clone())], []);
        assert!(store.snapshot().staged_services().is_empty());
        assert!(matches!(
            to(&mut store),
            Route::Direct {
                workload: Some(_),
                ..
            }
        ));
        store.apply([], [Removal::Address("a/s"), Removal::Address("unknown")]);
    }
    store.apply([], [Removal::Address("w")]);
    assert!(store.snapshot().staged_services().is_empty());
}

#[test]
fn repeated_resources_change_nothing() {
    let workload = Workload {
        uid: "w".into(),
        workload_ips: vec![ip(1)],
        ..Workload::default()
    };
    let policy = Policy {
        name: "p".into(),
        namespace: "a".into(),
        scope: PolicyScope::Global,
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    };
    let mut store = Store::default();
    store.apply(
        [
            Resource::Workload(workload.clone()),
            Resource::Policy(policy.clone()),
        ],
        [],
    );
    let before = store.snapshot();
    store.apply(
        [
            Resource::Workload(workload),
            Resource::Policy(policy.clone()),
        ],
        [],
    );
    let after = store.snapshot();
    assert!(Arc::ptr_eq(
        before.workload("w").unwrap(),
        after.workload("w").unwrap()
    ));
    let policies = |mesh: &Mesh| mesh.policy_set(mesh.workload("w").unwrap());
    assert!(
        policies(&before) == policies(&after),
        "open connections need no new authorization"
    );
    store.apply(
        [Resource::Policy(Policy {
            dry_run: true,
            ..policy
        })],
        [],
    );
    assert!(policies(&before) != policies(&store.snapshot()));
}

#[test]
fn a_policy_set_changes_only_with_the_policies_of_its_workload() {
    let workload = |namespace: &str, policies: &[&str]| Workload {
        uid: namespace.into(),
        namespace: namespace.into(),
        authorization_policies: policies.iter().map(|p| Text::from(*p)).collect(),
        ..Workload::default()
    };
    let policy = |namespace: &str, name: &str, scope, dry_run| {
        Resource::Policy(Policy {
            name: name.into(),
            namespace: namespace.into(),
            scope,
            action: Action::Deny,
            rules: vec![],
            dry_run,
        })
    };
    let mut store = Store::default();
    let workloads = [workload("a", &["a/p"]), workload("b", &[])];
    store.apply(workloads.map(Resource::Workload), []);
    let mut before = store.snapshot();
    let mut changed = |store: &mut Store| {
        let after = store.snapshot();
        let of = |mesh: &Mesh, uid: &str| mesh.policy_set(mesh.workload(uid).unwrap());
        let changed = ["a", "b"].map(|uid| of(&before, uid) != of(&after, uid));
        before = after;
        changed
    };
    use PolicyScope::{Global, Namespace, WorkloadSelector};
    for (name, namespace, scope, expected) in [
        ("p", "a", WorkloadSelector, [true, false]),
        ("other", "a", WorkloadSelector, [false, false]),
        ("all", "a", Namespace, [true, false]),
        ("all", "b", Namespace, [false, true]),
        ("root", "istio-system", Global, [true, true]),
    ] {
        for dry_run in [true, false] {
            store.apply([policy(namespace, name, scope, dry_run)], []);
            assert_eq!(changed(&mut store), expected, "{namespace}/{name} is new");
            store.apply([policy(namespace, name, scope, dry_run)], []);
            assert_eq!(changed(&mut store), [false; 2], "{namespace}/{name} again");
        }
    }
    store.apply([], [Removal::Policy("a/p"), Removal::Policy("a/other")]);
    assert_eq!(changed(&mut store), [true, false], "they are removed");
    store.apply([Resource::Workload(workload("c", &[]))], []);
    assert_eq!(changed(&mut store), [false; 2], "another workload");
}
