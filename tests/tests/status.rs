//! `underpass status` and `underpass verify`: who is really in the mesh, in one command.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::io::{Read, Write};
use std::process::{Command, Output};

use netns::NetNs;
use serde_json::Value;
use underpass_tests::binaries::binary;
use underpass_tests::control_plane::Scene;
use underpass_tests::listener;
use underpass_tests::node::Node;
use underpass_tests::sandbox::until;
use underpass_tests::wire::flush_rules;

fn underpass(node: &NetNs, args: &str) -> Output {
    let mut command = Command::new(binary("underpass"));
    netns::process::in_netns(&mut command, node).unwrap();
    command.args(args.split(' ')).env_remove("UNDERPASS_AGENT_ADMIN").output().unwrap()
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn status_counts_what_was_measured_and_tells_why_a_pod_is_not_verified() {
    let (mut node, _wire) = Node::with_pod("status");
    let good = until("the pod is verified", || {
        let (code, out, _) = said(&underpass(&node.netns, "status"));
        (code == 0 && out.contains("1 verified")).then_some(out)
    });
    assert!(good.contains("node node, agent ") && good.contains("capture routed: tried"), "{good}");
    assert!(good.contains("\nmesh from a file\n"), "{good}");
    assert!(good.contains("1 enrolled · 1 verified (last probe 0 s ago) · 0 drifted · 0 unverified"), "{good}");
    let all = said(&underpass(&node.netns, "status --all")).1;
    let line = all.lines().find(|l| l.starts_with("default/client ")).unwrap();
    assert!(line.contains("verified") && line.contains("10.78.0.1 fd78::1"), "{line}");
    let json: Value = serde_json::from_slice(&underpass(&node.netns, "status --json").stdout).unwrap();
    assert_eq!(json["pods"][0]["verification"]["state"], "verified");

    node.kill_all();
    node.start_agent();
    let bad = until("the pod is not verified", || {
        let (code, out, _) = said(&underpass(&node.netns, "status"));
        (code == 1).then_some(out)
    });
    assert!(bad.contains("proxy none is connected") && bad.contains("mesh unknown: UP-CLI-001"), "{bad}");
    assert!(bad.contains("1 enrolled · 0 verified · 0 drifted · 1 unverified"), "{bad}");
    let told = until("the reason is told", || {
        let out = said(&underpass(&node.netns, "status")).1;
        out.lines().find(|l| l.starts_with("default/client: unverified for")).map(str::to_owned)
    });
    assert!(told.contains("15001"), "{told}");
    let json = underpass(&node.netns, "status --json");
    assert_eq!(json.status.code(), Some(1));
    assert_eq!(
        serde_json::from_slice::<Value>(&json.stdout).unwrap()["pods"][0]["verification"]["state"],
        "unverified"
    );
}

#[test]
fn verify_looks_now_and_says_what_it_found_and_put_right() {
    let (mut node, wire) = Node::with_pod("verify");
    for name in ["client", "default/client"] {
        let (code, out, err) = said(&underpass(&node.netns, &format!("verify {name}")));
        assert_eq!((code, out.as_str(), err.as_str()), (0, "default/client: verified\n", ""));
    }
    flush_rules(&wire.pod);
    let repaired = until("it is put right", || {
        let (code, out, _) = said(&underpass(&node.netns, "verify client"));
        (code == 0 && out.contains("put right")).then_some(out)
    });
    assert!(repaired.contains("is missing; changed by "), "{repaired}");
    let json: Value = serde_json::from_slice(&underpass(&node.netns, "verify client --json").stdout).unwrap();
    assert_eq!((&json["name"], &json["verification"]["state"]), (&"client".into(), &"verified".into()));

    node.kill_all();
    node.start_agent();
    let (code, out, _) = said(&underpass(&node.netns, "verify client"));
    assert_eq!(code, 1, "{out}");
    assert!(out.starts_with("default/client: unverified for") && out.contains("15001"), "{out}");
}

#[test]
fn who_cannot_be_asked_and_what_does_not_exist_is_told_with_a_next_step() {
    let (mut node, _wire) = Node::with_pod("nobody");
    let nobody = |args: &str, code: &str, of: &NetNs| {
        let (exit, out, err) = said(&underpass(of, args));
        assert_eq!((exit, out.as_str()), (2, ""), "{args}: {err}");
        assert!(err.starts_with(code) && err.contains("\nNext step: "), "{args}: {err}");
        err
    };
    let err = nobody("verify default/nobody", "UP-CLI-003", &node.netns);
    assert!(err.contains("no pod default/nobody is enrolled"), "{err}");
    nobody("verify nobody", "UP-CLI-003", &node.netns);
    for odd in
        ["verify default/", "verify /client", "verify a/b/c", "verify default/x&pod=default/client", "verify ../x"]
    {
        nobody(odd, "UP-CLI-003", &node.netns);
    }
    // Somebody else answers there, or nobody speaks.
    let odd = listener::plain(&node.netns, "127.0.0.1:16014".parse().unwrap());
    std::thread::spawn(move || {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "SSH-2.0-x\r\n\r\n"] {
            let (mut stream, _) = odd.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let err = nobody("status --agent 127.0.0.1:16014", "UP-CLI-002", &node.netns);
    assert!(err.contains("missing field"), "{err}");
    nobody("status --agent 127.0.0.1:16014", "UP-CLI-001", &node.netns);
    node.kill_all();
    nobody("status", "UP-CLI-001", &node.netns);
    nobody("verify client", "UP-CLI-001", &node.netns);
    nobody("verify default/client", "UP-CLI-001", &node.netns);
}

#[test]
fn status_tells_how_the_proxy_stands_with_its_control_plane() {
    let scene = Scene::new("status-plane");
    let told = |words: &[&str]| {
        until("it is told", || {
            let out = said(&underpass(&scene.node.netns, "status")).1;
            let line = out.lines().find(|l| l.starts_with("control plane: "))?;
            words.iter().all(|w| line.contains(w)).then_some(())
        })
    };
    told(&["in step with https://127.0.0.1:15012: 3 addresses"]);
    scene.plane.away(true);
    told(&["no connection to https://127.0.0.1:15012", "is in force: 3 addresses"]);
    let json: Value = serde_json::from_slice(&underpass(&scene.node.netns, "status --json").stdout).unwrap();
    assert_eq!(json["proxyStatus"]["controlPlane"]["connected"], false);
}

#[test]
fn check_looks_at_a_node_without_a_cluster() {
    let (mut node, _wire) = Node::with_pod("check");
    let good = until("all is well", || {
        let (code, out, _) = said(&underpass(&node.netns, "check --node"));
        (code == 0 && out.contains("1 enrolled · 1 verified")).then_some(out)
    });
    assert!(
        good.contains("√ on every node an agent answers: 1 of 1")
            && good.contains("√ packets are captured without NAT"),
        "{good}"
    );
    assert!(good.ends_with("Status check results are √\n"), "{good}");

    node.kill_all();
    node.start_agent();
    let json: Value = until("what is wrong is told", || {
        let (code, out, _) = said(&underpass(&node.netns, "check --node --json"));
        (code == 1 && out.contains("no proxy is connected")).then(|| serde_json::from_str(&out).unwrap())
    });
    let checks: Vec<&Value> =
        json["categories"].as_array().unwrap().iter().flat_map(|c| c["checks"].as_array().unwrap()).collect();
    let of = |id: &str| *checks.iter().find(|c| c["id"] == *id).unwrap();
    assert_eq!(of("proxy-serves")["result"], "error");
    assert_eq!(of("proxy-answers")["hint"], "docs/check.md#proxy-answers");
    assert!(of("proxy-answers")["error"].as_str().unwrap().contains("UP-CLI-001"), "{json}");

    node.kill_all();
    let (code, out, _) = said(&underpass(&node.netns, "check --node"));
    assert!(code == 1 && out.contains("× on every node an agent answers\n    this node: UP-CLI-001"), "{out}");
    let (code, _, err) = said(&underpass(&node.netns, "check --kubeconfig /nowhere/config"));
    assert!(code == 2 && err.contains("UP-CLI-005") && err.contains("/nowhere/config"), "{err}");
}
