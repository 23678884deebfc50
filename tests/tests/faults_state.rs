//! What the agent remembers: across a restart with many pods, on a full disk, from a file that is not its own, and about a
//! namespace that has gone.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;

use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener::{accept, connect, plain, talk};
use underpass_tests::node::{MESH, Node, no_more_open, open_files, settled};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, Wire, many};

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn call(verb: &str, node: &Node, wire: &Wire) -> Call {
    Call::new(verb, &path_of(&wire.pod), &config(&node.agent_socket(), &ADDRESSES))
}

/// A call for one of [`many`] pods.
fn numbered(verb: &str, node: &Node, wire: &Wire, index: usize) -> Call {
    let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{index};K8S_POD_UID=uid-{index}");
    let call = call(verb, node, wire).with("CNI_CONTAINERID", Some(&format!("c{index}")));
    call.with("CNI_ARGS", Some(&args))
}

#[track_caller]
fn fine(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn verified(node: &Node) -> usize {
    node.pods().iter().filter(|p| p["verification"]["state"] == "verified").count()
}

fn why_unverified(node: &Node) -> String {
    until("the status says so", || {
        let verification = node.pods()[0]["verification"].clone();
        (verification["state"] == "unverified").then(|| verification["reason"].to_string())
    })
}

fn has_no_rules(netns: &NetNs) -> bool {
    netns.run(redirect::read_back).unwrap().unwrap().is_empty()
}

/// The generation of a namespace's nf_tables, its ip rules, and the sockets that listen in it.
fn fingerprint(netns: &NetNs) -> (u32, redirect::Observed, Vec<String>) {
    let seen = netns.run(|| {
        let generation = nft::generation(&nft::Socket::open().unwrap()).unwrap();
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap();
        let listening = table.lines().filter(|l| l.split_whitespace().nth(3) == Some("0A"));
        let inodes = listening.map(|l| l.split_whitespace().nth(9).unwrap().to_owned());
        (generation, redirect::read_back().unwrap(), inodes.collect())
    });
    seen.unwrap()
}

#[test]
fn an_agent_restarts_over_fifty_pods_without_touching_any() {
    let (mesh, wires) = many(50);
    let mut node = Node::new("fifty", &mesh);
    // Few files at a time, as some runtimes start containers; each pod takes three.
    let agent = node.start_agent_with_few_files(100);
    node.start_ready_proxy();
    for some in (0..50).collect::<Vec<_>>().chunks(10) {
        let plugins: Vec<_> = some.iter().map(|i| numbered("ADD", &node, &wires[*i], *i).start()).collect();
        plugins.into_iter().for_each(|p| fine(&p.wait_with_output().unwrap()));
    }
    until("all are verified", || (verified(&node) == 50).then_some(()));
    let server = plain(&wires[0].peer, SocketAddr::new(PEER4, 8080));
    let mut client = connect(&wires[0].pod, SocketAddr::new(PEER4, 8080)).unwrap();
    let (mut served, _) = accept(&server).unwrap();
    talk(&mut client, &mut served);
    let before: Vec<_> = wires.iter().map(|w| fingerprint(&w.pod)).collect();

    node.kill(agent);
    talk(&mut client, &mut served);
    node.start_agent_with_few_files(100);
    talk(&mut client, &mut served);
    until("the next agent has verified all", || (verified(&node) == 50).then_some(()));
    let after: Vec<_> = wires.iter().map(|w| fingerprint(&w.pod)).collect();
    assert!(before == after, "rules or listeners were touched");
    talk(&mut client, &mut served);
    let mut other = connect(&wires[0].pod, SocketAddr::new(PEER4, 8080)).unwrap();
    talk(&mut other, &mut accept(&server).unwrap().0);
    assert!(!node.log("agent").contains("repaired"));
    assert!(!node.log("agent").contains("are not told"), "changes in every pod are told");
}

#[test]
fn a_namespace_that_goes_away_underneath_harms_nobody_and_its_del_is_clean() {
    let (mut node, wire) = (Node::new("gone", MESH), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    let before = (settled(agent), settled(proxy));
    let del = call("DEL", &node, &wire).with("CNI_NETNS", Some("/nonexistent"));

    // Agent and proxy are the last who hold it.
    fine(&call("ADD", &node, &wire).run());
    drop(wire);
    // Its interface went with the other end; a probe that was on its way then may tell something else first.
    until("that is told", || why_unverified(&node).contains("unreachable").then_some(()));
    fine(&del.run());
    until("it is let go of", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
    assert!(node.pods().is_empty());

    // It has gone while the agent was away.
    let wire = Wire::new();
    fine(&call("ADD", &node, &wire).run());
    node.kill(agent);
    drop(wire);
    let agent = node.start_agent();
    let reason = why_unverified(&node);
    assert!(reason.contains("was not found again"), "{reason}");
    fine(&del.run());
    assert!(node.pods().is_empty());
    until("the proxy has let go of it", || (open_files(proxy).1 == before.1.1).then_some(()));
    let wire = Wire::new();
    fine(&call("ADD", &node, &wire).run());
    until("and the next pod is verified", || (verified(&node) == 1).then_some(()));
    assert!(open_files(agent).1 > 0);
}

/// A file of the agent's state where the agent sees it.
fn seen_by(agent: u32, node: &Node, name: &str) -> PathBuf {
    let path = node.file("state").join(name);
    PathBuf::from(format!("/proc/{agent}/root{}", path.display()))
}

/// Fills a disk to the last byte.
fn fill(path: &PathBuf) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [4096, 256, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_fails_the_add_keeps_the_old_state_and_lets_pods_leave() {
    let (mesh, wires) = many(3);
    let mut node = Node::new("disk-full", &mesh);
    let agent = node.start_agent_on_small_disk(64);
    node.start_ready_proxy();
    let on_disk = || -> Vec<String> {
        let state: Value = serde_json::from_slice(&std::fs::read(seen_by(agent, &node, "pods.json")).unwrap()).unwrap();
        state["pods"].as_array().unwrap().iter().map(|p| p["uid"].as_str().unwrap().to_owned()).collect()
    };
    fine(&numbered("ADD", &node, &wires[0], 0).run());
    assert_eq!(on_disk(), ["uid-0"]);
    assert!(!node.file("state/pods.json").exists(), "the small disk is the agent's alone");

    let filler = seen_by(agent, &node, "filler");
    fill(&filler);
    let failed = numbered("ADD", &node, &wires[1], 1).run();
    let error: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("UP-AGENT-009"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("Next step: "), "{error}");
    until("nothing is left", || (has_no_rules(&wires[1].pod) && node.pods().len() == 1).then_some(()));
    let listeners = |wire: &Wire| underpass_tests::listener::listening_ports(&wire.pod).len();
    until("the proxy has let go of it", || (listeners(&wires[1]) == 0).then_some(()));
    assert_eq!(on_disk(), ["uid-0"], "the state is as it was, and whole");

    fine(&numbered("DEL", &node, &wires[0], 0).run());
    until("a pod may leave", || (has_no_rules(&wires[0].pod) && node.pods().is_empty()).then_some(()));
    assert!(node.log("agent").contains("UP-AGENT-009"), "and that it could not be written down is told");

    std::fs::remove_file(filler).unwrap();
    fine(&numbered("ADD", &node, &wires[2], 2).run());
    assert_eq!(on_disk(), ["uid-2"], "once there is room, everything is caught up on");
}

#[test]
fn a_state_that_is_not_the_agents_own_is_told_and_its_pods_come_back() {
    let (mut node, wire) = (Node::new("foreign-state", MESH), Wire::new());
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
        (damaged, "is damaged", Some("pods.damaged.json")),
        (empty, "is damaged", Some("pods.damaged.json")),
        (newer, "version 2", Some("pods.other-version.json")),
        (rebooted, "has been rebooted", None),
    ];
    for (change, told, kept) in cases {
        for rules_remain in [true, false] {
            fine(&call("ADD", &node, &wire).run());
            node.kill(agent);
            if !rules_remain {
                wire.pod.run(redirect::remove).unwrap().unwrap();
            }
            let ours: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            let bytes = change(ours);
            std::fs::write(&state, &bytes).unwrap();
            let before = node.log("agent").len();
            agent = node.start_agent();
            let log = node.log("agent")[before..].to_owned();
            assert!(log.contains(told), "{log}");
            if let Some(kept) = kept {
                assert!(log.contains("UP-AGENT-009") && log.contains(kept), "{log}");
                assert_eq!(std::fs::read(node.file("state").join(kept)).unwrap(), bytes);
            }
            until("the agent has a proxy", || (node.get("127.0.0.1:15014", "/readyz").ok()?.0 == 200).then_some(()));
            assert_eq!(has_no_rules(&wire.pod), !rules_remain, "nobody touches a pod that is not known");
            fine(&call("ADD", &node, &wire).run());
            until("it is back", || (verified(&node) == 1).then_some(()));
            let ours: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            assert_eq!(ours["pods"][0]["uid"], "uid-1");
            fine(&call("DEL", &node, &wire).run());
        }
    }
}
