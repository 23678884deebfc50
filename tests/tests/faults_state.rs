//! The agent's persistent state: across a restart with many pods, on a full disk, from an unusable
//! file, and for a namespace that has disappeared.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use agent_status::{VerificationReason, VerificationState};
use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain, talk};
use underpass_tests::node::{MESH, TestNode, no_more_open, open_files, stable_open_files};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, Wire, many_pods};

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];
/// ENETUNREACH, as printed by Rust's standard library.
const NETWORK_UNREACHABLE: &str = "(os error 101)";

fn call(verb: &str, node: &TestNode, wire: &Wire) -> Call {
    Call::new(
        verb,
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &ADDRESSES),
    )
}

/// A call for one of the pods of [`many_pods`].
fn numbered(verb: &str, node: &TestNode, wire: &Wire, index: usize) -> Call {
    let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{index};K8S_POD_UID=uid-{index}");
    let call = call(verb, node, wire).with("CNI_CONTAINERID", Some(&format!("c{index}")));
    call.with("CNI_ARGS", Some(&args))
}

#[track_caller]
fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn unverified_reason(node: &TestNode) -> (Option<VerificationReason>, String) {
    until("the pod is unverified", || {
        let verification = node.pod("client").verification?;
        let is_unverified = verification.state == VerificationState::Unverified;
        is_unverified.then(|| (verification.reason_code, verification.reason.unwrap()))
    })
}

fn has_no_rules(netns: &NetNs) -> bool {
    netns.run(redirect::read_back).unwrap().unwrap().is_empty()
}

/// A namespace's nf_tables generation, its rules, and the inodes of its listening sockets.
fn fingerprint(netns: &NetNs) -> (u32, redirect::ObservedState, Vec<String>) {
    let read = netns.run(|| {
        let generation = nft::generation(&nft::Socket::open().unwrap()).unwrap();
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap();
        let listening = table
            .lines()
            .filter(|l| l.split_whitespace().nth(3) == Some("0A"));
        let inodes = listening.map(|l| l.split_whitespace().nth(9).unwrap().to_owned());
        (generation, redirect::read_back().unwrap(), inodes.collect())
    });
    read.unwrap()
}

#[test]
fn agent_restart_leaves_fifty_pods_untouched() {
    let (mesh, wires) = many_pods(50);
    let mut node = TestNode::new("fifty", &mesh);
    // With a low limit of open files, as set by some runtimes; each pod takes three.
    let agent = node.start_agent_with_few_files(100);
    node.start_ready_proxy();
    for batch in (0..50).collect::<Vec<_>>().chunks(10) {
        let plugins: Vec<_> = batch
            .iter()
            .map(|i| numbered("ADD", &node, &wires[*i], *i).start())
            .collect();
        plugins
            .into_iter()
            .for_each(|p| assert_success(&p.wait_with_output().unwrap()));
    }
    until("all are verified", || {
        (node.verified_pods() == 50).then_some(())
    });
    let server = plain(&wires[0].peer, SocketAddr::new(PEER4, 8080));
    let mut client = connect(&wires[0].pod, SocketAddr::new(PEER4, 8080)).unwrap();
    let (mut served, _) = accept(&server).unwrap();
    talk(&mut client, &mut served);
    let before: Vec<_> = wires.iter().map(|w| fingerprint(&w.pod)).collect();

    node.kill(agent);
    talk(&mut client, &mut served);
    node.start_agent_with_few_files(100);
    talk(&mut client, &mut served);
    until("the next agent has verified all", || {
        (node.verified_pods() == 50).then_some(())
    });
    let after: Vec<_> = wires.iter().map(|w| fingerprint(&w.pod)).collect();
    assert!(before == after, "rules or listeners have changed");
    talk(&mut client, &mut served);
    let mut other = connect(&wires[0].pod, SocketAddr::new(PEER4, 8080)).unwrap();
    talk(&mut other, &mut accept(&server).unwrap().0);
    assert!(!node.log("agent").contains("event=\"redirection_repaired\""));
    assert!(
        !node
            .log("agent")
            .contains("event=\"pod_changes_unwatched\""),
        "every pod is watched"
    );
}

#[test]
fn vanished_namespace_is_reported_and_its_del_succeeds() {
    let (mut node, wire) = (TestNode::new("gone", MESH), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    let before = (stable_open_files(agent), stable_open_files(proxy));
    let del = call("DEL", &node, &wire).with("CNI_NETNS", Some("/nonexistent"));

    // Only agent and proxy hold the namespace.
    assert_success(&call("ADD", &node, &wire).run());
    drop(wire);
    // Its interface disappeared with the other end; a probe in progress may report another error
    // first.
    until("the failed probe is reported", || {
        let (code, reason) = unverified_reason(&node);
        (code == Some(VerificationReason::ProbeFailed) && reason.contains(NETWORK_UNREACHABLE))
            .then_some(())
    });
    assert_success(&del.run());
    until("agent and proxy have closed it", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
    assert!(node.pods().is_empty());

    // The namespace disappears while the agent is not running.
    let wire = Wire::new();
    assert_success(&call("ADD", &node, &wire).run());
    node.kill(agent);
    drop(wire);
    let agent = node.start_agent();
    let (code, reason) = unverified_reason(&node);
    assert_eq!(
        code,
        Some(VerificationReason::NamespaceUnavailable),
        "{reason}"
    );
    assert_success(&del.run());
    assert!(node.pods().is_empty());
    until("the proxy has closed it", || {
        (open_files(proxy).1 == before.1.1).then_some(())
    });
    let wire = Wire::new();
    assert_success(&call("ADD", &node, &wire).run());
    until("the next pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    assert!(open_files(agent).1 > 0);
}

/// The path of a file of the agent's state in the agent's mount namespace.
fn seen_by(agent: u32, node: &TestNode, name: &str) -> PathBuf {
    let path = node.file("state").join(name);
    PathBuf::from(format!("/proc/{agent}/root{}", path.display()))
}

/// Writes a file until the disk is full.
fn fill(path: &PathBuf) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [4096, 256, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

#[test]
fn full_disk_fails_the_add_keeps_the_old_state_and_allows_del() {
    let (mesh, wires) = many_pods(3);
    let mut node = TestNode::new("disk-full", &mesh);
    let agent = node.start_agent_on_small_disk(64);
    node.start_ready_proxy();
    let on_disk = || -> Vec<String> {
        let state: Value =
            serde_json::from_slice(&std::fs::read(seen_by(agent, &node, "pods.json")).unwrap())
                .unwrap();
        state["pods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["uid"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_success(&numbered("ADD", &node, &wires[0], 0).run());
    assert_eq!(on_disk(), ["uid-0"]);
    assert!(
        !node.file("state/pods.json").exists(),
        "only the agent sees the small disk"
    );

    let filler = seen_by(agent, &node, "filler");
    fill(&filler);
    let failed = numbered("ADD", &node, &wires[1], 1).run();
    let error: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert!(
        error["code"] == 11 && error["msg"].as_str().unwrap().contains("UP-AGENT-009"),
        "{error}"
    );
    assert!(
        error["details"].as_str().unwrap().contains("Next step: "),
        "{error}"
    );
    until("nothing is left of the failed ADD", || {
        (has_no_rules(&wires[1].pod) && node.pods().len() == 1).then_some(())
    });
    let listeners = |wire: &Wire| underpass_tests::listener::listening_ports(&wire.pod).len();
    until("the proxy has closed its listeners", || {
        (listeners(&wires[1]) == 0).then_some(())
    });
    assert_eq!(on_disk(), ["uid-0"], "the previous state is intact");

    assert_success(&numbered("DEL", &node, &wires[0], 0).run());
    until("the pod has left", || {
        (has_no_rules(&wires[0].pod) && node.pods().is_empty()).then_some(())
    });
    assert!(
        node.log("agent").contains("UP-AGENT-009"),
        "the agent logs that the state cannot be written"
    );

    std::fs::remove_file(filler).unwrap();
    assert_success(&numbered("ADD", &node, &wires[2], 2).run());
    assert_eq!(
        on_disk(),
        ["uid-2"],
        "the state is current once there is room"
    );
}

#[test]
fn slow_disk_delays_only_the_adds_that_wait_for_it() {
    let (mesh, wires) = many_pods(4);
    let mut node = TestNode::new("disk-slow", &mesh);
    node.start_agent_on_slow_disk(Duration::from_secs(5));
    node.start_ready_proxy();
    // The first write contains one pod at least, the second all others.
    let mut adds: Vec<_> = wires
        .iter()
        .enumerate()
        .map(|(i, wire)| numbered("ADD", &node, wire, i).start())
        .collect();
    let outside = Wire::new();
    let args = "K8S_POD_NAMESPACE=outside;K8S_POD_NAME=o;K8S_POD_UID=o";
    let outside = call("ADD", &node, &outside).with("CNI_ARGS", Some(args));
    let outside = outside.with("CNI_CONTAINERID", Some("outside"));
    until("the pods wait for the disk", || {
        (node.pods().len() == 4).then_some(())
    });
    for _ in 0..5 {
        assert_success(&outside.run());
        assert_eq!(node.get("127.0.0.1:15014", "/healthz").unwrap().0, 200);
    }
    for add in &mut adds {
        assert_eq!(add.try_wait().unwrap(), None, "not before it is on disk");
    }
    for add in adds {
        assert_success(&add.wait_with_output().unwrap());
    }
    until("the pods are verified", || {
        (node.verified_pods() == 4).then_some(())
    });
}

#[test]
fn unusable_state_is_logged_and_its_pods_can_rejoin() {
    let (mut node, wire) = (TestNode::new("foreign-state", MESH), Wire::new());
    let mut agent = node.start_agent();
    node.start_ready_proxy();
    let state = node.file("state/pods.json");
    type Change = fn(Value) -> Vec<u8>;
    let damaged: Change = |state| state.to_string().into_bytes()[..200].to_vec();
    let empty: Change = |_| Vec::new();
    let newer: Change = |mut state| {
        state["version"] = json!(2);
        state["pods"] = json!({ "by uid": {} });
        state.to_string().into_bytes()
    };
    let rebooted: Change = |mut state| {
        state["bootId"] = json!("another");
        state.to_string().into_bytes()
    };
    let cases = [
        (damaged, "damage", Some("pods.damaged.json")),
        (empty, "damage", Some("pods.damaged.json")),
        (newer, "version", Some("pods.other-version.json")),
        (rebooted, "reboot", None),
    ];
    for (change, cause, kept) in cases {
        for rules_remain in [true, false] {
            assert_success(&call("ADD", &node, &wire).run());
            node.kill(agent);
            if !rules_remain {
                wire.pod.run(redirect::remove).unwrap().unwrap();
            }
            let written: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            let bytes = change(written);
            std::fs::write(&state, &bytes).unwrap();
            let before = node.log("agent").len();
            agent = node.start_agent();
            let log = node.log("agent")[before..].to_owned();
            let event = format!("event=\"state_discarded\" cause=\"{cause}\"");
            assert!(log.contains(&event), "{log}");
            if let Some(kept) = kept {
                assert!(log.contains("UP-AGENT-009") && log.contains(kept), "{log}");
                assert_eq!(std::fs::read(node.file("state").join(kept)).unwrap(), bytes);
            }
            until("the agent has a proxy", || {
                (node.get("127.0.0.1:15014", "/readyz").ok()?.0 == 200).then_some(())
            });
            assert_eq!(
                has_no_rules(&wire.pod),
                !rules_remain,
                "the agent does not touch a pod that it does not know"
            );
            assert_success(&call("ADD", &node, &wire).run());
            until("the pod is verified again", || {
                (node.verified_pods() == 1).then_some(())
            });
            let written: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            assert_eq!(written["pods"][0]["uid"], "uid-1");
            assert_success(&call("DEL", &node, &wire).run());
        }
    }
}
