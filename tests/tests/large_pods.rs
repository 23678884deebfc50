//! Running pods with thousands of open connections, pods with as many exclusions as are allowed,
//! and pods in which a process creates objects without end.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use agent_status::{PodState, PodStatus, VerificationReason, VerificationState};
use ipnet::IpNet;
use redirect::{
    CaptureKind, Exceptions, Exclusions, Plan, diff, join, leave, read_back,
    release_closed_exceptions, repair,
};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::crowd::Crowd;
use underpass_tests::listener::talk;
use underpass_tests::measure::resident;
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::{Connection, POD4, POD6, Wire, flush_rules};

const AMBIENT: &str = "istio.io/dataplane-mode: ambient";

fn plan() -> Plan {
    Plan::for_pod([POD4, POD6])
}

fn all_talk(connections: &mut [Connection]) {
    for (a, b) in connections {
        talk(a, b);
    }
}

/// Closes connections with resets, so that both ends are closed when this returns or soon after.
fn reset(connections: impl IntoIterator<Item = Connection>) {
    for (a, _) in connections {
        netns::sockopt::reset_on_close(&a).unwrap();
    }
}

/// The open connections that are exempt, of a pod that must be as planned.
fn exempted(wire: &Wire) -> usize {
    let observed = wire.pod.run(read_back).unwrap().unwrap();
    assert_eq!(diff(&plan(), &observed), []);
    observed.exempted_connections().len()
}

/// The exceptions in the calling thread's namespace.
fn present() -> Exceptions {
    read_back().unwrap().exempted_connections()
}

/// Releases exceptions until as many remain.
fn release_until(wire: &Wire, remaining: usize) {
    until("the exceptions are released", || {
        let left = wire
            .pod
            .run(|| release_closed_exceptions(&plan(), &present()));
        (left.unwrap().unwrap().len() == remaining).then_some(())
    });
    assert_eq!(exempted(wire), remaining);
}

fn joins_with_open_connections(count: usize) {
    let wire = Wire::new();
    let mut open = wire.open_connections(count);
    let timed = |what: &str, work: &dyn Fn()| {
        let start = Instant::now();
        wire.pod.run(work).unwrap();
        println!("{count} connections: {what} took {:?}", start.elapsed());
    };
    timed("joining", &|| {
        assert_eq!(join(&plan()).unwrap().exempted.len(), count);
    });
    assert_eq!(exempted(&wire), count);
    all_talk(&mut open);

    // The table is missing.
    wire.pod.run(delete_table).unwrap();
    all_talk(&mut open[..4]);
    timed("repairing the table", &|| {
        repair(&plan(), &present()).unwrap()
    });
    assert_eq!(exempted(&wire), count);
    all_talk(&mut open);

    reset(open.drain(..count / 2));
    timed("releasing half", &|| {
        release_closed_exceptions(&plan(), &present()).unwrap();
    });
    release_until(&wire, count / 2);
    all_talk(&mut open);

    // The pod leaves and joins again.
    timed("leaving", &|| {
        assert_eq!(leave(&plan(), &present(), false).unwrap(), 0);
    });
    all_talk(&mut open);
    timed("joining again", &|| {
        assert_eq!(join(&plan()).unwrap().exempted.len(), count / 2);
    });
    all_talk(&mut open);
    reset(open);
    release_until(&wire, 0);
    // Without the ip rules no exception is known, and none is invented.
    flush_rules(&wire.pod);
    wire.pod
        .run(|| repair(&plan(), &present()).unwrap())
        .unwrap();
    assert_eq!(exempted(&wire), 0);
}

/// Deletes the table of the calling thread's namespace.
fn delete_table() {
    let mut batch = nft::Batch::new(redirect::TABLE_NAME);
    batch.delete_table();
    batch.commit(&nft::Socket::open().unwrap()).unwrap();
}

#[test]
fn a_pod_with_a_hundred_open_connections_joins() {
    joins_with_open_connections(100);
}

#[test]
fn a_pod_with_a_thousand_open_connections_joins() {
    joins_with_open_connections(1000);
}

#[test]
fn a_pod_with_five_thousand_open_connections_joins() {
    joins_with_open_connections(5000);
}

/// A mesh with these labels of the pod's namespace and annotations of the pod.
fn mesh(labels: &str, annotations: &str) -> String {
    format!(
        r#"
namespaces: [{{ name: default, labels: {{ {labels} }} }}]
workloads:
  - {{ name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"], annotations: {{ {annotations} }} }}
"#
    )
}

fn write_mesh(node: &TestNode, text: &str) {
    let staged = node.file("mesh.new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, node.file("mesh.yaml")).unwrap();
}

fn add(node: &TestNode, wire: &Wire) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let done = Call::new("ADD", &path_of(&wire.pod), &config).run();
    let stdout = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{stdout}");
}

fn await_pod(node: &TestNode, what: &str, holds: impl Fn(&PodStatus) -> bool) {
    until(what, || Some(node.pod("client")).filter(&holds));
}

fn is_verified(pod: &PodStatus) -> bool {
    let state = pod.verification.as_ref().map(|v| v.state);
    state == Some(VerificationState::Verified)
}

#[test]
fn the_agent_enrols_and_repairs_a_pod_with_thousands_of_open_connections() {
    let (mut node, wire) = (TestNode::new("many-open", &mesh("", "")), Wire::new());
    node.start_agent_with(&["--capture".as_ref(), "routed".as_ref()]);
    node.start_ready_proxy();
    add(&node, &wire);
    let mut open = wire.open_connections(2000);
    let start = Instant::now();
    write_mesh(&node, &mesh(AMBIENT, ""));
    await_pod(&node, "the pod is verified", is_verified);
    println!("verified {:?} after the mesh changed", start.elapsed());
    assert_eq!(node.pod("client").exempted_connections, 2000);
    all_talk(&mut open);
    wire.pod.run(delete_table).unwrap();
    until("the table is repaired", || {
        let observed = wire.pod.run(read_back).unwrap().unwrap();
        diff(&plan(), &observed).is_empty().then_some(())
    });
    assert_eq!(exempted(&wire), 2000);
    all_talk(&mut open);
}

/// Each of the four lists with 64 entries, and the annotations for them.
fn most_exclusions() -> (Exclusions, String) {
    let cidrs = |family: u8| -> Vec<IpNet> {
        let cidr = |n: u8| match n % 2 {
            0 => format!("10.{family}.{n}.0/24"),
            _ => format!("fd{family:02}:{n:x}::/32"),
        };
        (0..64).map(|n| cidr(n).parse().unwrap()).collect()
    };
    let exclude = Exclusions {
        inbound_ports: (9000..9064).collect(),
        inbound_cidrs: cidrs(20).into_iter().collect(),
        outbound_ports: (5000..5064).collect(),
        outbound_cidrs: cidrs(30).into_iter().collect(),
    };
    fn list<T: ToString>(entries: impl IntoIterator<Item = T>) -> String {
        let entries = entries.into_iter().map(|e| e.to_string());
        entries.collect::<Vec<_>>().join(",")
    }
    let mut annotations = String::new();
    for (name, entries) in [
        ("inbound-ports", list(&exclude.inbound_ports)),
        ("inbound-cidrs", list(&exclude.inbound_cidrs)),
        ("outbound-ports", list(&exclude.outbound_ports)),
        ("outbound-cidrs", list(&exclude.outbound_cidrs)),
    ] {
        write!(annotations, "underpass.io/exclude-{name}: \"{entries}\", ").unwrap();
    }
    (exclude, annotations)
}

fn accepts_the_longest_lists(capture: CaptureKind, name: &str) {
    let (exclude, annotations) = most_exclusions();
    let plan = Plan {
        capture,
        exclude,
        ..plan()
    };
    let is_applied = |wire: &Wire| {
        let observed = wire.pod.run(read_back).unwrap().unwrap();
        diff(&plan, &observed).is_empty().then_some(())
    };
    let start = |test: &str, annotations: &str| {
        let mesh = mesh(AMBIENT, annotations);
        let (mut node, wire) = (TestNode::new(&format!("{test}-{name}"), &mesh), Wire::new());
        node.start_agent_with(&["--capture".as_ref(), name.as_ref()]);
        node.start_ready_proxy();
        add(&node, &wire);
        (node, wire)
    };
    // At ADD.
    let (node, wire) = start("limit-add", &annotations);
    await_pod(&node, "the pod is verified", is_verified);
    assert_eq!(is_applied(&wire), Some(()));
    // On a running pod.
    let (node, wire) = start("limit-run", "");
    write_mesh(&node, &mesh(AMBIENT, &annotations));
    until("the pod has the exclusions", || is_applied(&wire));
    await_pod(&node, "the pod is verified", is_verified);
}

#[test]
fn every_exclusion_list_may_have_sixty_four_entries() {
    accepts_the_longest_lists(CaptureKind::Routed, "routed");
}

#[test]
fn every_exclusion_list_may_have_sixty_four_entries_under_nat() {
    accepts_the_longest_lists(CaptureKind::Nat, "nat");
}

/// More than Underpass reads of any kind.
const CROWD: std::ops::Range<u32> = 0..100_000;

/// The mesh of the pod with the crowd, whose namespace has these labels, and of a second one.
fn crowd_mesh(labels: &str) -> String {
    let second = format!("namespaces: [{{ name: second, labels: {{ {AMBIENT} }} }}, ");
    mesh(labels, "").replace("namespaces: [", &second)
        + "  - { name: second, namespace: second, node: node, workloadIps: [10.78.0.2, \
           \"fd78::2\"] }\n"
}

fn node_with_crowd(name: &str, labels: &str) -> (TestNode, Wire, u32) {
    let (mut node, wire) = (TestNode::new(name, &crowd_mesh(labels)), Wire::new());
    let agent = node.start_agent_with(&["--capture".as_ref(), "routed".as_ref()]);
    node.start_ready_proxy();
    (node, wire, agent)
}

/// A call for the pod that has no crowd.
fn second_pod(node: &TestNode, wire: &Wire, verb: &str) {
    let config = config(&node.agent_socket(), &["10.78.0.2/24", "fd78::2/64"]);
    let args = "K8S_POD_NAMESPACE=second;K8S_POD_NAME=second;K8S_POD_UID=uid-2";
    let call = Call::new(verb, &path_of(&wire.peer), &config)
        .with("CNI_ARGS", Some(args))
        .with("CNI_CONTAINERID", Some("0"));
    let done = call.run();
    let stdout = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{verb}: {stdout}");
}

/// Ends what runs beside a test, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Another pod joins, is verified and leaves while the agent is `occupied` all the time.
fn others_come_and_go(node: &TestNode, wire: &Wire, occupied: impl Fn() + Sync) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                occupied();
            }
        });
        let _stop = Stop(&done);
        for _ in 0..5 {
            second_pod(node, wire, "ADD");
            let (status, _) = node.get("127.0.0.1:15014", "/healthz").unwrap();
            assert_eq!(status, 200);
            let path = "/verify?pod=second/second";
            let (status, body) = node.request("POST", "127.0.0.1:15014", path).unwrap();
            assert!(status == 200 && body.contains("\"verified\""), "{body}");
            second_pod(node, wire, "DEL");
        }
    });
}

fn is_reported_until_it_is_gone(crowd: Crowd) {
    let (node, wire, agent) = node_with_crowd(&format!("crowd-{crowd:?}"), AMBIENT);
    add(&node, &wire);
    await_pod(&node, "the pod is verified", is_verified);
    let before = resident(agent);
    crowd.create(&wire.pod, CROWD);
    let reason = until("the pod is reported", || {
        let found = node.pod("client").verification?;
        let is_reported = found.reason_code == Some(VerificationReason::TooManyObjects);
        is_reported.then_some(found.reason?)
    });
    for part in ["UP-REDIR-005", "more than 32768 exist", "Next step: "] {
        assert!(reason.contains(part), "{reason}");
    }
    others_come_and_go(&node, &wire, || drop(node.verify("client")));
    let grown = resident(agent) - before;
    assert!(grown < 64.0, "the agent has grown by {grown} MiB");
    crowd.delete(&wire.pod, CROWD);
    await_pod(&node, "the pod is verified again", is_verified);
}

#[test]
fn a_pod_with_endless_chains_is_reported_until_they_are_gone() {
    is_reported_until_it_is_gone(Crowd::Chains);
}

#[test]
fn a_pod_with_endless_rules_is_reported_until_they_are_gone() {
    is_reported_until_it_is_gone(Crowd::Rules);
}

#[test]
fn a_pod_with_endless_ip_rules_is_reported_until_they_are_gone() {
    is_reported_until_it_is_gone(Crowd::IpRules);
}

/// The kernel lists only Underpass's routing table.
#[test]
fn a_pod_with_endless_routes_is_verified_as_any_other() {
    let (node, wire, _) = node_with_crowd("crowd-routes", AMBIENT);
    Crowd::Routes.create(&wire.pod, CROWD);
    add(&node, &wire);
    assert!(is_verified(&node.verify("client")));
    others_come_and_go(&node, &wire, || drop(node.verify("client")));
    assert!(is_verified(&node.verify("client")));
}

#[test]
fn a_pod_with_endless_addresses_joins_once_they_are_gone() {
    let (node, wire, _) = node_with_crowd("crowd-addresses", "");
    add(&node, &wire);
    Crowd::Addresses.create(&wire.pod, CROWD);
    write_mesh(&node, &crowd_mesh(AMBIENT));
    await_pod(&node, "the reason is reported", |p| {
        p.state == PodState::Skipped && p.reason.contains("UP-REDIR-005")
    });
    others_come_and_go(&node, &wire, || drop(node.status()));
    Crowd::Addresses.delete(&wire.pod, CROWD);
    await_pod(&node, "the pod is verified", is_verified);
}
