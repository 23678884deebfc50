//! `underpass status`, `verify` and `check` on a node.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::io::{Read, Write};
use std::process::{Command, Output};

use netns::NetNs;
use serde_json::{Value, json};
use underpass_tests::binaries::binary;
use underpass_tests::control_plane::ControlPlaneSetup;
use underpass_tests::listener;
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::flush_rules;

fn underpass(node: &NetNs, args: &str) -> Output {
    let mut command = Command::new(binary("underpass"));
    netns::process::in_netns(&mut command, node).unwrap();
    command
        .args(args.split(' '))
        .env_remove("UNDERPASS_AGENT_ADMIN")
        .output()
        .unwrap()
}

/// Exit code, output and errors.
fn result(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn status_counts_verified_pods_and_gives_the_reason_for_others() {
    let (mut node, _wire) = TestNode::with_pod("status");
    let good = until("the pod is verified", || {
        let (code, out, _) = result(&underpass(&node.netns, "status"));
        (code == 0 && out.contains("1 verified")).then_some(out)
    });
    assert!(
        good.contains("1 enrolled · 1 verified") && good.contains(" · 0 drifted · 0 unverified"),
        "{good}"
    );
    assert!(
        good.contains("node")
            && good.contains("routed")
            && good.contains(env!("CARGO_PKG_VERSION")),
        "{good}"
    );
    let all = result(&underpass(&node.netns, "status --all")).1;
    let line = all
        .lines()
        .find(|l| l.starts_with("default/client "))
        .unwrap();
    assert!(
        line.contains("verified") && line.contains("10.78.0.1 fd78::1"),
        "{line}"
    );
    let json: Value =
        serde_json::from_slice(&underpass(&node.netns, "status --json").stdout).unwrap();
    assert_eq!(json["pods"][0]["verification"]["state"], "verified");
    assert!(
        json["proxyStatus"].is_object() && json["proxyStatus"]["controlPlane"].is_null(),
        "the mesh is from a file"
    );

    node.kill_all();
    node.start_agent();
    let bad = until("the pod is unverified", || {
        let (code, out, _) = result(&underpass(&node.netns, "status"));
        (code == 1).then_some(out)
    });
    assert!(
        bad.contains("UP-CLI-001"),
        "the proxy's status is unknown: {bad}"
    );
    assert!(
        bad.contains("1 enrolled · 0 verified · 0 drifted · 1 unverified"),
        "{bad}"
    );
    let verdict = until("the reason is printed", || {
        let out = result(&underpass(&node.netns, "status")).1;
        out.lines()
            .find(|l| l.starts_with("default/client: unverified "))
            .map(str::to_owned)
    });
    assert!(verdict.contains("15001"), "{verdict}");
    let json = underpass(&node.netns, "status --json");
    assert_eq!(json.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["proxies"], json!([]));
    let verification = &json["pods"][0]["verification"];
    assert_eq!(
        (&verification["state"], &verification["reasonCode"]),
        (&json!("unverified"), &json!("proxyNotListening"))
    );
}

#[test]
fn verify_checks_a_pod_now_and_reports_repairs() {
    let (mut node, wire) = TestNode::with_pod("verify");
    for name in ["client", "default/client"] {
        let (code, out, err) = result(&underpass(&node.netns, &format!("verify {name}")));
        assert_eq!(
            (code, out.as_str(), err.as_str()),
            (
                0,
                "default/client: verified, not probed from the node\n",
                ""
            )
        );
    }
    flush_rules(&wire.pod);
    let json = until("it is repaired", || {
        let json: Value =
            serde_json::from_slice(&underpass(&node.netns, "verify client --json").stdout).unwrap();
        json["verification"]["lastRepair"]
            .is_object()
            .then_some(json)
    });
    assert_eq!(
        (&json["name"], &json["verification"]["state"]),
        (&json!("client"), &json!("verified"))
    );
    let repair = &json["verification"]["lastRepair"];
    let (code, out, _) = result(&underpass(&node.netns, "verify client"));
    let (verdict, details) = out.split_once('\n').unwrap();
    assert_eq!(
        (code, verdict),
        (0, "default/client: verified, not probed from the node")
    );
    assert!(
        ["what", "by"]
            .iter()
            .all(|key| details.contains(repair[key].as_str().unwrap())),
        "{repair} in {out}"
    );

    node.kill_all();
    node.start_agent();
    let (code, out, _) = result(&underpass(&node.netns, "verify client"));
    assert_eq!(code, 1, "{out}");
    assert!(
        out.starts_with("default/client: unverified ") && out.contains("15001"),
        "{out}"
    );
}

#[test]
fn unreachable_agents_and_unknown_pods_are_errors_with_a_next_step() {
    let (mut node, _wire) = TestNode::with_pod("no-such-pod");
    let fails = |args: &str, code: &str, netns: &NetNs| {
        let (exit, out, err) = result(&underpass(netns, args));
        assert_eq!((exit, out.as_str()), (2, ""), "{args}: {err}");
        assert!(
            err.starts_with(code) && err.contains("\nNext step: "),
            "{args}: {err}"
        );
        err
    };
    let err = fails("verify default/unknown", "UP-CLI-003", &node.netns);
    assert!(err.contains("default/unknown"), "{err}");
    fails("verify unknown", "UP-CLI-003", &node.netns);
    for odd in [
        "verify default/",
        "verify /client",
        "verify a/b/c",
        "verify default/x&pod=default/client",
        "verify ../x",
    ] {
        fails(odd, "UP-CLI-003", &node.netns);
    }
    // Another server answers there, or one that does not speak HTTP.
    let odd = listener::plain(&node.netns, "127.0.0.1:16014".parse().unwrap());
    std::thread::spawn(move || {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "SSH-2.0-x\r\n\r\n",
        ] {
            let (mut stream, _) = odd.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let err = fails("status --agent 127.0.0.1:16014", "UP-CLI-002", &node.netns);
    assert!(err.contains("missing field"), "{err}");
    fails("status --agent 127.0.0.1:16014", "UP-CLI-001", &node.netns);
    node.kill_all();
    fails("status", "UP-CLI-001", &node.netns);
    fails("verify client", "UP-CLI-001", &node.netns);
    fails("verify default/client", "UP-CLI-001", &node.netns);
}

#[test]
fn status_reports_the_proxys_connection_to_its_control_plane() {
    let setup = ControlPlaneSetup::new("status-plane");
    for connected in [true, false] {
        setup.plane.set_unreachable(!connected);
        let plane = until("the connection is reported", || {
            let json: Value =
                serde_json::from_slice(&underpass(&setup.node.netns, "status --json").stdout)
                    .unwrap();
            let plane = json["proxyStatus"]["controlPlane"].clone();
            (plane["connected"] == connected).then_some(plane)
        });
        assert_eq!(
            (&plane["address"], &plane["addresses"]),
            (&json!("https://127.0.0.1:15012"), &json!(3))
        );
        let out = result(&underpass(&setup.node.netns, "status")).1;
        let line = out
            .lines()
            .find(|l| l.contains("https://127.0.0.1:15012"))
            .unwrap();
        assert!(line.contains("3 addresses"), "{line}");
    }
}

/// A check in the report of `underpass check --json`.
fn check_in<'a>(report: &'a Value, id: &str) -> &'a Value {
    let mut checks = report["categories"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|c| c["checks"].as_array().unwrap());
    checks
        .find(|c| c["id"] == *id)
        .unwrap_or_else(|| panic!("no check {id} in {report}"))
}

#[test]
fn check_works_on_a_node_without_a_cluster() {
    let (mut node, _wire) = TestNode::with_pod("check");
    let good = until("all checks succeed", || {
        let (code, out, _) = result(&underpass(&node.netns, "check --node"));
        (code == 0 && out.contains("1 enrolled · 1 verified")).then_some(out)
    });
    assert!(
        good.contains("√ ") && !good.contains("× ") && good.ends_with(" √\n"),
        "{good}"
    );
    let json: Value =
        serde_json::from_slice(&underpass(&node.netns, "check --node --json").stdout).unwrap();
    let outcome = |json: &Value, id: &str| check_in(json, id)["result"].clone();
    assert_eq!(
        (
            outcome(&json, "agent-answers"),
            outcome(&json, "capture-routed")
        ),
        ("success".into(), "success".into())
    );

    node.kill_all();
    node.start_agent();
    let json: Value = until("the failure is reported", || {
        let (code, out, _) = result(&underpass(&node.netns, "check --node --json"));
        let json: Value = serde_json::from_str(&out).unwrap();
        (code == 1 && outcome(&json, "proxy-serves") == "error").then_some(json)
    });
    let answers = check_in(&json, "proxy-answers");
    assert_eq!(answers["hint"], "docs/check.md#proxy-answers");
    assert!(
        answers["error"].as_str().unwrap().contains("UP-CLI-001"),
        "{json}"
    );

    node.kill_all();
    let (code, out, _) = result(&underpass(&node.netns, "check --node"));
    assert!(
        code == 1 && out.contains("× ") && out.contains(": UP-CLI-001"),
        "{out}"
    );
    assert!(
        out.contains("\n    Next step: ") && out.contains("see docs/check.md#agent-answers"),
        "{out}"
    );
    let (code, _, err) = result(&underpass(
        &node.netns,
        "check --kubeconfig /nowhere/config",
    ));
    assert!(
        code == 2 && err.contains("UP-CLI-005") && err.contains("/nowhere/config"),
        "{err}"
    );
}
