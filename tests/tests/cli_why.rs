//! `underpass why` and the lists of the proxy's state: explanations of the data path's own
//! decisions.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use serde_json::{Value, json};
use underpass_tests::sandbox::{Sandbox, VIPS, connect, read_line, serve_echo, until};

/// The answer of `underpass why --json`, and its exit code.
fn why(sandbox: &Sandbox, node: &str, args: &str) -> (i32, Value) {
    let (code, out, err) = sandbox.underpass(node, &format!("why {args} --json"));
    (
        code,
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}")),
    )
}

const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/default/sa/server";
const SERVICE: &str = "default/server.default.svc.cluster.local";
/// The server's own address.
const SERVER: &str = "10.77.2.2:8080";
const DENY: &str = "  - { name: no-client, namespace: default, scope: Namespace, action: Deny, \
                    rules: [[[{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }]]] }";
const ALLOW: &str = "  - { name: only-neighbour, namespace: default, scope: Namespace, action: \
                     Allow, rules: [[[{ principals: [{ Exact: \
                     cluster.local/ns/default/sa/neighbour }] }]]] }";
const STRICT: &str = "  - { name: strict, namespace: default, scope: Namespace, action: Deny, \
                      rules: [[[{ notPrincipals: [Presence] }]]] }";

#[test]
fn why_reports_udp_and_sctp_to_a_mesh_pod_as_not_captured() {
    let sandbox = Sandbox::up("why-udp");
    sandbox.set_policies(STRICT);
    for (args, name) in [
        ("client 10.77.2.2:53 --protocol udp", "UDP"),
        ("client 10.77.2.2:8080/udp", "UDP"),
        ("client server:80/UDP", "UDP"),
        ("client 10.77.2.2:9999 --protocol sctp", "SCTP"),
    ] {
        let (code, json) = why(&sandbox, "node-1", args);
        let ways = json["ways"].as_array().unwrap();
        assert_eq!((code, ways.len()), (0, 1), "{args}: {json}");
        assert_eq!(ways[0]["path"], "uncaptured", "{args}");
        assert!(ways[0]["policy"].is_null(), "no policy applies: {json}");
        let reason = ways[0]["reason"].as_str().unwrap();
        assert!(
            reason.contains(&format!("{name} is not captured")),
            "{args}: {reason}"
        );
    }
    let (code, json) = why(&sandbox, "node-1", "client 10.77.2.2:8080 --protocol tcp");
    assert_eq!((code, &json["ways"][0]["path"]), (0, &json!("hbone")));
    let (code, _, err) = sandbox.underpass("node-1", "why client server --protocol quic");
    assert!(code == 2 && err.contains("tcp, udp or sctp"), "{err}");
}

#[test]
fn why_explains_the_path_and_the_expected_identity() {
    let sandbox = Sandbox::up("why-way");
    for (destination, address) in [
        ("10.96.0.10:80", VIPS[0]),
        ("[fd96::10]:80", VIPS[1]),
        ("server", VIPS[0]),
        ("default/server:80", VIPS[0]),
    ] {
        let (code, json) = why(&sandbox, "node-1", &format!("client {destination}"));
        assert_eq!(code, 0, "{json}");
        let source = &json["source"];
        assert_eq!(
            (&source["workload"], &source["node"]),
            (&json!("default/client"), &json!("node-1"))
        );
        assert_eq!(
            (&source["identity"], &source["inMesh"]),
            (&json!(CLIENT_ID), &json!(true))
        );
        assert_eq!(
            (&json["destination"], &json["service"]),
            (&json!(address), &json!(SERVICE))
        );
        let way = &json["ways"][0];
        assert_eq!(
            (&way["path"], &way["expectedIdentities"]),
            (&json!("hbone"), &json!([SERVER_ID]))
        );
        let policy = &way["policy"];
        assert_eq!(
            (&policy["allowed"], &policy["clientIdentity"]),
            (&json!(true), &json!(CLIENT_ID))
        );
        let (code, out, err) = sandbox.underpass("node-1", &format!("why client {destination}"));
        assert_eq!(code, 0, "{out}{err}");
        for part in [
            "default/client",
            CLIENT_ID,
            address,
            SERVICE,
            "HBONE",
            SERVER_ID,
            "allowed",
            "mesh.yaml",
        ] {
            assert!(out.contains(part), "{part:?} in:\n{out}");
        }
    }
    let (code, json) = why(&sandbox, "node-1", "client 192.0.2.1:443");
    let way = &json["ways"][0];
    assert_eq!(
        (code, &way["path"], &way["to"]),
        (0, &json!("passthrough"), &json!("192.0.2.1:443"))
    );
    let (code, json) = why(&sandbox, "node-1", "client 10.96.0.10:81");
    let way = &json["ways"][0];
    assert_eq!(
        (code, &way["path"], &way["to"]),
        (1, &json!("refused"), &Value::Null)
    );
    assert!(
        way["change"][0].as_str().unwrap().contains("server"),
        "{json}"
    );
}

#[test]
fn why_explains_the_deciding_policy_like_the_access_log() {
    let sandbox = Sandbox::up("why-policy");
    serve_echo(&sandbox.pod("server"), 8080);
    let explained = |policies: &str, who: &str, reason: &str, parts: &[&str]| {
        sandbox.set_policies(policies);
        let json = until("the policy is active", || {
            let (code, json) = why(&sandbox, "node-2", &format!("{who} {SERVER}"));
            (code == 1 && json["ways"][0]["policy"]["reason"] == reason).then_some(json)
        });
        let policy = &json["ways"][0]["policy"];
        assert_eq!(policy["allowed"], false, "{json}");
        let out = sandbox
            .underpass("node-2", &format!("why {who} {SERVER}"))
            .1;
        for part in parts.iter().chain([&reason, &"denied"]) {
            assert!(out.contains(part), "{part:?} in:\n{out}");
        }
        // The data path decides the same, for the same reason.
        let pod = sandbox.pod(who);
        until("the proxy refuses", || {
            let mut stream = connect(&pod, SERVER.parse().unwrap()).ok()?;
            let refused = stream.write_all(b"x\n").is_err()
                || read_line(&mut stream).map_or(true, |l| l.is_empty());
            refused.then_some(())
        });
        sandbox.access_line("node-2", &[reason]);
        json["ways"][0].clone()
    };
    let change = |way: &Value, part: &str| {
        let changes = way["change"].as_array().unwrap();
        assert!(
            changes.iter().any(|c| c.as_str().unwrap().contains(part)),
            "{part:?} in {way}"
        );
    };
    let way = explained(
        DENY,
        "client",
        "explicitly denied by: default/no-client (rule 1)",
        &[],
    );
    change(&way, "default/no-client (rule 1)");
    let way = explained(
        ALLOW,
        "client",
        "allow policies exist, but none allowed",
        &["default/only-neighbour"],
    );
    assert!(
        way["policy"]["considered"][0]
            .as_str()
            .unwrap()
            .contains("default/only-neighbour"),
        "{way}"
    );
    change(&way, "cluster.local/ns/default/sa/client");
    let way = explained(
        STRICT,
        "outsider",
        "explicitly denied by: default/strict (rule 1)",
        &["outside/outsider"],
    );
    assert_eq!(way["policy"]["clientIdentity"], Value::Null);
    change(&way, "spiffe://cluster.local/ns/outside/sa/outsider");
    assert_eq!(
        (&way["path"], &way["allowed"]),
        (&json!("passthrough"), &json!(false))
    );
    assert_eq!(
        (&way["policy"]["policy"], &way["policy"]["rule"]),
        (&json!("default/strict"), &json!(1))
    );
}

#[test]
fn an_unanswerable_question_is_an_error_with_a_next_step() {
    let sandbox = Sandbox::up("why-nobody");
    for (args, error, part) in [
        ("why nobody server", "UP-CLI-004", "\"nobody\""),
        ("why client nobody:80", "UP-CLI-004", "\"nobody\""),
        (
            "why client default/neighbour",
            "UP-CLI-004",
            "default/neighbour",
        ),
        ("why client 10.77.2.2", "UP-CLI-004", "10.77.2.2"),
        ("why client x&y", "UP-CLI-004", "\"x&y\""),
        (
            "why client server --proxy 127.0.0.1:9",
            "UP-CLI-001",
            "127.0.0.1:9",
        ),
    ] {
        let (code, out, err) = sandbox.underpass("node-1", args);
        assert_eq!((code, out.as_str()), (2, ""), "{args}: {err}");
        assert!(
            err.starts_with(error) && err.contains(part) && err.contains("\nNext step: "),
            "{args}: {err}"
        );
    }
    for query in [
        "",
        "?source=client",
        "?source=client&destination=server&port=x",
        "?who=x",
    ] {
        assert_eq!(
            sandbox
                .get("node-1", "127.0.0.1:15000", &format!("/why{query}"))
                .0,
            400,
            "{query}"
        );
    }
}

#[test]
fn the_proxys_state_is_listed() {
    let sandbox = Sandbox::up("lists");
    sandbox.set_policies(STRICT);
    serve_echo(&sandbox.pod("server"), 8080);
    let listed = |node: &str, list: &str, parts: &[&str]| {
        until(list, || {
            let (code, out, err) = sandbox.underpass(node, list);
            assert_eq!((code, err.as_str()), (0, ""), "{list}");
            parts.iter().all(|part| out.contains(part)).then_some(out)
        })
    };
    let out = listed(
        "node-1",
        "workloads",
        &["10.77.1.2,fd77:1::2", "HBONE", "TCP", "Healthy"],
    );
    assert_eq!(out.lines().count(), 5, "{out}");
    listed(
        "node-1",
        "services",
        &[
            "server.default.svc.cluster.local",
            "10.96.0.10,fd96::10",
            "80->8080",
            "1/1",
        ],
    );
    listed(
        "node-1",
        "policies",
        &["default", "strict", "Deny", "Namespace", "enforced"],
    );
    listed(
        "node-1",
        "certs",
        &[
            "spiffe://cluster.local/ns/default/sa/client",
            "leaf",
            "root",
            "Available",
            "Z",
        ],
    );
    let mut stream = connect(&sandbox.pod("client"), VIPS[0].parse().unwrap()).unwrap();
    stream.write_all(b"hello\n").unwrap();
    read_line(&mut stream).unwrap();
    let out = listed(
        "node-1",
        "conns",
        &[
            "default/client",
            "outbound",
            "10.96.0.10:80",
            "10.77.2.2:15008",
            "HBONE",
        ],
    );
    assert!(
        out.contains("spiffe://cluster.local/ns/default/sa/server"),
        "{out}"
    );
    listed(
        "node-2",
        "conns",
        &["default/server", "inbound", "10.77.2.2:8080", "sa/client"],
    );
    let json: Value = serde_json::from_str(&sandbox.underpass("node-2", "conns --json").1).unwrap();
    let pod = json
        .as_object()
        .unwrap()
        .values()
        .find(|p| p["info"]["name"] == "server")
        .unwrap();
    assert!(
        pod["connections"]["inbound"][0]["bytesReceived"]
            .as_u64()
            .unwrap()
            >= 6,
        "{pod}"
    );
    drop(stream);
    until("the connection is closed", || {
        (!sandbox.underpass("node-1", "conns").1.contains("outbound")).then_some(())
    });
}

#[test]
fn the_log_level_can_be_changed_at_run_time() {
    let sandbox = Sandbox::up("logging");
    let post = |path: &str| sandbox.request("node-1", "POST", "127.0.0.1:15000", path).1;
    assert_eq!(sandbox.get("node-1", "127.0.0.1:15000", "/logging").0, 405);
    assert_eq!(post("/logging"), "current log level is info\n");
    assert_eq!(post("/logging?level=debug"), "current log level is debug\n");
    let _ = connect(&sandbox.pod("client"), VIPS[0].parse().unwrap());
    sandbox.access_line("node-1", &["event=\"route_chosen\""]);
    let (status, body) =
        sandbox.request("node-1", "POST", "127.0.0.1:15000", "/logging?level=loud");
    assert!(status == 400 && body.contains("\"loud\""), "{body}");
    assert!(post("/logging?level=access%3Doff").contains("access=off"));
    assert_eq!(post("/logging?reset"), "current log level is info\n");
}

#[test]
fn only_a_post_to_quitquitquit_stops_the_proxy() {
    let sandbox = Sandbox::up("quit");
    let ask = |method: &str| sandbox.request("node-1", method, "127.0.0.1:15000", "/quitquitquit");
    let stops = || {
        sandbox
            .log("node-1", "proxy")
            .matches("event=\"proxy_draining\"")
            .count()
    };
    assert_eq!(ask("GET").0, 405);
    assert_eq!(stops(), 0, "a GET stopped the proxy");
    assert_eq!(ask("POST").0, 200);
    until("the proxy stops", || (stops() == 1).then_some(()));
}
