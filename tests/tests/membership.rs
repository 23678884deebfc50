//! Running pods join and leave when the mesh file changes, without losing a connection; and the
//! effect of annotations.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use agent_status::{EnrolmentReason, PodState, PodStatus, VerificationState};
use netns::NetNs;
use redirect::{CaptureKind, Plan};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use underpass_tests::arrivals::carries_both_ways;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain, transparent};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{self, MESH, Sandbox, read_line, serve_echo, until};
use underpass_tests::traffic::Traffic;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// A mesh with these labels of the pod's namespace and annotations of the pod.
fn mesh(labels: &str, annotations: &str) -> String {
    format!(
        r#"
namespaces: [{{ name: default, labels: {{ {labels} }} }}, {{ name: outside }}]
workloads:
  - {{ name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"], annotations: {{ {annotations} }} }}
  - {{ name: peer, namespace: outside, workloadIps: [10.78.0.2, "fd78::2"] }}
"#
    )
}

const AMBIENT: &str = "istio.io/dataplane-mode: ambient";

fn write_mesh(node: &TestNode, text: &str) {
    let staged = node.file("mesh.new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, node.file("mesh.yaml")).unwrap();
}

fn add(node: &TestNode, wire: &Wire, change: impl FnOnce(&mut Value)) -> std::process::Output {
    let mut config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    change(&mut config);
    Call::new("ADD", &path_of(&wire.pod), &config).run()
}

fn pod(node: &TestNode) -> PodStatus {
    node.pod("client")
}

fn await_pod(node: &TestNode, what: &str, holds: impl Fn(&PodStatus) -> bool) -> PodStatus {
    until(what, || Some(pod(node)).filter(&holds))
}

fn is_verified(pod: &PodStatus) -> bool {
    pod.verification
        .as_ref()
        .is_some_and(|v| v.state == VerificationState::Verified)
}

fn has_rules(wire: &Wire) -> bool {
    !wire
        .pod
        .run(redirect::read_back)
        .unwrap()
        .unwrap()
        .is_empty()
}

fn differences(wire: &Wire, plan: &Plan) -> Vec<redirect::Difference> {
    redirect::diff(plan, &wire.pod.run(redirect::read_back).unwrap().unwrap())
}

/// A connection in each family and direction: both ends.
fn open_connections(wire: &Wire, port: u16) -> Vec<(TcpStream, TcpStream)> {
    let pair = |from, to, address| {
        let at = SocketAddr::new(address, port);
        let server = plain(to, at);
        let client = connect(from, at).unwrap();
        (client, accept(&server).unwrap().0)
    };
    let (pod, peer) = (&wire.pod, &wire.peer);
    vec![
        pair(pod, peer, PEER4),
        pair(pod, peer, PEER6),
        pair(peer, pod, POD4),
        pair(peer, pod, POD6),
    ]
}

fn all_carry_data(connections: &mut [(TcpStream, TcpStream)]) {
    for (a, b) in connections {
        carries_both_ways(a, b).unwrap();
    }
}

fn joins_and_leaves(capture: &str) {
    let (mut node, wire) = (
        TestNode::new(&format!("members-{capture}"), &mesh("", "")),
        Wire::new(),
    );
    node.start_agent_with(&["--capture".as_ref(), capture.as_ref()]);
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    assert_eq!(pod(&node).state, PodState::Skipped);
    assert!(!has_rules(&wire));

    let mut before = open_connections(&wire, 8001);
    write_mesh(&node, &mesh(AMBIENT, ""));
    let joined = await_pod(&node, "the pod is verified", is_verified);
    assert_eq!(joined.reason_code, Some(EnrolmentReason::NamespaceLabel));
    all_carry_data(&mut before);
    let mut captured = open_connections(&wire, 8002);
    all_carry_data(&mut captured);
    let seen = captured
        .iter()
        .map(|(_, served)| served.peer_addr().unwrap().ip().to_canonical());
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [POD4, POD6, PEER4, PEER6],
        "addresses are preserved"
    );

    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "the pod leaves", |p| p.state == PodState::Leaving);
    all_carry_data(&mut before);
    all_carry_data(&mut captured);
    let mut after = open_connections(&wire, 8003);
    assert!(
        node.log("agent").contains("open=4"),
        "the agent counts captured connections"
    );
    drop(captured);
    await_pod(&node, "the pod is outside", |p| {
        p.state == PodState::Skipped
    });
    assert!(!has_rules(&wire), "rules are left in the pod");
    all_carry_data(&mut before);
    all_carry_data(&mut after);
    until("the proxy's listeners are closed", || {
        let listeners = wire.pod.run(redirect::listeners).unwrap().unwrap();
        let is_proxys = |port| [15001, 15006, 15008].contains(&port);
        (!listeners.iter().any(|l| is_proxys(l.address.port()))).then_some(())
    });
}

#[test]
fn a_running_pod_joins_and_leaves_without_losing_a_connection() {
    joins_and_leaves("routed");
}

#[test]
fn a_running_pod_joins_and_leaves_without_losing_a_connection_under_nat() {
    joins_and_leaves("nat");
}

#[test]
fn a_running_pod_joins_and_leaves_without_losing_a_connection_under_iptables() {
    joins_and_leaves("nat-iptables-nft");
}

/// A node with an enrolled pod.
fn enrolled(name: &str, capture: &str) -> (TestNode, Wire) {
    let (mut node, wire) = (
        TestNode::new(&format!("{name}-{capture}"), &mesh(AMBIENT, "")),
        Wire::new(),
    );
    node.start_agent_with(&[
        "--capture".as_ref(),
        capture.as_ref(),
        "--dns-capture".as_ref(),
        "true".as_ref(),
    ]);
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    (node, wire)
}

/// Client, server and address, in each direction and family.
fn flows(wire: &Wire) -> [(&NetNs, &NetNs, SocketAddr); 4] {
    let (pod, peer) = (&wire.pod, &wire.peer);
    [
        (pod, peer, PEER4),
        (pod, peer, PEER6),
        (peer, pod, POD4),
        (peer, pod, POD6),
    ]
    .map(|(client, server, address)| (client, server, SocketAddr::new(address, 8001)))
}

/// Joins and leaves repeatedly, while connections in each family and direction carry data and new
/// ones are opened: 15 times, or as often as `ROUNDS` in the environment says.
fn joins_and_leaves_under_traffic(capture: &str) {
    let (node, wire) = enrolled("traffic", capture);
    let mut traffic = Traffic::default();
    for (client, server, at) in flows(&wire) {
        traffic.serve(server, at);
        traffic.talk(client, at);
        traffic.connect(client, at);
    }
    let rounds = std::env::var("ROUNDS").map_or(15, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        write_mesh(&node, &mesh("", ""));
        await_pod(&node, "the pod leaves", |p| p.state == PodState::Leaving);
        assert_eq!(traffic.failures(), [""; 0], "round {round}, leaving");
        write_mesh(&node, &mesh(AMBIENT, ""));
        await_pod(&node, "the pod is verified", is_verified);
        assert_eq!(traffic.failures(), [""; 0], "round {round}, joining");
    }
}

#[test]
fn a_pod_joins_and_leaves_under_traffic_without_losing_a_connection() {
    joins_and_leaves_under_traffic("routed");
}

#[test]
fn a_pod_joins_and_leaves_under_traffic_without_losing_a_connection_under_nat() {
    joins_and_leaves_under_traffic("nat");
}

/// Leaves completely and joins again, while short connections are opened.
fn leaves_and_rejoins(capture: &str) {
    let (node, wire) = enrolled("brief", capture);
    let mut traffic = Traffic::default();
    for (client, server, at) in flows(&wire) {
        traffic.serve(server, at);
        traffic.connect(client, at);
    }
    for round in 0..2 {
        write_mesh(&node, &mesh("", ""));
        await_pod(&node, "the pod is outside", |p| {
            p.state == PodState::Skipped
        });
        assert_eq!(traffic.failures(), [""; 0], "round {round}, outside");
        assert!(!has_rules(&wire), "rules are left in the pod");
        write_mesh(&node, &mesh(AMBIENT, ""));
        await_pod(&node, "the pod is verified", is_verified);
        assert_eq!(traffic.failures(), [""; 0], "round {round}, inside");
    }
}

#[test]
fn connections_opened_while_a_pod_leaves_survive() {
    leaves_and_rejoins("routed");
}

#[test]
fn connections_opened_while_a_pod_leaves_survive_under_nat() {
    leaves_and_rejoins("nat");
}

/// Runs a program in a namespace.
fn run(netns: &NetNs, program: &str, args: &str) {
    let args = args.split_whitespace();
    let done = netns.run(|| Command::new(program).args(args).output());
    let done = done.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program}: {stderr}");
}

/// Sends the SYN of a connection, and does not wait for the answer.
fn begin_connecting(netns: &NetNs, to: SocketAddr) -> Socket {
    let socket = netns
        .run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))
        .unwrap()
        .unwrap();
    socket.set_nonblocking(true).unwrap();
    let pending = socket.connect(&to.into()).unwrap_err();
    assert_eq!(pending.raw_os_error(), Some(nix::libc::EINPROGRESS));
    socket
}

/// Waits until a begun connection arrives at its server.
#[track_caller]
fn assert_arrives(client: &Socket, server: &TcpListener) {
    until("the connection is open", || {
        assert_eq!(client.take_error().unwrap().map(|e| e.kind()), None);
        client.peer_addr().ok()
    });
    accept(server).unwrap();
}

/// The peer does not receive the first SYN. The second follows when the pod has joined, but
/// conntrack knows the connection and redirects none of it.
#[test]
fn a_connection_whose_first_syn_was_lost_before_the_join_survives() {
    for capture in [CaptureKind::Nat, CaptureKind::NatIptablesNft] {
        for peer in [PEER4, PEER6] {
            let wire = Wire::new();
            let plan = Plan {
                capture,
                ..Plan::for_pod([POD4, POD6])
            };
            let in_pod = |work: &dyn Fn()| wire.pod.run(work).unwrap();
            // Conntrack is active in a leaving pod.
            in_pod(&|| {
                redirect::join(&plan).unwrap();
                redirect::leave(&plan, &redirect::Exceptions::new(), true).unwrap();
            });
            let at = SocketAddr::new(peer, 8001);
            let server = plain(&wire.peer, at);
            let loss = "add table inet loss; \
                add chain inet loss in { type filter hook input priority 0; }; \
                add rule inet loss in tcp dport 8001 drop";
            run(&wire.peer, "nft", loss);
            let client = begin_connecting(&wire.pod, at);
            in_pod(&|| {
                redirect::join(&plan).unwrap();
            });
            run(&wire.peer, "nft", "delete table inet loss");
            assert_arrives(&client, &server);
        }
    }
}

/// Whether a connection to this port waits for its SYN to be answered.
fn sends_syns(netns: &NetNs, port: u16) -> bool {
    const SYN_SENT: &str = "02";
    let sockets = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        netns
            .run(|| std::fs::read_to_string(path))
            .unwrap()
            .unwrap()
    };
    [sockets("tcp"), sockets("tcp6")]
        .concat()
        .lines()
        .any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == SYN_SENT
        })
}

/// The SYN is lost while the destination is outside the mesh. When the next one is answered, it has
/// joined, and accepts only clients with an identity.
#[test]
fn a_connection_opened_before_its_destination_joined_goes_through_the_mesh() {
    let joined = MESH.replace(
        "name: outside }",
        "name: outside, labels: { istio.io/dataplane-mode: ambient } }",
    );
    let strict = "policies:\n  - { name: strict, namespace: outside, scope: Namespace, \
        action: Deny, rules: [[[{ notPrincipals: [Presence] }]]] }\n";
    for (family, name) in ["joins-meanwhile-4", "joins-meanwhile-6"]
        .iter()
        .enumerate()
    {
        let sandbox = Sandbox::up(name);
        let (client, server) = (sandbox.pod("client"), sandbox.pod("outsider"));
        serve_echo(&server, 8080);
        let loss = "add table inet loss; \
            add chain inet loss in { type filter hook input priority 0; }; \
            add rule inet loss in tcp dport 8080 drop";
        run(&server, "nft", loss);
        let to = SocketAddr::new(sandbox.ips("outsider")[family], 8080);
        let mut stream = sandbox::connect(&client, to).unwrap();
        until("the proxy is connecting", || {
            sends_syns(&client, to.port()).then_some(())
        });
        sandbox.set_mesh(&format!("{joined}{strict}"));
        until("the destination has joined", || {
            let dump = sandbox.get("node-1", "127.0.0.1:15000", "/config_dump").1;
            let dump: Value = serde_json::from_str(&dump).unwrap();
            let mut workloads = dump["workloads"].as_array().unwrap().iter();
            let is_known = workloads.any(|w| w["name"] == "outsider" && w["protocol"] == "HBONE");
            (is_known && sandbox.state("outsider") == "enrolled").then_some(())
        });
        run(&server, "nft", "delete table inet loss");
        let seen = read_line(&mut stream).unwrap();
        assert_eq!(seen, sandbox.ips("client")[family].to_string());
    }
}

/// The SYN is on its way to the proxy, over lo, when the pod leaves.
#[test]
fn a_connection_on_its_way_to_the_proxy_survives_leaving() {
    for peer in [PEER4, PEER6] {
        let wire = Wire::new();
        let plan = Plan::for_pod([POD4, POD6]);
        let in_pod = |work: &dyn Fn()| wire.pod.run(work).unwrap();
        in_pod(&|| {
            redirect::join(&plan).unwrap();
        });
        let _proxy = transparent(&wire.pod, 15001);
        let at = SocketAddr::new(peer, 8001);
        let server = plain(&wire.peer, at);
        let set_rate = |verb: &str, rate: &str| {
            let qdisc = format!("qdisc {verb} dev lo root tbf rate {rate} burst 100 limit 10000");
            run(&wire.pod, "tc", &qdisc);
        };
        let send_over_lo = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(&[0; 44], "127.0.0.1:9").unwrap();
        };
        // The first packet uses up the burst, so that the SYN waits for a minute.
        set_rate("add", "8bit");
        in_pod(&|| send_over_lo());
        let client = begin_connecting(&wire.pod, at);
        in_pod(&|| {
            redirect::leave(&plan, &redirect::Exceptions::new(), true).unwrap();
        });
        // Another packet makes the kernel apply the new rate to those that wait.
        set_rate("change", "1mbit");
        in_pod(&|| send_over_lo());
        assert_arrives(&client, &server);
    }
}

#[test]
fn a_leaving_pod_can_rejoin() {
    let (mut node, wire) = (TestNode::new("mind", &mesh(AMBIENT, "")), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    assert!(add(&node, &wire, |_| {}).status.success());
    let mut captured = open_connections(&wire, 8001);
    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "the pod leaves", |p| p.state == PodState::Leaving);
    let mut outside = open_connections(&wire, 8002);
    // The agent is killed meanwhile.
    node.kill_all();
    node.start_agent();
    node.start_ready_proxy();
    // It may not have stored yet that the pod leaves.
    await_pod(&node, "the pod leaves", |p| p.state == PodState::Leaving);
    write_mesh(&node, &mesh(AMBIENT, ""));
    await_pod(&node, "the pod is verified", is_verified);
    all_carry_data(&mut outside);
    drop(captured.drain(..)); // closed, as their proxy was killed
    assert_eq!(differences(&wire, &Plan::for_pod([POD4, POD6])), []);
}

#[test]
fn without_a_proxy_a_running_pod_stays_outside() {
    let (mut node, wire) = (TestNode::new("no-proxy-yet", &mesh("", "")), Wire::new());
    node.start_agent();
    assert!(add(&node, &wire, |_| {}).status.success());
    write_mesh(&node, &mesh(AMBIENT, ""));
    let waiting = await_pod(&node, "the reason is reported", |p| {
        p.reason.contains("UP-AGENT-006")
    });
    assert_eq!(
        (waiting.state, waiting.reason_code),
        (PodState::Skipped, None)
    );
    all_carry_data(&mut open_connections(&wire, 8001));
    write_mesh(&node, &mesh("", ""));
    await_pod(&node, "the reason is the current one", |p| {
        p.reason_code == Some(EnrolmentReason::NoLabel)
    });
    write_mesh(&node, &mesh(AMBIENT, ""));
    // The next agent knows the pod as well, once it is stored: an ADD outside the mesh does not
    // wait for the disk.
    until("the pod is stored", || {
        let state = std::fs::read_to_string(node.file("state/pods.json"));
        state.is_ok_and(|s| s.contains("client")).then_some(())
    });
    node.kill_all();
    node.start_agent();
    node.start_ready_proxy();
    await_pod(&node, "the pod is verified", is_verified);
}

/// The agent was killed while the pod joined, and the pod should no longer join.
#[test]
fn rules_of_an_interrupted_join_do_not_cut_off_a_pod_outside_the_mesh() {
    let (mut node, wire) = (TestNode::new("killed-join", &mesh("", "")), Wire::new());
    node.start_agent();
    assert!(add(&node, &wire, |_| {}).status.success());
    let is_written = || {
        std::fs::read_to_string(node.file("state/pods.json")).is_ok_and(|s| s.contains("client"))
    };
    until("the pod is in the state file", || {
        is_written().then_some(())
    });
    let run = |program: &str, args: &[&str]| {
        let done = wire
            .pod
            .run(|| Command::new(program).args(args).output())
            .unwrap()
            .unwrap();
        assert!(
            done.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let no_table = || run("nft", &["delete table inet underpass"]);
    let no_rules = || {
        ["-4", "-6"]
            .into_iter()
            .for_each(|family| run("ip", &[family, "rule", "del", "pref", "32764"]))
    };
    let removals: [(&str, &dyn Fn()); 3] = [
        ("whole", &|| ()),
        ("no table", &no_table),
        ("no ip rules", &no_rules),
    ];
    for (number, (what, remove)) in (0..).zip(removals) {
        node.kill_all();
        wire.pod
            .run(|| redirect::join(&Plan::for_pod([POD4, POD6])))
            .unwrap()
            .unwrap();
        remove();
        assert!(has_rules(&wire), "{what}");
        node.start_agent();
        until(what, || (!has_rules(&wire)).then_some(()));
        all_carry_data(&mut open_connections(&wire, 8001 + number));
        until("it is logged", || {
            node.log("agent")
                .contains("event=\"interrupted_join_undone\"")
                .then_some(())
        });
        assert_eq!(pod(&node).state, PodState::Skipped);
    }
}

#[test]
fn annotations_change_the_plan_of_new_and_running_pods() {
    let (mut node, wire) = (TestNode::new("annotated", &mesh(AMBIENT, "")), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // From the runtime, in containerd's format.
    let annotations =
        json!({ "underpass.io/exclude-outbound-ports": "8001", "other/annotation": "x" });
    let runtime = json!({ "io.kubernetes.cri.pod-annotations": annotations, "other": 3 });
    assert!(
        add(&node, &wire, |c| c["runtimeConfig"] = runtime)
            .status
            .success()
    );
    let mut plan = Plan::for_pod([POD4, POD6]);
    plan.exclude.outbound_ports = [8001].into();
    assert_eq!(differences(&wire, &plan), []);
    // From the mesh while the pod runs; the runtime's annotations still apply.
    write_mesh(
        &node,
        &mesh(
            AMBIENT,
            r#""underpass.io/exclude-inbound-cidrs": "10.78.0.2""#,
        ),
    );
    plan.exclude.inbound_cidrs = ["10.78.0.2/32".parse().unwrap()].into();
    until("the plan has changed", || {
        differences(&wire, &plan).is_empty().then_some(())
    });
    // A typo changes nothing and is logged.
    write_mesh(
        &node,
        &mesh(
            AMBIENT,
            r#""underpass.io/exclude-inbound-cidrs": "10.78.0.2/77""#,
        ),
    );
    until("the typo is logged", || {
        node.log("agent").contains("10.78.0.2/77").then_some(())
    });
    assert_eq!(differences(&wire, &plan), []);
}

#[test]
fn an_invalid_annotation_fails_the_add_and_is_named() {
    let (mut node, wire) = (
        TestNode::new("bad-annotation", &mesh(AMBIENT, "")),
        Wire::new(),
    );
    node.start_agent();
    node.start_ready_proxy();
    for (name, value) in [
        (
            "istio.io/reroute-virtual-interfaces",
            "eth0 -j ACCEPT".to_owned(),
        ),
        ("underpass.io/exclude-inbound-ports", "1-9".to_owned()),
        (
            "underpass.io/exclude-outbound-cidrs",
            "10.1.1.1,".repeat(1000),
        ),
    ] {
        let runtime = json!({ "io.kubernetes.cri.pod-annotations": { name: value } });
        let failed = add(&node, &wire, |c| c["runtimeConfig"] = runtime);
        let text = String::from_utf8(failed.stdout).unwrap();
        assert!(
            !failed.status.success() && text.contains("UP-AGENT-015") && text.contains(name),
            "{text}"
        );
        assert!(!has_rules(&wire));
    }
    // Invalid values of Istio's booleans are ignored, as by istio-cni.
    let runtime = json!({
        "io.kubernetes.cri.pod-annotations": { "ambient.istio.io/bypass-inbound-capture": "yes" },
    });
    assert!(
        add(&node, &wire, |c| c["runtimeConfig"] = runtime)
            .status
            .success()
    );
    assert_eq!(differences(&wire, &Plan::for_pod([POD4, POD6])), []);
}

#[test]
fn the_agent_reports_the_chosen_capture_and_the_reason() {
    let mut node = TestNode::new("capture", &mesh(AMBIENT, ""));
    node.start_agent();
    let capture = node.status().capture;
    assert_eq!(capture.kind, "routed");
    assert!(!capture.why.is_empty(), "{capture:?}");
    for kind in CaptureKind::ALL {
        let (mut node, wire) = (
            TestNode::new(&format!("capture-{kind}"), &mesh(AMBIENT, "")),
            Wire::new(),
        );
        node.start_agent_with(&[
            "--capture".as_ref(),
            kind.name().as_ref(),
            "--dns-capture".as_ref(),
            "true".as_ref(),
        ]);
        node.start_ready_proxy();
        assert!(add(&node, &wire, |_| {}).status.success(), "{kind}");
        let plan = Plan {
            capture: kind,
            dns: true,
            ..Plan::for_pod([POD4, POD6])
        };
        assert_eq!(differences(&wire, &plan), []);
        all_carry_data(&mut open_connections(&wire, 8001));
    }
}

/// As with `hostUsers: false`: the network namespace belongs to the user namespace of the pod.
#[test]
fn a_pod_in_a_user_namespace_joins_and_leaves() {
    for capture in ["routed", "nat"] {
        let mut node = TestNode::new(&format!("userns-{capture}"), &mesh(AMBIENT, ""));
        let mut command = Command::new("unshare");
        let command = command.args(["--user", "--map-root-user", "--net", "sleep", "600"]);
        let mut process = netns::process::die_with_parent(command).spawn().unwrap();
        let path = format!("/proc/{}/ns/net", process.id());
        let own = NetNs::current().unwrap().id();
        let netns = until("the process has its own namespaces", || {
            let netns = NetNs::open(&path).ok()?;
            (netns.id() != own).then_some(netns)
        });
        let wire = Wire::to_pod(netns);
        node.start_agent_with(&["--capture".as_ref(), capture.as_ref()]);
        node.start_ready_proxy();
        assert!(add(&node, &wire, |_| {}).status.success(), "{capture}");
        await_pod(&node, "the pod is verified", is_verified);
        all_carry_data(&mut open_connections(&wire, 8001));
        write_mesh(&node, &mesh("x: y", ""));
        until("the pod has left", || (!has_rules(&wire)).then_some(()));
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
