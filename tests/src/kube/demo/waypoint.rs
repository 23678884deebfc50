//! The steps with a real Envoy as waypoint and as ingress gateway.

use serde_json::{Value, json};

use super::DemoState;
use super::steps::SHOP;
use crate::kube::app::PORT;
use crate::kube::gateways::{self, WaypointFor};
use crate::kube::http::{GET, Request, Response, request};
use crate::kube::{Kube, until};

/// The namespace of the ingress gateway, outside the mesh.
const EDGE: &str = "edge";

pub(super) fn behind_a_waypoint(state: &mut DemoState<'_>) -> String {
    if let Some(why) = gateways::missing() {
        return format!("left out: {why}");
    }
    let kube = state.kube;
    kube.import_envoy();
    create_http_service(kube, "web");
    kube.create_waypoint(SHOP, "waypoint", WaypointFor::Service);
    kube.await_gateway(SHOP, "waypoint");
    kube.kubectl(&[
        "label",
        "-n",
        SHOP,
        "service/web",
        "istio.io/use-waypoint=waypoint",
    ]);
    kube.apply(&object(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "web",
        &json!({
            "parentRefs": [{ "group": "", "kind": "Service", "name": "web", "port": 80 }],
            "rules": [
                {
                    "matches": [{ "headers": [{ "name": "teapot", "value": "yes" }] }],
                    "filters": [{
                        "type": "RequestRedirect",
                        "requestRedirect": { "hostname": "teapot.example", "statusCode": 302 },
                    }],
                },
                { "backendRefs": [{ "name": "web", "port": 80 }] },
            ],
        }),
    ));
    kube.apply(&object(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "no-admin",
        &json!({
            "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "action": "DENY",
            "rules": [{ "to": [{ "operation": { "paths": ["/admin"] } }] }],
        }),
    ));
    let client = kube.netns_of(SHOP, "client");
    let to = &kube.service_addresses(SHOP, "web")[0];
    let ask = |request_: &Request<'_>, wanted: u16| {
        await_status(wanted, || request(&client, to, request_))
    };
    let admin = Request {
        path: "/admin",
        ..GET
    };
    let teapot = Request {
        headers: &["teapot: yes"],
        ..GET
    };
    ask(&admin, 403);
    ask(&teapot, 302);
    let response = ask(&GET, 200);
    assert!(response.is_envoys(), "{response:?}");
    let (_, why) = kube.underpass(
        "node-1",
        &["why", &format!("{SHOP}/client"), &format!("{SHOP}/web")],
    );
    format!(
        "/admin: 403; with a header: 302; else: 200 {}\n{}",
        response.body.trim_end(),
        why.trim_end()
    )
}

pub(super) fn behind_a_gateway(state: &mut DemoState<'_>) -> String {
    if let Some(why) = gateways::missing() {
        return format!("left out: {why}");
    }
    let kube = state.kube;
    kube.namespace(EDGE, false);
    kube.create_ingress(EDGE, "edge");
    kube.await_gateway(EDGE, "edge");
    kube.apply(&object(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "edge",
        &json!({
            "parentRefs": [{ "name": "edge", "namespace": EDGE }],
            "hostnames": ["shop.example"],
            "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }],
        }),
    ));
    let node = kube.node("node-2").netns.try_clone().unwrap();
    let to = &kube.service_addresses(EDGE, "edge-istio")[0];
    let outside = Request {
        host: "shop.example",
        ..GET
    };
    let response = await_status(200, || request(&node, to, &outside));
    let identity = format!("spiffe://cluster.local/ns/{EDGE}/sa/edge-istio");
    let line = until("the receiver has the gateway's connection", || {
        let (_, list) = kube.underpass("node-2", &["conns"]);
        list.lines()
            .find(|l| l.contains(&identity))
            .map(str::to_owned)
    });
    kube.kubectl(&["delete", "namespace", EDGE, "--wait=false"]);
    kube.kubectl(&["delete", "-n", SHOP, "httproute/web", "httproute/edge"]);
    kube.kubectl(&["delete", "-n", SHOP, "gateway/waypoint", "service/web"]);
    kube.kubectl(&["delete", "-n", SHOP, "authorizationpolicy/no-admin"]);
    format!("from outside: {}{line}", response.body)
}

/// A service of HTTP for the pod `server`.
fn create_http_service(kube: &Kube, name: &str) {
    let port = json!({ "name": "http", "port": 80, "targetPort": PORT, "appProtocol": "http" });
    kube.apply(&object(
        "v1",
        "Service",
        name,
        &json!({
            "selector": { "app": "server" },
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [port],
        }),
    ));
}

fn object(version: &str, kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name, "namespace": SHOP },
        "spec": spec,
    })
    .to_string()
}

/// Sends requests until one gets this status.
#[track_caller]
fn await_status(wanted: u16, ask: impl Fn() -> std::io::Result<Response>) -> Response {
    let mut last = String::new();
    for _ in 0..150 {
        match ask() {
            Ok(response) if response.status == wanted => return response,
            other => last = format!("{other:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("expected status {wanted}, got {last}")
}
