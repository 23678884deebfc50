//! The cost of the proxy's mesh state at several sizes: load, update, lookup, and memory.

#![allow(clippy::disallowed_types)] // measures each size in a child process of this program

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::protobuf::Any;
use api::workload as wire;
use mesh::authorize::{Connection, check};
use mesh::policy::{Action, Match, PolicyScope, StringMatch};
use mesh::route::{route, route_unexplained};
use mesh::service::{LoadBalancer, LoadBalancerMode, Scope};
use mesh::workload::{HealthStatus, Locality, Protocol, WorkloadType};
use mesh::{Mesh, OrigDst, Policy, Resource, Service, Store, Text, Workload};
use prost::Message;

/// The argument that makes this program measure one size.
pub const ONE_SIZE: &str = "state-of-size";

const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 200_000];
const WORKLOADS_PER_SERVICE: u32 = 10;
const UPDATES: u32 = 20_000;
const LOOKUPS: u32 = 200_000;
const CHURN_PER_SECOND: u32 = 1_000;
const CHURN: Duration = Duration::from_secs(3);

/// Measures all sizes.
pub fn run() {
    for size in SIZES {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([ONE_SIZE, &size.to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

/// Measures one size.
pub fn one_size(workloads: u32) {
    decoding(workloads);
    let services = workloads / WORKLOADS_PER_SERVICE;
    let before = resident();
    let all: Vec<Resource> = policies()
        .chain((0..services).map(|n| Resource::Service(service(n))))
        .chain((0..workloads).map(|n| Resource::Workload(workload(n, services))))
        .collect();
    let with_resources = resident();
    let mut store = Store::default();
    let begun = Instant::now();
    store.apply(all, []);
    let snapshot = store.snapshot();
    let load = begun.elapsed();
    // The resources have been moved into the store, so they are not counted twice.
    let memory = resident().saturating_sub(before);
    println!(
        "state   {workloads} workloads, {services} services: loaded in {:.1} ms, {:.1} MiB, {} \
         bytes a workload ({:.1} MiB before being stored)",
        load.as_secs_f64() * 1e3,
        memory as f64 / f64::from(1 << 20),
        memory / workloads as usize,
        with_resources.saturating_sub(before) as f64 / f64::from(1 << 20),
    );
    drop(snapshot);
    updates(&mut store, workloads, services);
    lookups(&store.snapshot(), workloads, services);
    churn(store, workloads, services);
}

/// The cost of converting what the control plane sends, and of looking for fields that are not
/// known.
fn decoding(workloads: u32) {
    let services = workloads / WORKLOADS_PER_SERVICE;
    let encoded = (0..workloads).map(|n| encoded(&workload(n, services)));
    let all: Vec<(String, Any)> = encoded.collect();
    let measure = |work: &dyn Fn(&str, &Any)| {
        let begun = Instant::now();
        all.iter().for_each(|(name, any)| work(name, any));
        begun.elapsed()
    };
    let whole = measure(&|name, any| {
        black_box(api::to_mesh::address(name, Some(any)).unwrap());
    });
    // Conversion has just read the message, so the first of two searches is not counted.
    let searches = |count: u32| {
        measure(&|_, any| {
            for _ in 0..count {
                black_box(api::to_mesh::count_unknown_fields(black_box(&any.value)));
            }
        })
    };
    let walk = searches(2).saturating_sub(searches(1));
    println!(
        "state   {workloads} workloads: converted in {:.0} ms, of which {:.1} % look for unknown \
         fields",
        whole.as_secs_f64() * 1e3,
        100.0 * walk.as_secs_f64() / whole.as_secs_f64()
    );
}

/// A workload as the control plane sends it, with its resource name.
fn encoded(workload: &Workload) -> (String, Any) {
    let port = wire::Port {
        service_port: 80,
        target_port: 8080,
    };
    let keys = workload.services.keys();
    let ip = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    let message = wire::Workload {
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.workload_ips.iter().map(ip).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        service_account: workload.service_account.to_string(),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_name: workload.workload_name.to_string(),
        authorization_policies: workload
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect(),
        cluster_id: "Kubernetes".to_owned(),
        uid: workload.uid.to_string(),
        services: keys
            .map(|key| (key.to_string(), wire::PortList { ports: vec![port] }))
            .collect(),
        locality: Some(wire::Locality {
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
            subzone: String::new(),
        }),
        ..wire::Workload::default()
    };
    let address = wire::Address {
        r#type: Some(wire::Type::Workload(message)),
    };
    let any = Any {
        type_url: api::ADDRESS.to_owned(),
        value: address.encode_to_vec().into(),
    };
    (workload.uid.to_string(), any)
}

/// Sequential updates, each with a snapshot, while the previous snapshot is still in use.
fn updates(store: &mut Store, workloads: u32, services: u32) {
    let mut times = Vec::with_capacity(UPDATES as usize);
    let mut in_use = store.snapshot();
    for n in 0..UPDATES {
        let update = changed(n.wrapping_mul(7919) % workloads, services, n);
        let begun = Instant::now();
        store.apply([update], []);
        let next = store.snapshot();
        times.push(begun.elapsed());
        in_use = next;
    }
    black_box(in_use);
    println!(
        "state   {workloads} workloads: update and snapshot: {}",
        summary(&mut times)
    );
}

fn lookups(mesh: &Mesh, workloads: u32, services: u32) {
    let sources: Vec<Arc<Workload>> = mesh.workloads().step_by(97).cloned().collect();
    let source = |n: u32| &sources[n as usize % sources.len()];
    let measure = |what: &str, lookup: &dyn Fn(u32)| {
        let begun = Instant::now();
        (0..LOOKUPS).for_each(lookup);
        let each = begun.elapsed() / LOOKUPS;
        println!(
            "state   {workloads} workloads: {what} {} ns",
            each.as_nanos()
        );
    };
    let spread = |n: u32, of: u32| n.wrapping_mul(7919) % of;
    measure("find a workload by address:", &|n| {
        black_box(mesh.workload_by_ip("net", address(10, spread(n, workloads))));
    });
    measure("route to a service, with endpoint selection:", &|n| {
        let vip = OrigDst(SocketAddr::new(address(11, spread(n, services)), 80));
        black_box(route(mesh, source(n), vip, u64::from(n) << 7, &[]));
    });
    measure("the same, without reasons:", &|n| {
        let vip = OrigDst(SocketAddr::new(address(11, spread(n, services)), 80));
        black_box(route_unexplained(
            mesh,
            source(n),
            vip,
            u64::from(n) << 7,
            &[],
        ));
    });
    measure("route to a workload:", &|n| {
        let to = OrigDst(SocketAddr::new(address(10, spread(n, workloads)), 8080));
        black_box(route(mesh, source(n), to, u64::from(n), &[]));
    });
    measure("the same, without reasons:", &|n| {
        let to = OrigDst(SocketAddr::new(address(10, spread(n, workloads)), 8080));
        black_box(route_unexplained(mesh, source(n), to, u64::from(n), &[]));
    });
    measure("authorize with 20 policies:", &|n| {
        let client = SocketAddr::new(address(10, spread(n, workloads)), 40_000);
        let destination = SocketAddr::new(source(n).workload_ips[0], 8080);
        let identity = Some(source(n + 1).identity());
        let connection = Connection {
            client: client.into(),
            identity,
            destination: destination.into(),
        };
        black_box(check(mesh, source(n), &connection));
    });
}

/// A worker's routing latency while a thousand workloads change per second.
fn churn(mut store: Store, workloads: u32, services: u32) {
    let current = Arc::new(Mutex::new(store.snapshot()));
    let over = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let (current, over) = (current.clone(), over.clone());
        move || {
            let mut times = Vec::new();
            let source = current
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .workloads()
                .next()
                .unwrap()
                .clone();
            for n in 0u32.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let mesh = current
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let vip = OrigDst(SocketAddr::new(
                    address(11, n.wrapping_mul(7919) % services),
                    80,
                ));
                let begun = Instant::now();
                black_box(route(&mesh, &source, vip, u64::from(n), &[]));
                times.push(begun.elapsed());
                // The load of a worker with many new connections, rather than a loop bound by
                // memory.
                std::thread::sleep(Duration::from_micros(50));
            }
            times
        }
    });
    let (begun, mut busy) = (Instant::now(), Duration::ZERO);
    let each = Duration::from_secs(1) / CHURN_PER_SECOND;
    for n in 0.. {
        let due = begun + each * n;
        if due > begun + CHURN {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let update = changed(n.wrapping_mul(7919) % workloads, services, n + 1);
        let started = Instant::now();
        store.apply([update], []);
        *current.lock().unwrap_or_else(PoisonError::into_inner) = store.snapshot();
        busy += started.elapsed();
    }
    over.store(true, Ordering::Relaxed);
    let mut times = worker.join().unwrap();
    let share = 100.0 * busy.as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "state   {workloads} workloads, {CHURN_PER_SECOND} updates a second: {share:.1} % of a \
         core; routing meanwhile {}",
        summary(&mut times)
    );
}

fn summary(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: usize| times[times.len() * share / 1000].as_secs_f64() * 1e6;
    format!(
        "median {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
        at(500),
        at(990),
        at(999)
    )
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn address(first: u8, n: u32) -> IpAddr {
    let [_, b, c, d] = n.to_be_bytes();
    Ipv4Addr::new(first, b, c, d).into()
}

/// A workload as sent by istiod: its name and uid are unique, all other fields are shared with
/// many.
fn workload(n: u32, services: u32) -> Workload {
    let service = n % services;
    let namespace: Text = format!("namespace-{}", service % 50).into();
    let name: Text = format!("service-{service}-5d8c7b9f64-{n:05x}").into();
    Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}").into(),
        workload_ips: vec![address(10, n)],
        protocol: Protocol::Hbone,
        service_account: format!("service-{service}").into(),
        network: "net".into(),
        node: format!("node-{}", n % 500).into(),
        workload_name: format!("service-{service}").into(),
        workload_type: WorkloadType::Deployment,
        canonical_name: format!("service-{service}").into(),
        canonical_revision: "v1".into(),
        locality: Locality {
            region: "r1".into(),
            zone: format!("z{}", n % 3).into(),
            subzone: Text::default(),
        },
        services: [(
            format!("{namespace}/{}", hostname(service)).into(),
            [(80, 8080)].into_iter().collect(),
        )]
        .into_iter()
        .collect(),
        authorization_policies: vec!["istio-system/istio_converted_static_strict".into()],
        name,
        namespace,
        ..Workload::default()
    }
}

/// A changed workload: unhealthy, with another address, or back to its original state.
fn changed(n: u32, services: u32, turn: u32) -> Resource {
    let mut workload = workload(n, services);
    match turn % 3 {
        0 => workload.status = HealthStatus::Unhealthy,
        1 => workload.workload_ips = vec![address(12, n)],
        _ => {}
    }
    Resource::Workload(workload)
}

fn hostname(service: u32) -> String {
    format!(
        "service-{service}.namespace-{}.svc.cluster.local",
        service % 50
    )
}

/// A service; every other one prefers endpoints of the client's zone.
fn service(n: u32) -> Service {
    let failover = n.is_multiple_of(2);
    let preferences = if failover {
        vec![Scope::Region, Scope::Zone]
    } else {
        Vec::new()
    };
    Service {
        name: format!("service-{n}").into(),
        namespace: format!("namespace-{}", n % 50).into(),
        hostname: hostname(n).into(),
        vips: vec![mesh::gateway::Vip::single("net", address(11, n))],
        ports: [(80, 8080)].into_iter().collect(),
        load_balancer: LoadBalancer {
            mode: if failover {
                LoadBalancerMode::Failover
            } else {
                LoadBalancerMode::Standard
            },
            routing_preferences: preferences,
            ..LoadBalancer::default()
        },
        ..Service::default()
    }
}

fn policies() -> impl Iterator<Item = Resource> {
    let strict = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let strict = Policy {
        name: "istio_converted_static_strict".into(),
        namespace: "istio-system".into(),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![vec![vec![strict]]],
        dry_run: false,
    };
    let deny = |n: u32| Policy {
        name: format!("deny-{n}").into(),
        namespace: "istio-system".into(),
        scope: PolicyScope::Global,
        action: Action::Deny,
        rules: vec![vec![vec![Match {
            namespaces: vec![StringMatch::Exact(format!("blocked-{n}").into())],
            source_ips: vec![format!("192.0.{n}.0/24").parse().unwrap()],
            ..Match::default()
        }]]],
        dry_run: false,
    };
    std::iter::once(strict)
        .chain((0..19).map(deny))
        .map(Resource::Policy)
}
