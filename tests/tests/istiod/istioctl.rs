//! The proxy as shown by `istioctl ztunnel-config`.
#![allow(clippy::disallowed_types)] // istioctl is a program

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use underpass_tests::cluster::{Cluster, MeshNode, istioctl, missing};
use underpass_tests::sandbox::{connect, eventually, read_line, serve_echo, until};
use underpass_tests::skip::skip;

#[test]
fn istioctl_shows_what_the_proxy_knows_and_does() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    cluster.namespace("shown", &[("istio.io/dataplane-mode", "ambient")]);
    let vips = cluster.service("shown", "server", 80, 8080);
    let spec =
        json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": ["9"] } }] }] });
    cluster.policy("AuthorizationPolicy", "shown", "not-9", &spec);
    cluster.policy(
        "PeerAuthentication",
        "shown",
        "strict",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
    let mut node = MeshNode::start(&cluster, "shown", "shown");
    let client = node.pod(&cluster, "client");
    let server = node.pod(&cluster, "server");
    serve_echo(&server.netns, 8080);
    let _open = until("the client is answered", || {
        let mut stream = connect(&client.netns, SocketAddr::new(vips[1], 80)).ok()?;
        read_line(&mut stream).ok().map(|_| stream)
    });
    let (ip, vip) = (server.ips[0].to_string(), vips[0].to_string());
    let expected: [(&str, &[&str]); 7] = [
        ("workloads", &["shown", "server", &ip, "HBONE"]),
        ("services", &["shown", "server", &vip, "1/1"]),
        ("policies", &["shown", "not-9", "Deny"]),
        (
            "policies",
            &["istio-system", "istio_converted_static_strict", "Deny"],
        ),
        ("connections", &["client.shown", "Outbound", "HBONE"]),
        ("connections", &["server.shown", "Inbound", "HBONE"]),
        (
            "certificates",
            &[
                "spiffe://cluster.local/ns/shown/sa/server",
                "Leaf",
                "Available",
                "true",
            ],
        ),
    ];
    for (view, cells) in expected {
        let mut last = String::new();
        let shown = eventually(|| {
            last = show(&node, view);
            last.lines()
                .find(|l| cells.iter().all(|c| l.contains(c)))
                .map(str::to_owned)
        });
        assert!(
            shown.is_some(),
            "no line of `istioctl ztunnel-config {view}` has {cells:?}:\n{last}"
        );
    }
    until("the root is shown", || {
        show(&node, "certificates").contains("Root").then_some(())
    });
}

/// A view of the proxy's config dump by `istioctl`.
fn show(node: &MeshNode, view: &str) -> String {
    let file = node.processes.file("dump.json");
    std::fs::write(
        &file,
        node.processes
            .get("127.0.0.1:15000", "/config_dump")
            .unwrap()
            .1,
    )
    .unwrap();
    let mut command = Command::new(istioctl());
    command
        .args(["ztunnel-config", view, "--file"])
        .arg(&file)
        .env_clear()
        .env("HOME", node.processes.file(""));
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{view}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
