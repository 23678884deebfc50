//! The agent's resource usage and latencies on Kubernetes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{self, AgentNode, Cluster, ClusterPod};
use crate::containerd::{self, Containerd};
use crate::folder;
use crate::kube::app::spec;
use crate::kube::{self, Kube, await_within, until};
use crate::measure::{cpu, median, percentile, resident};
use crate::node::TestNode;
use crate::{strain_bench, watch_bench};

const ELSEWHERE: usize = 10_000;
const HERE: usize = 250;
/// Of those on this node, the pods whose namespace label changes.
const LABELLED: usize = 50;
const CHURNED: usize = 100;
const CHANGES_PER_SECOND: u64 = 100;
const IDLE: Duration = Duration::from_secs(60);
const AMBIENT: &[(&str, &str)] = &[(istio::label::DATAPLANE_MODE, "ambient")];

/// The names of the parts.
pub const PARTS: [&str; 6] = [
    "agent-restless",
    "agent-disk",
    "agent-watches",
    "agent-sandboxes",
    "agent-pods",
    "agent-cluster",
];

/// Runs one part, if its programs are available.
pub fn run(part: &str) {
    let (missing, measure): (_, fn()) = match part {
        "agent-restless" => (None, strain_bench::restless),
        "agent-disk" => (None, strain_bench::slow_disk),
        "agent-watches" => (None, watch_bench::run),
        "agent-sandboxes" => (containerd::missing(), sandboxes),
        "agent-pods" => (cluster::missing(), on_an_api_server),
        _ => (kube::missing(), on_a_cluster),
    };
    match missing {
        None => measure(),
        Some(why) => println!("agent   skipped: {part}: {why}"),
    }
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// How long containerd takes to create a sandbox with the plugin bridge: without Underpass, outside
/// the mesh, and in the mesh. The measurements alternate, so that other load on the machine affects
/// all of them equally; those without Underpass use a containerd of their own.
fn sandboxes() {
    const EACH: usize = 120;
    const WITHOUT: usize = 0;
    const INSIDE: usize = 1;
    // In every order: the kernel still cleans up the previous sandbox while the next one is
    // created.
    const ORDERS: [[usize; 3]; 6] = [
        [0, 1, 2],
        [2, 1, 0],
        [1, 2, 0],
        [0, 2, 1],
        [2, 0, 1],
        [1, 0, 2],
    ];
    let turns: Vec<usize> = (0..EACH).flat_map(|i| ORDERS[i % ORDERS.len()]).collect();
    let mut mesh = "namespaces: [{ name: mesh, labels: { istio.io/dataplane-mode: ambient } }, { \
                    name: outside }]\nworkloads:\n"
        .to_owned();
    let namespace = |kind: usize| if kind == INSIDE { "mesh" } else { "outside" };
    for (i, kind) in turns.iter().filter(|kind| **kind != WITHOUT).enumerate() {
        let (namespace, last) = (namespace(*kind), i + 2); // addresses are allocated in order
        mesh += &format!(
            "  - {{ name: p{i}, namespace: {namespace}, serviceAccount: a, node: node, network: \
             \"\", workloadIps: [10.88.0.{last}, \"fd88::{last:x}\"] }}\n"
        );
    }
    let bare = TestNode::new("bench-bare", "{}");
    let mut node = TestNode::new("bench-sandboxes", &mesh);
    let without = Containerd::start(&bare, u8::try_from(EACH).unwrap());
    let with = Containerd::start(&node, u8::try_from(2 * EACH).unwrap());
    node.run_agent_in(&with.machine);
    node.start_agent_with(&with.network.install_arguments());
    node.start_ready_proxy();
    with.await_plugin(true);
    let timed = |containerd: &Containerd, namespace: &str, i: usize| {
        let begun = Instant::now();
        let sandbox = containerd
            .cri
            .run_pod_sandbox(&containerd.pod(namespace, &format!("p{i}")))
            .unwrap();
        let took = ms(begun);
        containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
        took
    };
    let mut times = [const { Vec::new() }; 3];
    let mut made = [0, 0];
    for kind in turns {
        let containerd = if kind == WITHOUT { &without } else { &with };
        let made = &mut made[usize::from(kind == WITHOUT)];
        times[kind].push(timed(containerd, namespace(kind), *made));
        *made += 1;
    }
    let [alone, inside, outside] = times;
    for (what, times) in [
        ("without Underpass", alone),
        ("outside the mesh", outside),
        ("in the mesh", inside),
    ] {
        let (p50, p99) = (median(times.clone()), percentile(times, 99));
        println!("agent   RunPodSandbox {what}: median {p50:.1} ms, p99 {p99:.1} ms");
    }
}

/// A node with many pods in a large cluster. Remote pods are API objects only; those of the node
/// have namespaces and rules.
fn on_an_api_server() {
    let cluster = Cluster::start(&folder::until_exit("bench-cluster"));
    cluster.namespace("elsewhere", &[]);
    let far = cluster.node("far");
    let begun = Instant::now();
    thread::scope(|scope| {
        for part in 0..4 {
            let (api, far) = (&cluster.kubernetes.api, &far.name);
            scope.spawn(move || {
                for i in (part..ELSEWHERE).step_by(4) {
                    api.create("/api/v1/namespaces/elsewhere/pods", &object_of(i, far))
                        .unwrap();
                }
            });
        }
    });
    println!(
        "agent   {ELSEWHERE} pod objects on another node created in {:.0} s",
        begun.elapsed().as_secs_f64()
    );

    let mut node = AgentNode::new(&cluster, "node");
    let agent = node.start_agent(&[]);
    let proxy = node.start_proxy();
    node.await_ready();
    println!("agent   no pod on this node: {:.1} MiB", resident(agent));
    cluster.namespace("bench", AMBIENT);
    cluster.namespace("flip", AMBIENT);
    let pods: Vec<ClusterPod> = (0..HERE)
        .map(|i| {
            let namespace = if i < LABELLED { "flip" } else { "bench" };
            cluster.pod_of(&node.cluster_node, namespace, "app", &format!("p{i}"))
        })
        .collect();
    let add = |pod: &ClusterPod| {
        let begun = Instant::now();
        let output = node.add(pod);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        ms(begun)
    };
    let adds: Vec<f64> = pods.iter().map(add).collect();
    println!(
        "agent   {HERE} ADDs: median {:.1} ms, p99 {:.1} ms",
        median(adds.clone()),
        percentile(adds, 99)
    );
    until("all pods are annotated", || {
        (annotated(&cluster, "bench") == HERE - LABELLED).then_some(())
    });
    thread::sleep(Duration::from_secs(5));
    let before = [agent, proxy].map(cpu);
    thread::sleep(IDLE);
    let share =
        |pid, before: Duration| (cpu(pid) - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!(
        "agent   {HERE} pods on this node, idle: agent {:.2} % of a core, {:.1} MiB; proxy {:.2} \
         %, {:.1} MiB",
        share(agent, before[0]),
        resident(agent),
        share(proxy, before[1]),
        resident(proxy)
    );

    let over = AtomicBool::new(false);
    let (adds, changes) = thread::scope(|scope| {
        let changing = scope.spawn(|| churn(&cluster, &pods, &over));
        let again = pods[LABELLED..].iter().take(CHURNED).map(|pod| {
            assert!(node.del(pod).status.success());
            add(pod)
        });
        let adds: Vec<f64> = again.collect();
        over.store(true, Ordering::Relaxed);
        (adds, changing.join().unwrap())
    });
    println!(
        "agent   {CHURNED} ADDs while {changes:.0} pods a second change: median {:.1} ms, p99 \
         {:.1} ms; agent {:.1} MiB",
        median(adds.clone()),
        percentile(adds, 99),
        resident(agent)
    );

    for round in 0..3 {
        for (what, mode, wanted) in [("left", None, 0), ("joined", Some("ambient"), LABELLED)] {
            let times = flip(&cluster, mode, wanted);
            println!(
                "agent   round {round}: {LABELLED} pods {what} by a label: median {:.0} ms, p99 \
                 {:.0} ms",
                median(times.clone()),
                percentile(times, 99)
            );
        }
    }
}

/// A pod object of realistic size.
fn object_of(i: usize, node: &str) -> Value {
    let container = |name: &str| {
        json!({
            "name": name,
            "image": "registry.example.com/team/application:1.2.3",
            "env": (0..8)
                .map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "of some length" }))
                .collect::<Vec<_>>(),
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("other-{i}"),
            "labels": { "app": format!("app-{}", i / 10) },
        },
        "spec": { "nodeName": node, "containers": [container("main"), container("helper")] },
    })
}

/// The number of pods of a namespace that are annotated as enrolled.
fn annotated(cluster: &Cluster, namespace: &str) -> usize {
    let list = cluster
        .kubernetes
        .api
        .get(&format!("/api/v1/namespaces/{namespace}/pods"))
        .unwrap();
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["metadata"]["annotations"][istio::annotation::REDIRECTION] == "enabled")
        .count()
}

/// Changes pods of this node and of another one in turns until `over` is set; returns the changes
/// per second.
fn churn(cluster: &Cluster, pods: &[ClusterPod], over: &AtomicBool) -> f64 {
    let begun = Instant::now();
    let mut changes = 0;
    while !over.load(Ordering::Relaxed) {
        let turn = usize::try_from(changes).unwrap();
        let path = if turn.is_multiple_of(2) {
            let pod = &pods[turn % pods.len()];
            format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
        } else {
            format!(
                "/api/v1/namespaces/elsewhere/pods/other-{}",
                turn % ELSEWHERE
            )
        };
        let change = json!({ "metadata": { "annotations": { "changed": changes.to_string() } } });
        cluster.kubernetes.api.patch(&path, &change).unwrap();
        changes += 1;
        let due = Duration::from_millis(changes * 1000 / CHANGES_PER_SECOND);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    changes as f64 / begun.elapsed().as_secs_f64()
}

/// Sets or removes the label of the namespace; returns after how many milliseconds each of its pods
/// was annotated accordingly.
fn flip(cluster: &Cluster, mode: Option<&str>, wanted: usize) -> Vec<f64> {
    let change = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
    let begun = Instant::now();
    cluster
        .kubernetes
        .api
        .patch("/api/v1/namespaces/flip", &change)
        .unwrap();
    let mut times = Vec::new();
    until("all annotations are updated", || {
        let annotated = annotated(cluster, "flip");
        let updated = if wanted == 0 {
            LABELLED - annotated
        } else {
            annotated
        };
        times.resize(updated.max(times.len()), ms(begun));
        thread::sleep(Duration::from_millis(5));
        (annotated == wanted).then_some(())
    });
    times
}

/// How long two nodes with kubelets take to start forty pods, in the mesh and outside it,
/// alternating.
fn on_a_cluster() {
    const PODS: usize = 40;
    const ROUNDS: usize = 3;
    let kube = Kube::mesh();
    let mut times: [Vec<f64>; 2] = Default::default();
    let mut sandboxes: [Vec<f64>; 2] = Default::default();
    for round in 0..ROUNDS {
        for (at, mesh) in [false, true].into_iter().enumerate() {
            let namespace = format!("forty-{round}-{at}");
            kube.namespace(&namespace, mesh);
            let before = sandbox_totals(&kube);
            let begun = Instant::now();
            kube.apply(&deployment(&namespace, PODS).to_string());
            await_within(150, "forty pods are ready", || {
                let found = kube.get(&format!(
                    "/apis/apps/v1/namespaces/{namespace}/deployments/forty"
                ))?;
                (found["status"]["readyReplicas"] == PODS).then_some(())
            });
            times[at].push(begun.elapsed().as_secs_f64());
            let after = sandbox_totals(&kube);
            sandboxes[at].push((after.0 - before.0) / (after.1 - before.1) * 1e3);
            kube.kubectl(&["delete", "namespace", &namespace, "--timeout=120s"]);
        }
    }
    let [outside, inside] = times.map(median);
    let [sandbox_outside, sandbox_inside] = sandboxes.map(median);
    println!(
        "agent   {PODS} pods ready on two nodes: outside the mesh {outside:.1} s, in the mesh \
         {inside:.1} s ({:.2} times)",
        inside / outside
    );
    println!(
        "agent   mean time of a sandbox, by the kubelet's metrics: {sandbox_outside:.0} ms and \
         {sandbox_inside:.0} ms"
    );
}

fn deployment(namespace: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "forty", "namespace": namespace },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "forty" } },
            "template": { "metadata": { "labels": { "app": "forty" } }, "spec": spec(None, None) },
        },
    })
}

/// Total seconds and number of sandboxes that both kubelets have created.
fn sandbox_totals(kube: &Kube) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for node in &kube.nodes {
        let metrics = kube.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{}/proxy/metrics", node.name),
        ]);
        let value = |suffix: &str| {
            let start = format!(
                "kubelet_runtime_operations_duration_seconds_{suffix}{{operation_type=\"\
                 run_podsandbox\"}}"
            );
            let line = metrics.lines().find(|l| l.starts_with(&start));
            line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .unwrap_or_default()
        };
        sums = (sums.0 + value("sum"), sums.1 + value("count"));
    }
    sums
}
