//! Services of several namespaces that share an address or a host name: each port is reached
//! wherever one of them has it.
#![allow(clippy::unwrap_used)]

use mesh::admit::{Admission, admit};
use mesh::explain::{Question, explain};
use mesh::route::{Route, route};
use mesh::{Mesh, OrigDst, parse_mesh_file};

const FILE: &str = r#"
workloads:
  - { name: client, namespace: a, protocol: HBONE, workloadIps: [10.0.0.1] }
  - { name: web, namespace: a, protocol: HBONE, workloadIps: [10.0.0.2],
      services: { a/api.example: {} } }
  - { name: db, namespace: b, protocol: HBONE, workloadIps: [10.0.0.3],
      services: { b/api.example: {} } }
  - { name: other, namespace: c, protocol: HBONE, workloadIps: [10.0.0.4],
      services: { c/API.example: {} } }
  - { name: hidden, namespace: d, protocol: HBONE, workloadIps: [10.0.0.5],
      services: { d/api.example: {} } }
  - { name: waypoint, namespace: e, serviceAccount: wp, workloadIps: [10.0.0.6] }
  - { name: same, namespace: f, protocol: HBONE, workloadIps: [10.0.0.7],
      services: { f/same.example: {} } }
services:
  - { name: api, namespace: a, hostname: api.example, vips: [/240.240.0.1], ports: { 80: 8080 } }
  - { name: api, namespace: b, hostname: api.example, vips: [/240.240.0.2, "/fd00::2"],
      ports: { 5432: 5432, 80: 1 } }
  - { name: api, namespace: c, hostname: API.example, ports: { 9000: 9000 } }
  - { name: api, namespace: d, hostname: api.example, vips: [/240.240.0.4], ports: { 7: 7 },
      visibility: Namespace }
  - { name: api, namespace: e, hostname: api.example, vips: [/240.240.0.5], ports: { 443: 443 },
      waypoint: { destination: /10.0.0.6 } }
  - { name: same, namespace: f, hostname: same.example, vips: [/240.240.0.1], ports: { 22: 2222 } }
  - { name: via, namespace: g, hostname: via.example, vips: [/240.240.0.1], ports: { 8443: 1 },
      waypoint: { destination: /10.0.0.6 } }
"#;

fn mesh() -> Mesh {
    parse_mesh_file(FILE).unwrap()
}

/// Where a connection of the client goes: the CONNECT authority and the proxy, or nowhere.
fn destination(mesh: &Mesh, to: &str) -> String {
    let client = mesh.workload_by_name("a", "client").unwrap();
    match route(mesh, client, OrigDst(to.parse().unwrap()), 0, &[]).outcome {
        Route::Tunnel {
            tunnel, authority, ..
        } => format!("{authority} at {tunnel}"),
        Route::Direct { to, .. } => format!("plain {to}"),
        Route::Refuse { .. } => "refused".to_owned(),
    }
}

#[test]
fn every_port_of_a_shared_host_name_is_reached_where_a_service_has_it() {
    let mesh = mesh();
    let of_first = |port: u16| destination(&mesh, &format!("240.240.0.1:{port}"));
    assert_eq!(of_first(80), "10.0.0.2:8080 at 10.0.0.2:15008", "its own");
    assert_eq!(of_first(5432), "10.0.0.3:5432 at 10.0.0.3:15008");
    assert_eq!(
        of_first(9000),
        "10.0.0.4:9000 at 10.0.0.4:15008",
        "headless"
    );
    assert_eq!(
        of_first(443),
        "240.240.0.5:443 at 10.0.0.6:15008",
        "the waypoint gets the address of the service that it serves"
    );
    assert_eq!(of_first(7), "refused", "not visible to the client");
    assert_eq!(of_first(8), "refused", "no service has it");
    assert_eq!(
        destination(&mesh, "240.240.0.2:80"),
        "10.0.0.3:1 at 10.0.0.3:15008",
        "the service of the address has the port"
    );
    assert_eq!(
        destination(&mesh, "[fd00::2]:443"),
        "240.240.0.5:443 at 10.0.0.6:15008",
        "of the only family"
    );
}

#[test]
fn every_port_of_a_shared_address_is_reached_where_a_service_has_it() {
    let mesh = mesh();
    assert_eq!(
        destination(&mesh, "240.240.0.1:22"),
        "10.0.0.7:2222 at 10.0.0.7:15008"
    );
    assert_eq!(
        destination(&mesh, "240.240.0.1:8443"),
        "240.240.0.1:8443 at 10.0.0.6:15008"
    );
}

#[test]
fn a_waypoint_admits_requests_for_any_service_that_shares_the_name_or_the_address() {
    let mesh = mesh();
    let waypoint = mesh.workload_by_name("e", "waypoint").unwrap();
    let own = "10.0.0.6".parse().unwrap();
    let admits = |host: &str, port: u16| admit(&mesh, waypoint, own, host, port).outcome;
    let is_here = |admission: Admission| matches!(admission, Admission::Here { .. });
    assert!(is_here(admits("api.example", 443)));
    assert!(is_here(admits("240.240.0.5", 443)));
    assert!(
        is_here(admits("240.240.0.1", 8443)),
        "the third of the address"
    );
    assert_eq!(admits("240.240.0.2", 443), Admission::Mismatch);
}

#[test]
fn why_names_the_service_that_has_the_port() {
    let mesh = mesh();
    let question = Question {
        source: "a/client",
        destination: "240.240.0.1",
        port: Some(5432),
        network: "",
        protocol: mesh::explain::TransportProtocol::Tcp,
    };
    let explanation = explain(&mesh, &question).unwrap();
    assert_eq!(explanation.service.as_deref(), Some("b/api.example"));
    let route = format!("{:?}", explanation.routes);
    assert!(
        route.contains("240.240.0.1 is service a/api.example, which does not have port 5432"),
        "{route}"
    );
}
