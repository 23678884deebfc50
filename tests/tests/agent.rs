//! The built agent with the built plugin, and with well-behaved and misbehaving proxies.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Output;

use agent_status::PodState;
use netns::seqpacket::SeqPacket;
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::fakes::FakeProxy;
use underpass_tests::node::{MESH, TestNode, no_more_open, open_files};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::wire::{Wire, many_pods};
use zds::message::Payload;

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn add(node: &TestNode, wire: &Wire) -> Call {
    Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &ADDRESSES),
    )
}

fn del(node: &TestNode, wire: &Wire) -> Call {
    Call::new(
        "DEL",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &ADDRESSES),
    )
}

/// The error of a failed ADD: its number and its JSON text.
fn error(output: &Output) -> (u64, String) {
    assert!(!output.status.success(), "the ADD succeeded");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    (error["code"].as_u64().unwrap(), error.to_string())
}

fn has_no_rules(wire: &Wire) -> bool {
    wire.pod
        .run(redirect::read_back)
        .unwrap()
        .unwrap()
        .is_empty()
}

#[test]
fn add_without_a_proxy_fails_and_leaves_no_rules() {
    let (mut node, wire) = (TestNode::new("no-proxy", MESH), Wire::new());
    node.start_agent();
    let (code, text) = error(&add(&node, &wire).with_deadline(1500).run());
    assert_eq!(code, 11, "the runtime may retry");
    assert!(node.failed_by(&text, "UP-AGENT-006"), "{text}");
    assert!(text.contains("Next step"), "{text}");
    assert!(has_no_rules(&wire));
    assert_eq!(node.pods(), []);
}

#[test]
fn unresponsive_proxy_fails_the_add_within_the_deadline() {
    let (mut node, wire) = (TestNode::new("silent", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::connect(&node);
    let (code, text) = error(&add(&node, &wire).with_deadline(1500).run());
    assert_eq!(code, 11);
    assert!(node.failed_by(&text, "UP-AGENT-007"), "{text}");
    // The agent's own measure: this process may be stopped for longer.
    let log = node.log("agent");
    let waited = log.split_once("UP-AGENT-007: no proxy answered within ");
    let waited = waited.and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(waited.is_some_and(|ms| ms <= 1500), "{log}");
    assert!(has_no_rules(&wire));
    drop(proxy);
}

#[test]
fn proxy_rejection_fails_the_add_with_its_reason() {
    let (mut node, wire) = (TestNode::new("refusing", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::connect(&node);
    assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
    proxy.answer(Ok(()));
    let plugin = add(&node, &wire).start();
    let (Payload::Add(request), 1) = proxy.next() else {
        panic!("no Add with a descriptor")
    };
    assert_eq!(request.uid, "uid-1");
    let info = request.workload_info.unwrap();
    assert_eq!(
        (
            info.name.as_str(),
            info.namespace.as_str(),
            info.service_account.as_str()
        ),
        ("client", "default", "client")
    );
    proxy.answer(Err("no room today"));
    let (_, text) = error(&plugin.wait_with_output().unwrap());
    assert!(
        text.contains("UP-AGENT-008") && text.contains("no room today"),
        "{text}"
    );
    assert!(has_no_rules(&wire));
    assert!(
        matches!(proxy.next(), (Payload::Del(_), 0)),
        "the proxy is notified that the pod has left"
    );
}

#[test]
fn late_proxy_receives_the_waiting_pod_first() {
    let second = "  - { name: second, namespace: default, node: node, workloadIps: [10.78.0.2, \
                  \"fd78::2\"] }\n";
    let mesh = MESH.split("  - { name: peer").next().unwrap().to_owned() + second;
    let (mut node, wire) = (TestNode::new("late", &mesh), Wire::new());
    node.start_agent();
    // Another pod has joined already; its container id sorts first.
    let proxy = FakeProxy::connect(&node);
    assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
    proxy.answer(Ok(()));
    let stdin = config(&node.agent_socket(), &["10.78.0.2/24", "fd78::2/64"]);
    let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=second;K8S_POD_UID=uid-2";
    let other = Call::new("ADD", &path_of(&wire.peer), &stdin)
        .with("CNI_ARGS", Some(args))
        .with("CNI_CONTAINERID", Some("0"));
    let other = other.start();
    assert!(matches!(proxy.next(), (Payload::Add(_), 1)));
    proxy.answer(Ok(()));
    assert!(other.wait_with_output().unwrap().status.success());
    drop(proxy);
    until(
        "the agent has noticed that the proxy has disconnected",
        || node.status().proxies.is_empty().then_some(()),
    );

    let plugin = add(&node, &wire).start();
    until("the rules are installed", || {
        (!has_no_rules(&wire)).then_some(())
    });
    until("the agent lists both pods", || {
        (node.pods().len() == 2).then_some(())
    });
    let proxy = FakeProxy::connect(&node);
    let (Payload::Add(first), 1) = proxy.next() else {
        panic!("no Add with a descriptor")
    };
    assert_eq!(
        first.uid, "uid-1",
        "the pod for which a runtime waits comes first"
    );
    proxy.answer(Ok(()));
    assert!(plugin.wait_with_output().unwrap().status.success());
    let (Payload::Add(next), 1) = proxy.next() else {
        panic!("no Add with a descriptor")
    };
    assert_eq!(next.uid, "uid-2");
    proxy.answer(Ok(()));
    assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
}

#[test]
fn occupied_proxy_port_fails_the_add_and_is_named() {
    let (mut node, wire) = (TestNode::new("port-taken", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    let refused = |port: u16, udp: bool| {
        let (_, text) = error(&add(&node, &wire).run());
        let expected = ["UP-AGENT-008", "UP-PROXY-002", &port.to_string()];
        assert!(expected.iter().all(|e| text.contains(e)), "{text}");
        assert_eq!(text.contains("UDP"), udp, "{text}");
        assert!(has_no_rules(&wire));
    };
    for port in [15001, 15006, 15008, 15053] {
        let taken = wire
            .pod
            .run(|| std::net::TcpListener::bind(("::", port)))
            .unwrap()
            .unwrap();
        refused(port, false);
        drop(taken);
    }
    for any in ["0.0.0.0", "::"] {
        let taken = wire
            .pod
            .run(|| std::net::UdpSocket::bind((any, 15053)))
            .unwrap()
            .unwrap();
        refused(15053, true);
        drop(taken);
    }
    assert!(
        add(&node, &wire).run().status.success(),
        "the pod joins once the ports are free"
    );
    let listening = open_listeners(&wire);
    assert_eq!(listening, [15001, 15006, 15008, 15053]);
    assert!(del(&node, &wire).run().status.success());
    until("the listeners are closed", || {
        open_listeners(&wire).is_empty().then_some(())
    });
    assert!(has_no_rules(&wire));
}

/// The proxy cannot reject a pod of the snapshot: it retries, and is not ready until it serves the
/// pod.
#[test]
fn proxy_retries_a_pod_that_it_cannot_serve_yet() {
    let (mut node, wire) = (TestNode::new("port-later", MESH), Wire::new());
    node.start_agent();
    let proxy = node.start_ready_proxy();
    assert!(add(&node, &wire).run().status.success());
    node.kill(proxy);
    until("the listeners are closed", || {
        open_listeners(&wire).is_empty().then_some(())
    });
    let taken = wire
        .pod
        .run(|| std::net::TcpListener::bind(("::", 15006)))
        .unwrap()
        .unwrap();
    node.start_proxy();
    let readiness = || node.get("127.0.0.1:15021", "/healthz/ready").ok();
    let pending = until("the proxy reports what it waits for", || {
        readiness().filter(|(status, text)| *status == 500 && !text.contains("state manager"))
    });
    assert!(
        pending.1.contains("workload proxy manager"),
        "{}",
        pending.1
    );
    until("the pod is pending", || {
        let (_, metrics) = node.get("127.0.0.1:15020", "/metrics").ok()?;
        metrics
            .contains("workload_manager_pending_proxy_count 1")
            .then_some(())
    });
    assert!(
        readiness().is_some_and(|(status, _)| status == 500),
        "the snapshot is complete, but the pod is not served"
    );
    drop(taken);
    until("the pod is served", || {
        (open_listeners(&wire) == [15001, 15006, 15008, 15053]).then_some(())
    });
    until("the proxy is ready", || {
        readiness().filter(|(status, _)| *status == 200)
    });
}

/// The ports with listeners in the pod.
fn open_listeners(wire: &Wire) -> Vec<u16> {
    let table = wire
        .pod
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"))
        .unwrap()
        .unwrap();
    let listening = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let port = fields.nth(1)?.rsplit(':').next()?;
        (fields.nth(1)? == "0A").then(|| u16::from_str_radix(port, 16).unwrap())
    });
    let mut ports: Vec<u16> = listening.collect();
    ports.sort_unstable();
    ports
}

#[test]
fn pod_outside_the_mesh_is_unchanged() {
    let (mut node, wire) = (TestNode::new("outside", MESH), Wire::new());
    node.start_agent();
    let args = "K8S_POD_NAMESPACE=outside;K8S_POD_NAME=peer;K8S_POD_UID=uid-2";
    let output = add(&node, &wire).with("CNI_ARGS", Some(args)).run();
    assert!(output.status.success());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        result["unknown"],
        json!([1, 2]),
        "prevResult is passed through unchanged"
    );
    assert!(has_no_rules(&wire));
    assert_eq!(node.pod("peer").state, PodState::Skipped);
}

#[test]
fn unknown_mesh_pod_does_not_start() {
    let (mut node, wire) = (TestNode::new("unknown", MESH), Wire::new());
    node.start_agent();
    let unknown = add(&node, &wire)
        .with(
            "CNI_ARGS",
            Some("K8S_POD_NAMESPACE=default;K8S_POD_NAME=new"),
        )
        .run();
    let (code, text) = error(&unknown);
    assert_eq!(code, 11, "the pod may become known");
    assert!(text.contains("UP-AGENT-003"), "{text}");
    assert!(has_no_rules(&wire));
    // The mesh file names the pod now, but with another address than the pod has.
    let more = MESH.replace(
        "  - { name: peer",
        "  - { name: new, namespace: default, workloadIps: [10.78.0.9] }\n  - { name: peer",
    );
    std::fs::write(node.file("mesh.yaml"), more).unwrap();
    until("the mesh file is read again", || {
        node.log("agent")
            .contains("event=\"mesh_file_reloaded\"")
            .then_some(())
    });
    let other = add(&node, &wire)
        .with(
            "CNI_ARGS",
            Some("K8S_POD_NAMESPACE=default;K8S_POD_NAME=new"),
        )
        .run();
    let (code, text) = error(&other);
    assert_eq!(code, 100, "retrying does not help");
    assert!(
        text.contains("UP-AGENT-004") && text.contains("10.78.0.9"),
        "{text}"
    );
}

/// Sends a message to the agent as a plugin would, and returns its reply.
fn send(node: &TestNode, bytes: &[u8], fd: Option<&dyn AsFdObject>) -> Option<Value> {
    let plugin = SeqPacket::connect(node.agent_socket()).unwrap();
    plugin.set_timeout(PATIENCE).unwrap();
    plugin.send(bytes, fd.map(AsFdObject::borrowed)).unwrap();
    plugin
        .recv()
        .unwrap()
        .map(|p| serde_json::from_slice(&p.data).unwrap())
}

trait AsFdObject {
    fn borrowed(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsFdObject for T {
    fn borrowed(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

#[test]
fn only_the_pods_own_network_namespace_is_accepted() {
    let (mut node, wire) = (TestNode::new("wrong-fd", MESH), Wire::new());
    node.start_agent();
    let hello = |address: &str| {
        json!({
            "message": "add", "version": 1, "attachment": { "containerId": "c", "ifname": "eth0" },
            "pod": { "namespace": "default", "name": "client", "uid": "u" },
            "addresses": [address],
            "deadlineMs": 1000,
        })
        .to_string()
    };
    let file = File::open("/etc/hostname").unwrap();
    let mount = File::open("/proc/self/ns/mnt").unwrap();
    let cases: [(&str, Option<&dyn AsFdObject>); 5] = [
        ("10.78.0.1", None),
        ("10.78.0.1", Some(&file)),
        ("10.78.0.1", Some(&mount)),
        ("127.0.0.1", Some(&node.netns)), // the node's own namespace
        ("10.78.0.7", Some(&wire.pod)),   // an address that the pod does not have
    ];
    for (index, (address, fd)) in cases.into_iter().enumerate() {
        let answer = send(&node, hello(address).as_bytes(), fd).unwrap();
        assert_eq!(
            (&answer["message"], &answer["code"]),
            (&json!("failed"), &json!("UP-AGENT-002")),
            "case {index}: {answer}"
        );
    }
    assert!(has_no_rules(&wire));
    assert!(
        node.netns
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "the node has no rules"
    );
}

#[test]
fn malformed_messages_are_rejected_and_the_agent_keeps_running() {
    let (mut node, wire) = (TestNode::new("garbage", MESH), Wire::new());
    let pid = node.start_agent();
    node.start_ready_proxy();
    let before = open_files(pid);
    let messages: [&[u8]; 6] = [
        b"\xff\xfe",
        b"{}",
        b"[]",
        br#"{"message":"installed"}"#,
        br#"{"message":"del","version":99,"attachment":{"containerId":"c","ifname":"e"}}"#,
        br#"{"message":"add","version":1}"#,
    ];
    for message in messages {
        let answer = send(&node, message, Some(&wire.pod)).unwrap();
        assert_eq!(
            answer["code"],
            "UP-AGENT-001",
            "{}",
            String::from_utf8_lossy(message)
        );
    }
    for garbage in [&b"\xff\xff\xff"[..], &[8, 99], &[0; 20_000]] {
        let proxy = SeqPacket::connect(node.zds_socket()).unwrap();
        proxy.set_timeout(PATIENCE).unwrap();
        proxy.send(garbage, None).unwrap();
        assert!(
            proxy.recv().unwrap().is_none(),
            "the agent closes the connection of a proxy that sends garbage"
        );
    }
    assert!(add(&node, &wire).run().status.success());
    assert!(del(&node, &wire).run().status.success());
    until("no more files are open than before", || {
        (no_more_open(open_files(pid), before)).then_some(())
    });
}

#[test]
fn plugin_killed_during_add_leaves_nothing() {
    let (mut node, wire) = (TestNode::new("killed", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::connect(&node);
    assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
    proxy.answer(Ok(()));
    let mut plugin = add(&node, &wire).start();
    assert!(
        matches!(proxy.next(), (Payload::Add(_), 1)),
        "the rules are installed, and the proxy is asked"
    );
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    proxy.answer(Ok(()));
    assert!(matches!(proxy.next(), (Payload::Del(_), 0)));
    until("the rules are gone", || has_no_rules(&wire).then_some(()));
    assert_eq!(node.pods(), []);
}

#[test]
fn repeated_add_leaves_one_pod_and_del_of_an_unknown_pod_succeeds() {
    let (mut node, wire) = (TestNode::new("twice", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    assert!(del(&node, &wire).run().status.success());
    for _ in 0..2 {
        assert!(add(&node, &wire).run().status.success());
    }
    // The runtime recreates the sandbox: the same pod with another container id.
    let again = add(&node, &wire)
        .with("CNI_CONTAINERID", Some("another"))
        .run();
    assert!(again.status.success());
    assert_eq!(node.pods().len(), 1);
    assert_eq!(open_listeners(&wire), [15001, 15006, 15008, 15053]);
    assert!(
        del(&node, &wire).run().status.success(),
        "the first container's DEL arrives late"
    );
    assert_eq!(node.pods().len(), 1, "the late DEL does not remove the pod");
}

#[test]
fn damaged_state_file_is_logged_and_kept_aside() {
    let (mut node, wire) = (TestNode::new("state", MESH), Wire::new());
    std::fs::create_dir_all(node.file("state")).unwrap();
    std::fs::write(node.file("state/pods.json"), b"{ damaged").unwrap();
    node.start_agent();
    assert!(node.log("agent").contains("UP-AGENT-009"));
    assert_eq!(
        std::fs::read(node.file("state/pods.damaged.json")).unwrap(),
        b"{ damaged"
    );
    node.start_ready_proxy();
    assert!(add(&node, &wire).run().status.success());
    // State from an earlier boot is ignored.
    let state = std::fs::read_to_string(node.file("state/pods.json")).unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["pods"][0]["uid"], "uid-1");
    state["bootId"] = json!("another");
    node.kill_all();
    std::fs::write(node.file("state/pods.json"), state.to_string()).unwrap();
    node.start_agent();
    assert_eq!(node.pods(), []);
}

#[test]
fn two_hundred_add_del_cycles_leak_nothing() {
    let (mut node, wire) = (TestNode::new("cycles", MESH), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    let cycle = |index: usize| {
        let id = format!("container-{index}");
        let output = add(&node, &wire).with("CNI_CONTAINERID", Some(&id)).run();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(
            del(&node, &wire)
                .with("CNI_CONTAINERID", Some(&id))
                .run()
                .status
                .success()
        );
    };
    cycle(0);
    until("the first pod has left", || {
        open_listeners(&wire).is_empty().then_some(())
    });
    let before = (
        open_files(agent),
        open_files(proxy),
        threads(agent),
        threads(proxy),
    );
    (1..=200).for_each(cycle);
    until(
        "as many files, namespaces, sockets and threads exist as before",
        || {
            ((
                open_files(agent),
                open_files(proxy),
                threads(agent),
                threads(proxy),
            ) == before)
                .then_some(())
        },
    );
    assert!(has_no_rules(&wire));
    assert!(open_listeners(&wire).is_empty());
    assert_eq!(
        children(agent) + children(proxy),
        0,
        "agent and proxy have no child processes"
    );
}

fn threads(pid: u32) -> usize {
    std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))
        .unwrap()
        .count()
}

fn children(pid: u32) -> usize {
    let path = format!("/proc/{pid}/task/{pid}/children");
    std::fs::read_to_string(path).map_or(0, |c| c.split_whitespace().count())
}

#[test]
fn add_succeeds_if_one_of_two_proxies_serves_the_pod() {
    let (mut node, wire) = (TestNode::new("two-proxies", MESH), Wire::new());
    node.start_agent();
    let (old, new) = (FakeProxy::connect(&node), FakeProxy::connect(&node));
    for proxy in [&old, &new] {
        assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
        proxy.answer(Ok(()));
    }
    let plugin = add(&node, &wire).start();
    for proxy in [&old, &new] {
        assert!(matches!(proxy.next(), (Payload::Add(_), 1)));
    }
    old.answer(Err("shutting down"));
    new.answer(Ok(()));
    assert!(plugin.wait_with_output().unwrap().status.success());
    assert!(del(&node, &wire).run().status.success());
    for proxy in [&old, &new] {
        assert!(matches!(proxy.next(), (Payload::Del(_), 0)));
    }
}

fn add_numbered(node: &TestNode, wire: &Wire, index: usize) -> Call {
    let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{index};K8S_POD_UID=uid-{index}");
    add(node, wire)
        .with("CNI_CONTAINERID", Some(&format!("c{index}")))
        .with("CNI_ARGS", Some(&args))
}

#[test]
fn twenty_pods_join_concurrently_and_the_next_agent_verifies_them() {
    let (mesh, wires) = many_pods(20);
    let mut node = TestNode::new("parallel", &mesh);
    node.start_agent();
    node.start_ready_proxy();
    let plugins: Vec<_> = wires
        .iter()
        .enumerate()
        .map(|(i, w)| add_numbered(&node, w, i).start())
        .collect();
    for plugin in plugins {
        let output = plugin.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    until("all are verified", || {
        (node.verified_pods() == 20).then_some(())
    });
    // As long as a record has this mark, a pod without rules counts as one whose ADD failed.
    until("no record is marked as unanswered", || {
        let state = std::fs::read_to_string(node.file("state/pods.json")).unwrap();
        (!state.contains("unanswered")).then_some(())
    });
    // Agent and proxy are replaced, and meanwhile one pod loses its rules.
    node.kill_all();
    assert!(wires[7].pod.run(redirect::remove).unwrap().unwrap().found);
    node.start_agent();
    node.start_ready_proxy();
    until("all are verified again", || {
        (node.verified_pods() == 20).then_some(())
    });
    assert!(node.log("agent").contains("event=\"redirection_repaired\""));
    assert_eq!(open_listeners(&wires[19]), [15001, 15006, 15008, 15053]);
}

#[test]
fn unwritable_state_fails_the_add() {
    let (mut node, wire) = (TestNode::new("full", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // Equivalent to a full disk: the new file cannot be created.
    std::fs::create_dir_all(node.file("state/pods.json.new")).unwrap();
    let (code, text) = error(&add(&node, &wire).run());
    assert!(code == 11 && text.contains("UP-AGENT-009"), "{text}");
    assert!(has_no_rules(&wire));
    assert_eq!(node.pods(), []);
    std::fs::remove_dir(node.file("state/pods.json.new")).unwrap();
    assert!(
        add(&node, &wire).run().status.success(),
        "the pod joins once the state can be written"
    );
}

#[test]
fn second_agent_or_proxy_on_a_node_logs_why_it_cannot_run() {
    let mut node = TestNode::new("second", MESH);
    node.start_agent();
    node.start_ready_proxy();
    let (agent, proxy) = (node.log("agent").len(), node.log("proxy").len());
    node.start_agent();
    node.start_proxy();
    until("both report that they cannot listen", || {
        let (agent, proxy) = (
            node.log("agent")[agent..].to_owned(),
            node.log("proxy")[proxy..].to_owned(),
        );
        (agent.contains("UP-AGENT-014") && proxy.contains("UP-PROXY-016")).then_some(())
    });
    assert_eq!(
        node.get("127.0.0.1:15021", "/healthz/ready").unwrap().0,
        200,
        "the first ones keep running"
    );
}
