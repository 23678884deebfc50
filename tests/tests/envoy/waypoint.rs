//! A pod reaches a service through its waypoint.

use serde_json::json;
use underpass_tests::kube::await_within;
use underpass_tests::kube::gateways::WaypointFor;
use underpass_tests::kube::http::{GET, Request, request};

use crate::shop::{PATIENCE, Shop, status, straight_from, through_envoy_from};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const SECURITY: &str = "security.istio.io/v1";

/// The waypoint routes by header and weight, and denies by path, method and client.
fn create_rules(shop: &Shop) {
    let header = json!({ "headers": [{ "name": "version", "value": "v2" }] });
    let backend = |name: &str, weight: u8| json!({ "name": name, "port": 80, "weight": weight });
    let service = json!({ "group": "", "kind": "Service", "name": "web" });
    let mut parent = service.clone();
    parent["port"] = json!(80);
    shop.apply(
        GATEWAY_API,
        "HTTPRoute",
        "web",
        &json!({
            "parentRefs": [parent],
            "rules": [
                { "matches": [header], "backendRefs": [backend("web-v2", 1)] },
                { "backendRefs": [backend("web-v1", 80), backend("web-v2", 20)] },
            ],
        }),
    );
    let only_client = shop.principal("client");
    shop.apply(
        SECURITY,
        "AuthorizationPolicy",
        "web",
        &json!({
            "targetRefs": [service],
            "action": "DENY",
            "rules": [
                { "to": [{ "operation": { "paths": ["/admin*"] } }] },
                { "to": [{ "operation": { "methods": ["DELETE"] } }] },
                {
                    "from": [{ "source": { "notPrincipals": [only_client] } }],
                    "to": [{ "operation": { "paths": ["/client-only"] } }],
                },
            ],
        }),
    );
}

#[test]
fn a_waypoint_routes_by_header_and_weight_and_enforces_paths_methods_and_clients() {
    let Some(shop) = Shop::open("routed") else {
        return;
    };
    shop.waypoint("waypoint", WaypointFor::Service);
    shop.label("service/web", "istio.io/use-waypoint=waypoint");
    create_rules(&shop);
    let (client, other) = (shop.netns("client"), shop.netns("other"));
    let web = shop.addresses_of("web");
    let get = |path| Request { path, ..GET };

    shop.await_response(
        "the policy applies",
        &client,
        &web,
        &get("/admin"),
        status(403),
    );
    let v2 = Request {
        headers: &["version: v2"],
        ..GET
    };
    // A single response could be a coincidence.
    await_within(PATIENCE, "a header chooses the version", || {
        let mut responses = web
            .iter()
            .cycle()
            .take(10)
            .map(|to| request(&client, to, &v2));
        responses
            .all(|r| through_envoy_from("web-v2")(&r))
            .then_some(())
    });
    let delete = Request {
        method: "DELETE",
        ..GET
    };
    shop.assert_response("a method", &client, &web, &delete, status(403));
    shop.assert_response("a client", &client, &web, &get("/client-only"), status(200));
    shop.assert_response("another", &other, &web, &get("/client-only"), status(403));
    let mut from_v2 = 0;
    for to in web.iter().cycle().take(100) {
        let response = request(&client, to, &GET).unwrap();
        assert!(
            response.is_envoys() && response.status == 200,
            "{response:?}"
        );
        from_v2 += usize::from(response.body.starts_with("web-v2"));
    }
    // At random, 20 of 100 are fewer than 4 or more than 45 once in ten million runs.
    assert!((4..=45).contains(&from_v2), "{from_v2} of 100 requests");

    assert_both_logs_have_the_connection(&shop);
    assert_why_shows_the_whole_path(&shop);
    assert_istioctl_shows_the_waypoint(&shop);
}

/// The client's proxy names the waypoint, and the receiver's the waypoint's identity.
fn assert_both_logs_have_the_connection(shop: &Shop) {
    let namespace = shop.namespace;
    let identity = |account: &str| format!("spiffe://{}", shop.principal(account));
    let service = format!("dst.service=\"web.{namespace}.svc.cluster.local\"");
    let (client, waypoint) = (identity("client"), identity("waypoint"));
    let from_client = format!("src.identity=\"{client}\"");
    let to_waypoint = format!("dst.identity=\"{waypoint}\"");
    let outbound = [
        "direction=\"outbound\"",
        &from_client,
        &to_waypoint,
        &service,
    ];
    shop.await_line("node-1", &outbound);
    shop.await_connection("node-2", "web-v1", &shop.principal("waypoint"));
}

fn assert_why_shows_the_whole_path(shop: &Shop) {
    let namespace = shop.namespace;
    let (from, to) = (format!("{namespace}/client"), format!("{namespace}/web"));
    let (ok, why) = shop.kube.underpass("node-1", &["why", &from, &to]);
    assert!(ok, "{why}");
    let (waypoint, onward) = why.split_once("then      from the waypoint").unwrap();
    let identity = format!("(spiffe://{})", shop.principal("waypoint"));
    assert!(
        waypoint.contains("HBONE to a waypoint") && waypoint.contains(&identity),
        "{why}"
    );
    let client = format!("the client is spiffe://{}", shop.principal("waypoint"));
    for part in ["web-v1", "web-v2", &client] {
        assert!(onward.contains(part), "{part}: {why}");
    }
    assert!(!why.contains("not in the mesh"), "{why}");
}

fn assert_istioctl_shows_the_waypoint(shop: &Shop) {
    let namespace = shop.namespace;
    let istioctl = |arguments: &[&str]| shop.kube.run("istioctl", arguments);
    let state = istioctl(&["waypoint", "status", "-n", namespace]);
    let line = state.lines().find(|l| l.contains("waypoint")).unwrap();
    assert!(line.contains("True"), "{state}");
    let list = istioctl(&["waypoint", "list", "-n", namespace]);
    assert!(list.contains("waypoint"), "{list}");
    let services = istioctl(&["ztunnel-config", "services", "--node", "node-1"]);
    let line = services.lines().find(|l| {
        let cells: Vec<&str> = l.split_whitespace().collect();
        cells.starts_with(&[namespace, "web"])
    });
    let line = line.unwrap_or_else(|| panic!("web is not listed: {services}"));
    assert!(
        line.split_whitespace().any(|cell| cell == "waypoint"),
        "{services}"
    );
}

#[test]
fn nothing_gets_around_a_waypoint_if_policy_says_so() {
    let Some(shop) = Shop::open("guarded") else {
        return;
    };
    shop.waypoint("waypoint", WaypointFor::Service);
    shop.label("service/web", "istio.io/use-waypoint=waypoint");
    let client = shop.netns("client");
    let (web, pod) = (shop.addresses_of("web"), shop.addresses_of_pod("web-v1"));
    shop.await_response("the waypoint", &client, &web, &GET, |response| {
        response
            .as_ref()
            .is_ok_and(|r| r.is_envoys() && r.status == 200)
    });
    shop.assert_response(
        "the pod itself",
        &client,
        &pod,
        &GET,
        straight_from("web-v1"),
    );
    let waypoint = shop.principal("waypoint");
    shop.apply(
        SECURITY,
        "AuthorizationPolicy",
        "only-waypoint",
        &json!({
            "selector": { "matchLabels": { "app": "web" } },
            "action": "ALLOW",
            "rules": [{ "from": [{ "source": { "principals": [waypoint] } }] }],
        }),
    );
    shop.await_response("the pod itself", &client, &pod, &GET, Result::is_err);
    // Not from outside of the mesh either, nor by another service of the same pods.
    let node = shop.kube.node("node-1").netns.try_clone().unwrap();
    shop.assert_response("plain text", &node, &pod, &GET, Result::is_err);
    let direct = shop.addresses_of("web-v1");
    shop.assert_response("another service", &client, &direct, &GET, Result::is_err);
    shop.assert_response("the waypoint", &client, &web, &GET, status(200));
    let (from, to) = (
        format!("{}/client", shop.namespace),
        format!("{}/web-v1", shop.namespace),
    );
    let (allowed, why) = shop.kube.underpass("node-1", &["why", &from, &to]);
    assert!(!allowed && why.contains("only-waypoint"), "{why}");
}
