//! The agent's latencies while a pod or the disk strains it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent_status::VerificationState;
use netns::NetNs;
use nft::{Batch, Socket};

use crate::cni::{Call, config, path_of};
use crate::crowd::Crowd;
use crate::measure::{cpu, median, resident};
use crate::node::TestNode;
use crate::sandbox::until;
use crate::wire::{Wire, many_pods};

/// How often each latency is measured.
const TIMES: usize = 50;
const CROWD: u32 = 100_000;
/// How long the slow disk takes to sync a file, and how many ADDs wait for it.
const SYNC: Duration = Duration::from_secs(2);
const SYNCED: usize = 5;

/// What else the agent does: ADDs of pods outside the mesh and in it, `/healthz`, and verification.
/// And what the kernel takes without Underpass: an ip rule created and deleted in another pod.
#[derive(Default)]
struct Latencies([Vec<f64>; 5]);

impl Latencies {
    fn print(self, what: &str) {
        let row = self.0.map(|times| {
            let worst = times.iter().copied().fold(0.0, f64::max);
            format!("{:.1} ms, worst {worst:.1} ms", median(times))
        });
        let [outside, inside, health, verification, kernel] = row;
        println!(
            "agent   {what}: ADD outside the mesh {outside}; in the mesh {inside}; /healthz \
             {health}; verification {verification}; the kernel, an ip rule created and deleted \
             {kernel}"
        );
    }
}

/// Measures with pod `p1`, of which `in_mesh` ADDs are in the mesh.
fn measure(node: &TestNode, wire: &Wire, in_mesh: usize) -> Latencies {
    let mut latencies = Latencies::default();
    let [outside, inside, health, verification, kernel] = &mut latencies.0;
    for turn in 0..TIMES {
        let call = |verb, namespace| call(node, wire, verb, namespace, "p1");
        outside.push(timed(|| call("ADD", "outside")));
        call("DEL", "outside");
        kernel.push(timed(|| create_and_delete(Crowd::IpRules, &wire.pod)));
        health.push(timed(|| {
            assert_eq!(node.get("127.0.0.1:15014", "/healthz").unwrap().0, 200);
        }));
        if turn < in_mesh {
            inside.push(timed(|| call("ADD", "default")));
            verification.push(timed(|| drop(node.verify("p1"))));
            call("DEL", "default");
        }
    }
    latencies
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e3
}

/// One call of the plugin, which must succeed.
fn call(node: &TestNode, wire: &Wire, verb: &str, namespace: &str, pod: &str) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}");
    let done = Call::new(verb, &path_of(&wire.pod), &config)
        .with("CNI_ARGS", Some(&args))
        .with("CNI_CONTAINERID", Some(pod))
        .run();
    let stdout = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{verb} {pod}: {stdout}");
}

/// A mesh of two pods, and one outside it.
fn mesh() -> (String, Vec<Wire>) {
    let (mesh, wires) = many_pods(2);
    let outside = "  - { name: p1, namespace: outside, network: out, node: node, workloadIps: \
                   [10.78.0.1, \"fd78::1\"] }\n";
    (mesh + outside, wires)
}

/// A pod that changes its rules, routes and addresses as fast as it can, with few of them and with
/// very many.
pub fn restless() {
    let (mesh, wires) = mesh();
    let mut node = TestNode::new("bench-restless", &mesh);
    let agent = node.start_agent_with(&["--capture".as_ref(), "routed".as_ref()]);
    node.start_ready_proxy();
    call(&node, &wires[0], "ADD", "default", "p0");
    measure(&node, &wires[1], TIMES).print("all pods at rest");
    for count in [0, CROWD] {
        for kind in Crowd::ALL {
            kind.create(&wires[0].pod, 0..count);
        }
        let done = AtomicBool::new(false);
        let (latencies, share, rate) = thread::scope(|scope| {
            let changing = CHANGES.map(|change| {
                let (done, netns) = (&done, &wires[0].pod);
                scope.spawn(move || repeat(change, netns, done))
            });
            let (begun, before) = (Instant::now(), cpu(agent));
            let latencies = measure(&node, &wires[1], TIMES);
            let (seconds, used) = (begun.elapsed().as_secs_f64(), cpu(agent) - before);
            done.store(true, Ordering::Relaxed);
            let changes: u64 = changing.map(|t| t.join().unwrap()).iter().sum();
            let share = used.as_secs_f64() / seconds * 100.0;
            (latencies, share, changes as f64 / seconds)
        });
        latencies.print(&format!(
            "a pod with {count} chains, rules, ip rules, routes and addresses each, and {rate:.0} \
             changes a second"
        ));
        let memory = resident(agent);
        println!("agent   meanwhile: {share:.0} % of a core, {memory:.1} MiB");
    }
    for kind in Crowd::ALL {
        kind.delete(&wires[0].pod, 0..CROWD);
    }
    until("the pod is verified again", || {
        let found = node.verify("p0").verification?;
        (found.state == VerificationState::Verified).then_some(())
    });
}

/// What the restless pod does all the time: creates and deletes an object of each kind that has
/// notifications. Each is called in the pod's namespace.
const CHANGES: [fn(&NetNs); 4] = [
    |netns| create_and_delete(Crowd::IpRules, netns),
    |netns| create_and_delete(Crowd::Routes, netns),
    |netns| create_and_delete(Crowd::Addresses, netns),
    |netns| {
        let commit = |change: fn(&mut Batch)| {
            let mut batch = Batch::new("restless");
            change(&mut batch);
            batch.commit(&Socket::open().unwrap()).unwrap();
        };
        netns
            .run(|| {
                commit(|batch| _ = batch.ensure_table());
                commit(|batch| _ = batch.delete_table());
            })
            .unwrap();
    },
];

fn create_and_delete(kind: Crowd, netns: &NetNs) {
    kind.create(netns, CROWD..CROWD + 1);
    kind.delete(netns, CROWD..CROWD + 1);
}

/// Repeats two changes until it is `done`; returns their number.
fn repeat(change: fn(&NetNs), netns: &NetNs, done: &AtomicBool) -> u64 {
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        change(netns);
        changes += 2;
    }
    changes
}

/// A disk that takes two seconds to sync a file. The agent runs under strace, which delays it.
pub fn slow_disk() {
    for (sync, what) in [
        (Duration::ZERO, "under strace, without delay"),
        (SYNC, "on a disk that takes 2 s to sync a file"),
    ] {
        let (mesh, wires) = mesh();
        let mut node = TestNode::new("bench-disk", &mesh);
        node.start_agent_on_slow_disk(sync);
        node.start_ready_proxy();
        measure(&node, &wires[1], SYNCED).print(what);
    }
}
