//! What the proxy's state costs: loading, updating, asking, and memory, at several sizes.

#![allow(clippy::disallowed_types)] // each size is measured in a process of its own, which is this program again

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh::authorize::{Connection, check};
use mesh::policy::{Action, Match, PolicyScope, StringMatch};
use mesh::route::route;
use mesh::service::{LoadBalancer, LoadBalancerMode, Scope};
use mesh::workload::{HealthStatus, Locality, Protocol, WorkloadType};
use mesh::{Mesh, OrigDst, Policy, Resource, Service, Store, Text, Workload};

/// The argument with which this program measures one size.
pub const ONE_SIZE: &str = "state-of-size";

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const WORKLOADS_PER_SERVICE: u32 = 10;
const UPDATES: u32 = 20_000;
const ASKED: u32 = 200_000;
const CHURN_PER_SECOND: u32 = 1_000;
const CHURN: Duration = Duration::from_secs(3);

/// All sizes.
pub fn run() {
    for size in SIZES {
        let status = Command::new(std::env::current_exe().unwrap()).args([ONE_SIZE, &size.to_string()]).status();
        assert!(status.unwrap().success());
    }
}

/// One size.
pub fn one_size(workloads: u32) {
    let services = workloads / WORKLOADS_PER_SERVICE;
    let before = resident();
    let all: Vec<Resource> = policies()
        .chain((0..services).map(|n| Resource::Service(service(n))))
        .chain((0..workloads).map(|n| Resource::Workload(workload(n, services))))
        .collect();
    let given = resident();
    let mut store = Store::default();
    let begun = Instant::now();
    store.apply(all, []);
    let snapshot = store.snapshot();
    let load = begun.elapsed();
    // What was given has become part of the store: nothing of it is left beside.
    let memory = resident().saturating_sub(before);
    println!(
        "state   {workloads} workloads, {services} services: loaded in {:.1} ms, {:.1} MiB, {} bytes a workload ({:.1} MiB of these as given)",
        load.as_secs_f64() * 1e3,
        memory as f64 / f64::from(1 << 20),
        memory / workloads as usize,
        given.saturating_sub(before) as f64 / f64::from(1 << 20),
    );
    drop(snapshot);
    updates(&mut store, workloads, services);
    asked(&store.snapshot(), workloads, services);
    churn(store, workloads, services);
}

/// One update after another, each with a snapshot, while the one before is still in use.
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
    println!("state   {workloads} workloads: an update and a snapshot take {}", told(&mut times));
}

fn asked(mesh: &Mesh, workloads: u32, services: u32) {
    let sources: Vec<Arc<Workload>> = mesh.workloads().step_by(97).cloned().collect();
    let source = |n: u32| &sources[n as usize % sources.len()];
    let each = |what: &str, ask: &dyn Fn(u32)| {
        let begun = Instant::now();
        (0..ASKED).for_each(ask);
        let each = begun.elapsed() / ASKED;
        println!("state   {workloads} workloads: {what} {} ns", each.as_nanos());
    };
    let spread = |n: u32, of: u32| n.wrapping_mul(7919) % of;
    each("finding a workload by its address", &|n| {
        black_box(mesh.workload_by_ip("net", address(10, spread(n, workloads))));
    });
    each("routing to a service, endpoint chosen", &|n| {
        let vip = OrigDst(SocketAddr::new(address(11, spread(n, services)), 80));
        black_box(route(mesh, source(n), vip, u64::from(n) << 7, &[]));
    });
    each("routing to a workload", &|n| {
        let to = OrigDst(SocketAddr::new(address(10, spread(n, workloads)), 8080));
        black_box(route(mesh, source(n), to, u64::from(n), &[]));
    });
    each("authorizing by 20 policies", &|n| {
        let client = SocketAddr::new(address(10, spread(n, workloads)), 40_000);
        let destination = SocketAddr::new(source(n).workload_ips[0], 8080);
        let identity = Some(source(n + 1).identity());
        let connection = Connection { client: client.into(), identity, destination: destination.into() };
        black_box(check(mesh, source(n), &connection));
    });
}

/// What a worker sees of it when a thousand workloads a second change.
fn churn(mut store: Store, workloads: u32, services: u32) {
    let current = Arc::new(Mutex::new(store.snapshot()));
    let over = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let (current, over) = (current.clone(), over.clone());
        move || {
            let mut times = Vec::new();
            let source = current.lock().unwrap_or_else(PoisonError::into_inner).workloads().next().unwrap().clone();
            for n in 0u32.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let mesh = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let vip = OrigDst(SocketAddr::new(address(11, n.wrapping_mul(7919) % services), 80));
                let begun = Instant::now();
                black_box(route(&mesh, &source, vip, u64::from(n), &[]));
                times.push(begun.elapsed());
                // As busy as a worker with many new connections, and not as a loop that fights for memory.
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
        "state   {workloads} workloads, {CHURN_PER_SECOND} updates a second: {share:.1} % of a core; routing meanwhile {}",
        told(&mut times)
    );
}

fn told(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: usize| times[times.len() * share / 1000].as_secs_f64() * 1e6;
    format!("median {:.1} us, p99 {:.1} us, p99.9 {:.1} us", at(500), at(990), at(999))
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

/// As istiod says them: a name and uid of its own, all else in common with many.
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
        locality: Locality { region: "r1".into(), zone: format!("z{}", n % 3).into(), subzone: Text::default() },
        services: [(format!("{namespace}/{}", hostname(service)).into(), [(80, 8080)].into_iter().collect())]
            .into_iter()
            .collect(),
        authorization_policies: vec!["istio-system/istio_converted_static_strict".into()],
        name,
        namespace,
        ..Workload::default()
    }
}

/// A workload as it is after some of its life: well or not, or with another address.
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
    format!("service-{service}.namespace-{}.svc.cluster.local", service % 50)
}

/// Half of them prefer their own zone.
fn service(n: u32) -> Service {
    let failover = n.is_multiple_of(2);
    let preferences = if failover { vec![Scope::Region, Scope::Zone] } else { Vec::new() };
    Service {
        name: format!("service-{n}").into(),
        namespace: format!("namespace-{}", n % 50).into(),
        hostname: hostname(n).into(),
        vips: vec![mesh::gateway::Vip::single("net", address(11, n))],
        ports: [(80, 8080)].into_iter().collect(),
        load_balancer: LoadBalancer {
            mode: if failover { LoadBalancerMode::Failover } else { LoadBalancerMode::Standard },
            routing_preferences: preferences,
            ..LoadBalancer::default()
        },
        ..Service::default()
    }
}

fn policies() -> impl Iterator<Item = Resource> {
    let strict = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
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
    std::iter::once(strict).chain((0..19).map(deny)).map(Resource::Policy)
}
