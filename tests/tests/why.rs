//! `underpass why` and the lists of what the proxy knows: the same decisions as the data path makes, told.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::io::Write;
use std::process::Command;

use netns::NetNs;
use serde_json::Value;
use underpass_tests::binaries::binary;
use underpass_tests::sandbox::{Sandbox, VIPS, connect, read_line, serve_echo, until};

/// Runs `underpass` in a node's namespace: exit code, output, errors.
fn underpass(sandbox: &Sandbox, node: &str, args: &str) -> (i32, String, String) {
    let netns = NetNs::open(sandbox.node(node)["netns"].as_str().unwrap()).unwrap();
    let mut command = Command::new(binary("underpass"));
    netns::process::in_netns(&mut command, &netns).unwrap();
    let output = command.args(args.split(' ')).env_remove("UNDERPASS_PROXY_ADMIN").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The server's own address.
const SERVER: &str = "10.77.2.2:8080";
const DENY: &str = "  - { name: no-client, namespace: default, scope: Namespace, action: Deny, rules: [[[{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }]]] }";
const ALLOW: &str = "  - { name: only-neighbour, namespace: default, scope: Namespace, action: Allow, rules: [[[{ principals: [{ Exact: cluster.local/ns/default/sa/neighbour }] }]]] }";
const STRICT: &str = "  - { name: strict, namespace: default, scope: Namespace, action: Deny, rules: [[[{ notPrincipals: [Presence] }]]] }";

#[test]
fn why_tells_the_way_and_who_must_be_there() {
    let sandbox = Sandbox::up("why-way");
    for (destination, address) in
        [("10.96.0.10:80", VIPS[0]), ("[fd96::10]:80", VIPS[1]), ("server", VIPS[0]), ("default/server:80", VIPS[0])]
    {
        let (code, out, err) = underpass(&sandbox, "node-1", &format!("why client {destination}"));
        assert_eq!(code, 0, "{out}{err}");
        for part in [
            "from  default/client on node-1 (spiffe://cluster.local/ns/default/sa/client)",
            &format!("to    {address}, service default/server.default.svc.cluster.local"),
            "path      HBONE to ",
            "must be   spiffe://cluster.local/ns/default/sa/server",
            "policy    allowed: no allow policy exists; the client is spiffe://cluster.local/ns/default/sa/client",
            "Asked: mesh file ",
        ] {
            assert!(out.contains(part), "{part:?} in:\n{out}");
        }
    }
    let (code, out, _) = underpass(&sandbox, "node-1", "why client 192.0.2.1:443");
    assert_eq!(code, 0);
    assert!(out.contains("path      plain text to 192.0.2.1:443: 192.0.2.1 is not in the mesh"), "{out}");
    let (code, out, _) = underpass(&sandbox, "node-1", "why client 10.96.0.10:81");
    assert_eq!(code, 1);
    assert!(out.contains("path      nowhere: no healthy upstream") && out.contains("change    service"), "{out}");
}

#[test]
fn why_tells_the_policy_that_decides_and_what_would_have_to_change_as_the_access_log_does() {
    let sandbox = Sandbox::up("why-policy");
    serve_echo(&sandbox.pod("server"), 8080);
    let asked = |policies: &str, who: &str, expected: &[&str]| {
        sandbox.set_policies(policies);
        let out = until("the policy is in force", || {
            let (code, out, _) = underpass(&sandbox, "node-2", &format!("why {who} {SERVER}"));
            (code == 1 && out.contains(expected[0])).then_some(out)
        });
        for part in expected {
            assert!(out.contains(part), "{part:?} in:\n{out}");
        }
        // The data path decides the same, for the same reason.
        let reason = expected[0].strip_prefix("policy    denied: ").unwrap();
        let pod = sandbox.pod(who);
        until("the proxy refuses", || {
            let mut stream = connect(&pod, SERVER.parse().unwrap()).ok()?;
            let refused = stream.write_all(b"x\n").is_err() || read_line(&mut stream).map_or(true, |l| l.is_empty());
            refused.then_some(())
        });
        sandbox.access_line("node-2", &[reason]);
        out
    };
    asked(
        DENY,
        "client",
        &[
            "policy    denied: explicitly denied by: default/no-client (rule 1)",
            "change    default/no-client (rule 1) must not match this connection",
        ],
    );
    asked(
        ALLOW,
        "client",
        &[
            "policy    denied: allow policies exist, but none allowed",
            "considered: allow policy default/only-neighbour does not match",
            "change    an allow policy must match principal cluster.local/ns/default/sa/client",
        ],
    );
    let strict = asked(
        STRICT,
        "outsider",
        &[
            "policy    denied: explicitly denied by: default/strict (rule 1)",
            "the client proves no identity",
            "change    or outside/outsider must join the mesh, and so prove that it is spiffe://cluster.local/ns/outside/sa/outsider",
        ],
    );
    assert!(strict.contains("outsider is not in the mesh: its connections are not captured"), "{strict}");
    let (_, json, _) = underpass(&sandbox, "node-2", &format!("why outsider {SERVER} --json"));
    let json: Value = serde_json::from_str(&json).unwrap();
    let way = &json["ways"][0];
    assert_eq!((&way["path"], &way["allowed"]), (&"passthrough".into(), &false.into()));
    assert_eq!((&way["policy"]["policy"], &way["policy"]["rule"]), (&"default/strict".into(), &1.into()));
}

#[test]
fn a_question_without_an_answer_is_told_with_a_next_step() {
    let sandbox = Sandbox::up("why-nobody");
    for (args, part) in [
        ("why nobody server", "no workload \"nobody\""),
        ("why client nobody:80", "\"nobody\""),
        ("why client default/neighbour", "say DESTINATION:PORT"),
        ("why client 10.77.2.2", "which port"),
        ("why client x&y", "is no name"),
        ("why client server --proxy 127.0.0.1:9", "127.0.0.1:9"),
    ] {
        let (code, out, err) = underpass(&sandbox, "node-1", args);
        assert_eq!((code, out.as_str()), (2, ""), "{args}: {err}");
        assert!(err.starts_with("UP-CLI-00") && err.contains(part) && err.contains("\nNext step: "), "{args}: {err}");
    }
    for query in ["", "?source=client", "?source=client&destination=server&port=x", "?who=x"] {
        assert_eq!(sandbox.get("node-1", "127.0.0.1:15000", &format!("/why{query}")).0, 400, "{query}");
    }
}

#[test]
fn what_the_proxy_knows_is_listed() {
    let sandbox = Sandbox::up("lists");
    sandbox.set_policies(STRICT);
    serve_echo(&sandbox.pod("server"), 8080);
    let listed = |node: &str, list: &str, parts: &[&str]| {
        until(list, || {
            let (code, out, err) = underpass(&sandbox, node, list);
            assert_eq!((code, err.as_str()), (0, ""), "{list}");
            parts.iter().all(|part| out.contains(part)).then_some(out)
        })
    };
    let out = listed("node-1", "workloads", &["10.77.1.2,fd77:1::2", "HBONE", "TCP", "Healthy"]);
    assert_eq!(out.lines().count(), 5, "{out}");
    listed("node-1", "services", &["server.default.svc.cluster.local", "10.96.0.10,fd96::10", "80->8080", "1/1"]);
    listed("node-1", "policies", &["default", "strict", "Deny", "Namespace", "enforced"]);
    listed("node-1", "certs", &["spiffe://cluster.local/ns/default/sa/client", "leaf", "root", "Available", "Z"]);
    let mut stream = connect(&sandbox.pod("client"), VIPS[0].parse().unwrap()).unwrap();
    stream.write_all(b"hello\n").unwrap();
    read_line(&mut stream).unwrap();
    let out = listed("node-1", "conns", &["default/client", "outbound", "10.96.0.10:80", "10.77.2.2:15008", "HBONE"]);
    assert!(out.contains("spiffe://cluster.local/ns/default/sa/server"), "{out}");
    listed("node-2", "conns", &["default/server", "inbound", "10.77.2.2:8080", "sa/client"]);
    let json: Value = serde_json::from_str(&underpass(&sandbox, "node-2", "conns --json").1).unwrap();
    let pod = json.as_object().unwrap().values().find(|p| p["info"]["name"] == "server").unwrap();
    assert!(pod["connections"]["inbound"][0]["bytesReceived"].as_u64().unwrap() >= 6, "{pod}");
    drop(stream);
    until("it has ended", || (!underpass(&sandbox, "node-1", "conns").1.contains("outbound")).then_some(()));
}

#[test]
fn what_is_logged_can_be_changed_while_the_proxy_runs() {
    let sandbox = Sandbox::up("logging");
    let post = |path: &str| sandbox.request("node-1", "POST", "127.0.0.1:15000", path).1;
    assert_eq!(sandbox.get("node-1", "127.0.0.1:15000", "/logging").0, 405);
    assert_eq!(post("/logging"), "current log level is info\n");
    assert_eq!(post("/logging?level=debug"), "current log level is debug\n");
    let _ = connect(&sandbox.pod("client"), VIPS[0].parse().unwrap());
    until("the route is told", || sandbox.log("node-1", "proxy").contains("route: ").then_some(()));
    assert!(post("/logging?level=loud").contains("\"loud\" is no level"));
    assert!(post("/logging?level=access%3Doff").contains("access=off"));
    assert_eq!(post("/logging?reset"), "current log level is info\n");
}

#[test]
fn a_post_to_quitquitquit_stops_the_proxy_and_nothing_else_does() {
    let sandbox = Sandbox::up("quit");
    let ask = |method: &str| sandbox.request("node-1", method, "127.0.0.1:15000", "/quitquitquit");
    let stops = || sandbox.log("node-1", "proxy").matches("stopping; open connections may finish").count();
    assert_eq!(ask("GET").0, 405);
    assert_eq!(stops(), 0, "somebody has only looked");
    let (status, body) = ask("POST");
    assert_eq!((status, body.as_str()), (200, "stopping; open connections may finish\n"));
    until("the proxy stops", || (stops() == 1).then_some(()));
}
