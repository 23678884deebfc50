//! What a waypoint can be bound to.

use serde_json::json;
use underpass_tests::kube::gateways::WaypointFor;
use underpass_tests::kube::http::{GET, Request};

use crate::shop::{Shop, status, straight_from, through_envoy_from};

#[test]
fn waypoints_are_bound_to_a_namespace_a_service_or_a_workload() {
    let Some(shop) = Shop::open("bound") else {
        return;
    };
    let kube = &shop.kube;
    kube.namespace("elsewhere", true);
    kube.create_waypoint("elsewhere", "shared", WaypointFor::Service);
    shop.waypoint("by-service", WaypointFor::Service);
    shop.waypoint("by-pod", WaypointFor::Workload);
    kube.await_gateway("elsewhere", "shared");
    let client = shop.netns("client");
    let (v1, v2) = (shop.addresses_of("web-v1"), shop.addresses_of("web-v2"));

    // A service of its own; the other one is not affected.
    shop.label("service/web-v1", "istio.io/use-waypoint=by-service");
    shop.await_response(
        "a service",
        &client,
        &v1,
        &GET,
        through_envoy_from("web-v1"),
    );
    shop.assert_response("another", &client, &v2, &GET, straight_from("web-v2"));

    // The namespace, with the waypoint of another namespace.
    let namespace = format!("namespace/{}", shop.namespace);
    shop.label(&namespace, "istio.io/use-waypoint=shared");
    shop.label(&namespace, "istio.io/use-waypoint-namespace=elsewhere");
    shop.await_response(
        "the namespace",
        &client,
        &v2,
        &GET,
        through_envoy_from("web-v2"),
    );
    let identity = "dst.identity=\"spiffe://cluster.local/ns/elsewhere/sa/shared\"";
    shop.await_line(
        "node-1",
        &["direction=\"outbound\"", identity, shop.namespace],
    );
    shop.label(&namespace, "istio.io/use-waypoint-");
    shop.label(&namespace, "istio.io/use-waypoint-namespace-");
    shop.await_response("no longer", &client, &v2, &GET, straight_from("web-v2"));

    // A pod, when it is addressed itself.
    let pod = shop.addresses_of_pod("web-v2");
    shop.assert_response("the pod", &client, &pod, &GET, straight_from("web-v2"));
    shop.label("pod/web-v2", "istio.io/use-waypoint=by-pod");
    let gateway = json!({
        "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "by-pod",
    });
    shop.apply(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "by-pod",
        &json!({
            "targetRefs": [gateway],
            "action": "DENY",
            "rules": [{ "to": [{ "operation": { "paths": ["/secret"] } }] }],
        }),
    );
    let secret = Request {
        path: "/secret",
        ..GET
    };
    shop.await_response("its policy", &client, &pod, &secret, status(403));
    shop.assert_response(
        "the rest",
        &client,
        &pod,
        &GET,
        through_envoy_from("web-v2"),
    );
    shop.kube
        .kubectl(&["delete", "namespace", "elsewhere", "--wait=false"]);
}
