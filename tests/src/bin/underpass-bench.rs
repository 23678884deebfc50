//! Benchmarks of the built binaries, in network namespaces; see scripts/bench.

#![allow(clippy::unwrap_used)] // a failure ends the benchmark

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use agent_status::VerificationState;
use clap::Parser;
use netns::NetNs;
use underpass_tests::burst::{self, Burst};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::contest::Options;
use underpass_tests::measure::{cpu, median, resident};
use underpass_tests::node::{self, TestNode};
use underpass_tests::sandbox::{Sandbox, connect, listen, until};
use underpass_tests::wire::{self, Wire};

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    match chosen.split_first() {
        Some((part, options)) if part == "contest" => return contest(options),
        Some((part, arguments)) if part == "floor" => {
            return underpass_tests::contest::run_floor(arguments);
        }
        Some((part, arguments)) if part == "hold" => {
            return underpass_tests::contest::run_hold(arguments);
        }
        Some((part, _)) if part == burst::SERVER => return burst::run_server(),
        _ => {}
    }
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    if wanted("cni") {
        cni();
    }
    if wanted("rules") {
        rules();
    }
    if wanted("join") {
        join();
    }
    if wanted("memory") {
        memory();
    }
    if wanted("pods") {
        pods();
    }
    for part in underpass_tests::agent_bench::PARTS {
        if wanted("agent") || wanted(part) {
            underpass_tests::agent_bench::run(part);
        }
    }
    if wanted("state") {
        underpass_tests::state_bench::run();
    }
    if let [only, size] = &chosen[..]
        && only == underpass_tests::state_bench::ONE_SIZE
    {
        underpass_tests::state_bench::one_size(size.parse().unwrap());
    }
    if wanted("churn") {
        underpass_tests::churn_bench::run();
    }
    if wanted("authority") {
        underpass_tests::authority_bench::run();
    }
    if wanted("capture") {
        capture();
    }
    if wanted("share") {
        underpass_tests::share_bench::run();
    }
    if wanted("burst") {
        burst_of_many();
    }
    if wanted("tunnel") {
        tunnel();
    }
    if chosen.is_empty() {
        contest(&[]);
    }
}

/// Proxies side by side.
fn contest(options: &[String]) {
    let name = "scripts/bench contest".to_owned();
    let options = Options::parse_from(std::iter::once(&name).chain(options));
    underpass_tests::contest::run(&options);
}

/// Memory of the proxies with 10,000 idle connections, of which 1,000 transfer 12 MiB each.
fn burst_of_many() {
    let burst = Burst {
        idle: 10_000,
        bursting: 1_000,
        bytes: 12 << 20,
    };
    let nodes = ["client", "server"].into_iter();
    let program = std::env::current_exe().unwrap();
    for (of, memory) in nodes.zip(burst.run("bench-burst", &program)) {
        let mib = |kib: usize| kib as f64 / 1024.0;
        println!(
            "burst   proxy of the {of}: {:.1} MiB before, {:.1} MiB and {} descriptors with {} \
             idle connections, {:.1} MiB at most while {} of them transfer {} MiB each, then {:.1} \
             MiB, and {:.1} MiB once all are closed",
            mib(memory.before),
            mib(memory.idle),
            memory.descriptors,
            burst.idle,
            mib(memory.most),
            burst.bursting,
            burst.bytes >> 20,
            mib(memory.after),
            mib(memory.end)
        );
    }
}

/// Wall time of an ADD, from start to exit of the plugin, including agent and proxy; and of other
/// verbs.
fn cni() {
    const ADDS: usize = 200;
    let (mut node, wire) = (TestNode::new("bench-cni", node::MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let addresses = ["10.78.0.1/24", "fd78::1/64"];
    let call = |verb: &str| {
        Call::new(
            verb,
            &path_of(&wire.pod),
            &config(&node.agent_socket(), &addresses),
        )
    };
    let outsider = "K8S_POD_NAMESPACE=outside;K8S_POD_NAME=peer";
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..ADDS {
        times[0].push(timed(|| assert!(call("VERSION").run().status.success())));
        let skipped = call("ADD")
            .with("CNI_ARGS", Some(outsider))
            .with("CNI_CONTAINERID", Some("other"));
        times[1].push(timed(|| assert!(skipped.run().status.success())));
        times[2].push(timed(|| {
            let output = call("ADD").run();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }));
        times[3].push(timed(|| assert!(call("CHECK").run().status.success())));
        times[4].push(timed(|| assert!(call("DEL").run().status.success())));
    }
    let names = [
        "process start and exit (VERSION)",
        "ADD of a pod outside the mesh",
        "ADD of a mesh pod",
        "CHECK",
        "DEL",
    ];
    for (name, mut times) in names.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!(
            "cni     {name}: median {:.2} ms, p99 {:.2} ms of {ADDS}",
            times[ADDS / 2],
            times[ADDS * 99 / 100]
        );
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e3
}

/// Installing one pod's rules with each backend, compared with iptables-restore as run by
/// istio-cni.
fn rules() {
    const TIMES: usize = 21;
    let apply = |capture, dns| redirect::Plan {
        capture,
        dns,
        ..redirect::Plan::for_pod([wire::POD4, wire::POD6])
    };
    let mut istio = Vec::new();
    let mut backends = vec![(Vec::new(), Vec::new()); redirect::CaptureKind::ALL.len()];
    for _ in 0..TIMES {
        for (capture, (applied, read)) in redirect::CaptureKind::ALL.into_iter().zip(&mut backends)
        {
            let (wire, plan) = (Wire::new(), apply(capture, false));
            applied.push(timed(|| {
                assert!(wire.pod.run(|| redirect::apply(&plan)).unwrap().is_ok())
            }));
            read.push(timed(|| {
                let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
                assert!(redirect::diff(&plan, &observed).is_empty());
            }));
        }
        let wire = Wire::new();
        istio.push(timed(|| {
            for restore in ["iptables-nft-restore", "ip6tables-nft-restore"] {
                underpass_tests::iptables::restore(&wire.pod, restore);
            }
        }));
    }
    let istio = median(istio);
    println!(
        "rules   Istio with iptables-nft-restore, without ip rules and routes: {istio:.2} ms \
         (medians of {TIMES})"
    );
    for (capture, (applied, read)) in redirect::CaptureKind::ALL.into_iter().zip(backends) {
        let (applied, read) = (median(applied), median(read));
        println!(
            "rules   {capture:<19} applied {applied:.2} ms ({:.2} of Istio's), read back and \
             compared {read:.2} ms",
            applied / istio
        );
    }
}

/// A running pod joins, without and with open connections: in its namespace alone, and from the
/// change of the mesh file until the agent has verified it.
fn join() {
    const TIMES: usize = 7;
    let plan = redirect::Plan::for_pod([wire::POD4, wire::POD6]);
    for connections in [0, 5000] {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..TIMES {
            let wire = Wire::new();
            let open = wire.open_connections(connections);
            let mut step = |n: usize, work: &dyn Fn()| {
                times[n].push(timed(|| wire.pod.run(work).unwrap()));
            };
            step(0, &|| {
                let joined = redirect::join(&plan).unwrap();
                assert_eq!(joined.exempted.len(), connections);
            });
            step(1, &|| {
                let observed = redirect::read_back().unwrap();
                assert!(redirect::diff(&plan, &observed).is_empty());
            });
            step(2, &|| {
                assert!(redirect::find_bypasses(&plan).unwrap().is_empty());
            });
            drop(open); // a process may not have twice as many descriptors
            times[3].push(until_verified(connections));
        }
        let [joined, read, others, verified] = times.map(median);
        println!(
            "join    {connections} open connections: applied {joined:.1} ms, read back and \
             compared {read:.1} ms, other programs' rules {others:.1} ms; by the agent, until \
             verified {verified:.1} ms (medians of {TIMES})"
        );
    }
}

/// From the change of the mesh file until the agent has verified the pod.
fn until_verified(connections: usize) -> f64 {
    let outside = node::MESH.replacen("ambient", "none", 1);
    let (mut node, wire) = (TestNode::new("bench-join", &outside), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(add.status.success());
    let _open = wire.open_connections(connections);
    std::fs::write(node.file("mesh.new"), node::MESH).unwrap();
    timed(|| {
        std::fs::rename(node.file("mesh.new"), node.file("mesh.yaml")).unwrap();
        until("the pod is verified", || {
            let state = node.pod("client").verification.map(|v| v.state);
            (state == Some(VerificationState::Verified)).then_some(())
        });
    })
}

/// Many pods: the time of each ADD, and the cost of monitoring all of them while idle.
fn pods() {
    const PODS: usize = 250;
    const IDLE: Duration = Duration::from_secs(60);
    let mut mesh = "namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } \
                    }]\nworkloads:\n"
        .to_owned();
    for i in 0..PODS {
        mesh += &format!(
            "  - {{ name: p{i}, namespace: default, network: n{i}, node: node, workloadIps: \
             [10.78.0.1, \"fd78::1\"] }}\n"
        );
    }
    let mut node = TestNode::new("bench-pods", &mesh);
    let (agent, proxy) = (node.start_agent(), node.start_ready_proxy());
    let wires: Vec<Wire> = (0..PODS).map(|_| Wire::new()).collect();
    let mut adds = Vec::new();
    for (i, wire) in wires.iter().enumerate() {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{i};K8S_POD_UID=uid-{i}");
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let call = Call::new("ADD", &path_of(&wire.pod), &config);
        let call = call
            .with("CNI_CONTAINERID", Some(&format!("c{i}")))
            .with("CNI_ARGS", Some(&args));
        let begun = Instant::now();
        let output = call.run();
        adds.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    adds.sort_by(f64::total_cmp);
    println!(
        "pods    {PODS} ADDs: median {:.2} ms, p99 {:.2} ms",
        adds[PODS / 2],
        adds[PODS * 99 / 100]
    );
    std::thread::sleep(Duration::from_secs(2));
    let (before_agent, before_proxy) = (cpu(agent), cpu(proxy));
    std::thread::sleep(IDLE);
    let share =
        |before: Duration, now: Duration| (now - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!(
        "pods    {PODS} idle and verified: agent {:.2} % of a core, {:.1} MiB; proxy {:.2} %, \
         {:.1} MiB",
        share(before_agent, cpu(agent)),
        resident(agent),
        share(before_proxy, cpu(proxy)),
        resident(proxy)
    );
}

/// Resident memory of agent and proxy, without pods and with one.
fn memory() {
    let mut node = TestNode::new("bench-memory", node::MESH);
    let (agent, proxy) = (node.start_agent(), node.start_ready_proxy());
    println!(
        "memory  idle, no pod: agent {:.1} MiB, proxy {:.1} MiB",
        resident(agent),
        resident(proxy)
    );
    let wire = Wire::new();
    let addresses = ["10.78.0.1/24", "fd78::1/64"];
    let add = Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &addresses),
    );
    assert!(add.run().status.success());
    println!(
        "memory  idle, one pod: agent {:.1} MiB, proxy {:.1} MiB",
        resident(agent),
        resident(proxy)
    );
}

/// One path from a client to the server.
struct Path {
    name: &'static str,
    client: NetNs,
    to: SocketAddr,
}

/// Rounds of each measurement. The paths alternate, so that other load affects all of them equally.
const ROUNDS: usize = 5;
const BULK: Duration = Duration::from_secs(1);
const ROUND_TRIPS: usize = 2000;

/// The same load with the captures `routed` and `nat`, alternating.
fn capture() {
    let sandboxes = ["routed", "nat"].map(|capture| {
        let sandbox = Sandbox::up_in(
            &format!("bench-{capture}"),
            underpass_tests::sandbox::MESH,
            &[("UNDERPASS_CAPTURE", capture)],
        );
        for pod in ["client", "server"] {
            let reno =
                || std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap();
            sandbox.pod(pod).run(reno).unwrap();
        }
        serve(&sandbox.pod("server"));
        let to = SocketAddr::new(sandbox.ips("server")[0], 9000);
        (
            Path {
                name: capture,
                client: sandbox.pod("client"),
                to,
            },
            sandbox,
        )
    });
    let mut figures: Vec<[Vec<f64>; 4]> = sandboxes.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for ((path, _), figures) in sandboxes.iter().zip(&mut figures) {
            figures[0].push(round_trip(path));
            figures[1].push(many_round_trips(path));
            figures[2].push(connections(path));
            figures[3].push(throughput(path));
        }
    }
    for ((path, _), figures) in sandboxes.iter().zip(figures) {
        let [rr1, rr64, crr, bulk] = figures.map(median);
        println!(
            "capture {:<7} round trip {rr1:.1} us, over 64 connections {rr64:.0}/s; {crr:.0} new \
             connections/s; {bulk:.2} Gb/s",
            path.name
        );
    }
}

/// Round trips per second over 64 concurrent connections.
fn many_round_trips(path: &Path) -> f64 {
    let streams: Vec<TcpStream> = (0..64).map(|_| open(path, b"e")).collect();
    let until = Instant::now() + BULK;
    let counts = streams.into_iter().map(|mut stream| {
        std::thread::spawn(move || {
            let (mut byte, mut count) = ([1], 0u32);
            while Instant::now() < until {
                stream.write_all(&byte).unwrap();
                stream.read_exact(&mut byte).unwrap();
                count += 1;
            }
            count
        })
    });
    let threads: Vec<_> = counts.collect();
    threads
        .into_iter()
        .map(|t| f64::from(t.join().unwrap()))
        .sum::<f64>()
        / BULK.as_secs_f64()
}

fn tunnel() {
    // Two pods outside the mesh, for plain TCP over the same veth pairs.
    let bystander = "  - { name: bystander, namespace: outside, node: node-2, workloadIps: \
                     [10.77.2.3, \"fd77:2::3\"] }\nservices:";
    let mesh = underpass_tests::sandbox::MESH.replace("\nservices:", &format!("\n{bystander}"));
    let sandbox = Sandbox::up_with("bench-tunnel", &mesh);
    for pod in ["client", "outsider", "server", "bystander"] {
        sandbox
            .pod(pod)
            .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap())
            .unwrap();
    }
    for pod in ["server", "bystander"] {
        serve(&sandbox.pod(pod));
    }
    let at = |pod: &str| SocketAddr::new(sandbox.ips(pod)[0], 9000);
    let paths = [
        Path {
            name: "plain TCP",
            client: sandbox.pod("outsider"),
            to: at("bystander"),
        },
        Path {
            name: "passthrough",
            client: sandbox.pod("client"),
            to: at("bystander"),
        },
        Path {
            name: "HBONE",
            client: sandbox.pod("client"),
            to: at("server"),
        },
    ];
    let mut bulk = vec![Vec::new(); paths.len()];
    let mut rr = vec![Vec::new(); paths.len()];
    let mut crr = vec![Vec::new(); paths.len()];
    for _ in 0..ROUNDS {
        for (index, path) in paths.iter().enumerate() {
            bulk[index].push(throughput(path));
            rr[index].push(round_trip(path));
            crr[index].push(connections(path));
        }
    }
    for (index, path) in paths.iter().enumerate() {
        println!(
            "tunnel  {:<12} {:>6.2} Gb/s up, 1-byte round trip {:>6.1} us, {:>6.0} new \
             connections/s (medians of {ROUNDS})",
            path.name,
            median(bulk[index].clone()),
            median(rr[index].clone()),
            median(crr[index].clone()),
        );
    }
}

/// Serves connections: discards the data if the first byte is `d`, echoes it if it is `e`.
fn serve(netns: &NetNs) {
    let listener = listen(netns, 9000);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                stream.set_nodelay(true)?;
                let mut mode = [0];
                stream.read_exact(&mut mode)?;
                let mut buffer = vec![0; 256 * 1024];
                loop {
                    let n = stream.read(&mut buffer)?;
                    if n == 0 {
                        return std::io::Result::Ok(());
                    }
                    if mode == *b"e" {
                        stream.write_all(&buffer[..n])?;
                    }
                }
            });
        }
    });
}

fn open(path: &Path, mode: &[u8]) -> TcpStream {
    let mut stream = connect(&path.client, path.to).unwrap();
    stream.write_all(mode).unwrap();
    stream
}

/// Throughput of one connection, in Gb/s.
fn throughput(path: &Path) -> f64 {
    let mut stream = open(path, b"d");
    let chunk = vec![0; 256 * 1024];
    let (begun, mut bytes) = (Instant::now(), 0usize);
    while begun.elapsed() < BULK {
        stream.write_all(&chunk).unwrap();
        bytes += chunk.len();
    }
    bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
}

/// Median round trip of one byte, in microseconds.
fn round_trip(path: &Path) -> f64 {
    let mut stream = open(path, b"e");
    let mut byte = [1];
    let times = (0..ROUND_TRIPS).map(|_| {
        let begun = Instant::now();
        stream.write_all(&byte).unwrap();
        stream.read_exact(&mut byte).unwrap();
        begun.elapsed().as_secs_f64() * 1e6
    });
    median(times.collect())
}

/// Sequential new connections per second, each with one round trip.
fn connections(path: &Path) -> f64 {
    let (begun, mut count) = (Instant::now(), 0u32);
    while begun.elapsed() < BULK / 2 {
        let mut stream = open(path, b"ex");
        stream.read_exact(&mut [0]).unwrap();
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}
