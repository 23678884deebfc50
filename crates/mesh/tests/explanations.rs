//! Explanations of connections that a waypoint or a gateway forwards, and the service by which
//! telemetry names an inbound connection.
#![allow(clippy::unwrap_used)]

use mesh::explain::{Explanation, Question, RouteKind, TransportProtocol, explain};
use mesh::route::{Route, Via, route};
use mesh::{Mesh, OrigDst, Text, parse_mesh_file};

const FILE: &str = r#"
workloads:
  - { name: client, namespace: a, serviceAccount: client, protocol: HBONE, network: near,
      workloadIps: [10.0.0.1], locality: { region: r1 } }
  - { name: web, namespace: a, serviceAccount: web, protocol: HBONE, network: near,
      workloadIps: [10.0.0.2], authorizationPolicies: [a/only-waypoint],
      services: { a/web.a: {}, a/api.a: {}, a/both.a: {}, a/guarded.a: {} } }
  - { name: far, namespace: a, serviceAccount: web, protocol: HBONE, network: far,
      workloadIps: [10.0.0.2], locality: { region: r1 },
      networkGateway: { destination: near/10.0.0.30 },
      services: { a/both.a: {}, a/far.a: {} } }
  - { name: waypoint, namespace: a, serviceAccount: wp, protocol: TCP, network: near,
      workloadIps: [10.0.0.20] }
  - { name: gateway, namespace: a, serviceAccount: gw, network: near, workloadIps: [10.0.0.30] }
services:
  - { name: web, namespace: a, hostname: web.a, vips: [near/10.96.0.1], ports: { 80: 8080 } }
  - { name: api, namespace: a, hostname: api.a, vips: [near/10.96.0.2], ports: { 443: 8443 } }
  - { name: both, namespace: a, hostname: both.a, vips: [near/10.96.0.3], ports: { 80: 8080 },
      loadBalancer: { mode: Failover, routingPreferences: [Region] } }
  - { name: guarded, namespace: a, hostname: guarded.a, vips: [near/10.96.0.4],
      ports: { 80: 8080 }, waypoint: { destination: near/10.0.0.20 } }
  - { name: far, namespace: a, hostname: far.a, vips: [near/10.96.0.5], ports: { 80: 8080 } }
policies:
  - { name: only-waypoint, namespace: a, scope: WorkloadSelector, action: Allow,
      rules: [[[{ principals: [{ Exact: cluster.local/ns/a/sa/wp }] }]]] }
"#;

fn mesh() -> Mesh {
    parse_mesh_file(FILE).unwrap()
}

fn explained(mesh: &Mesh, destination: &str) -> Explanation {
    let question = Question {
        source: "a/client",
        destination,
        port: None,
        network: "near",
        protocol: TransportProtocol::Tcp,
    };
    explain(mesh, &question).unwrap()
}

#[test]
fn an_endpoint_behind_a_gateway_that_was_tried_is_replaced_by_a_local_one() {
    let mesh = mesh();
    let client = mesh.workload_by_name("a", "client").unwrap();
    let gateway = mesh.workload_by_name("a", "gateway").unwrap();
    let via = |to: &str, random, tried: &[Text]| {
        let to = OrigDst(to.parse().unwrap());
        match route(&mesh, client, to, random, tried).outcome {
            Route::Tunnel { via, .. } => Some(via),
            _ => None,
        }
    };
    let tried = [gateway.uid.clone()];
    for random in 0..32 {
        assert_eq!(via("10.96.0.3:80", random, &tried), Some(Via::Nothing));
        assert_eq!(via("10.96.0.5:80", random, &tried), None, "no other one");
        let first = via("10.96.0.5:80", random, &[]);
        assert_eq!(first, Some(Via::NetworkGateway));
    }
    assert_eq!(via("10.96.0.3:80", 7, &[]), Some(Via::NetworkGateway));
}

#[test]
fn endpoints_after_one_behind_a_gateway_are_listed() {
    let explanation = explained(&mesh(), "a/both");
    let paths: Vec<_> = explanation.routes.iter().map(|r| r.path).collect();
    assert_eq!(paths, [RouteKind::Gateway, RouteKind::Hbone]);
    assert!(!explanation.more);
}

#[test]
fn the_route_through_a_waypoint_is_explained_to_its_end() {
    let explanation = explained(&mesh(), "a/guarded");
    let [route] = &explanation.routes[..] else {
        panic!("{explanation:?}")
    };
    assert_eq!(route.path, RouteKind::Waypoint);
    let waypoint = route.workload.as_ref().unwrap();
    assert!(waypoint.in_mesh, "it speaks HBONE: {waypoint:?}");
    let [onward] = &route.onward[..] else {
        panic!("{route:?}")
    };
    assert_eq!(onward.path, RouteKind::Hbone);
    assert_eq!(onward.to.as_deref(), Some("10.0.0.2:15008"));
    let policy = onward.policy.as_ref().unwrap();
    let identity = "spiffe://cluster.local/ns/a/sa/wp";
    assert!(policy.allowed && policy.client_identity.as_deref() == Some(identity));
    assert_eq!(onward.onward, []);
    // Without the waypoint, the same policy denies the client.
    let explanation = explained(&mesh(), "a/web");
    assert!(!explanation.routes[0].allowed, "{explanation:?}");
}

#[test]
fn a_connection_is_named_by_the_service_that_the_client_states_or_by_its_port() {
    let mesh = mesh();
    let web = mesh.workload_by_name("a", "web").unwrap();
    let waypoint = mesh.workload_by_name("a", "waypoint").unwrap();
    for (workload, named, port, expected) in [
        (web, Some("web.a"), 8080, Some("web.a")),
        (web, Some("Web.A"), 8443, Some("web.a")),
        (web, Some("both.a"), 8080, Some("both.a")),
        // Claims about other services are ignored.
        (web, Some("far.a"), 8443, Some("api.a")),
        (web, Some("unknown.example"), 8080, Some("both.a")),
        (web, None, 8443, Some("api.a")),
        (web, None, 8080, Some("both.a")),
        (web, None, 1, Some("api.a")),
        (waypoint, Some("guarded.a"), 80, Some("guarded.a")),
        (waypoint, Some("web.a"), 80, None),
    ] {
        let service = mesh.service_of(workload, named, port);
        let hostname = service.map(|s| s.hostname.as_str());
        assert_eq!(hostname, expected, "{named:?} {port}");
    }
}
