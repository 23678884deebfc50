//! Routing precedence, and admission of CONNECT requests, for a mesh file.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use mesh::admit::{Admission, admit};
use mesh::route::{Route, route, route_unexplained};
use mesh::{Decision, Mesh, MeshSettings, OrigDst, Text, parse_mesh_file};

const FILE: &str = r#"
workloads:
  - { name: client, namespace: a, protocol: HBONE, network: near, node: n1,
      workloadIps: [10.0.0.1, "fd00::1"], locality: { region: r1, zone: z1 } }
  - { name: web, namespace: a, serviceAccount: web, protocol: HBONE, network: near, node: n1,
      workloadIps: [10.0.0.2], locality: { region: r1, zone: z1 },
      services: { a/web.a: {}, a/strict.a: {}, a/near.a: {} } }
  - { name: web-2, namespace: a, serviceAccount: web, protocol: HBONE, network: near, node: n2,
      workloadIps: [10.0.0.3], locality: { region: r1, zone: z2 },
      services: { a/web.a: {}, a/near.a: {} } }
  - { name: web-3, namespace: a, protocol: TCP, network: near, node: n2, workloadIps: [10.0.0.4],
      locality: { region: r2 }, services: { a/web.a: {} } }
  - { name: sick, namespace: a, network: near, workloadIps: [10.0.0.5], status: Unhealthy,
      services: { a/web.a: {}, a/sick.a: {} } }
  - { name: guarded, namespace: a, protocol: HBONE, network: near, workloadIps: [10.0.0.6],
      waypoint: { destination: near/10.0.0.20 }, services: { a/guarded.a: {} } }
  - { name: lost, namespace: a, protocol: HBONE, network: near, workloadIps: [10.0.0.7],
      waypoint: { destination: near/10.0.0.99 } }
  - { name: waypoint, namespace: a, serviceAccount: wp, network: near, workloadIps: [10.0.0.20],
      services: { a/wp.a: {} } }
  - { name: waypoint-2, namespace: a, serviceAccount: wp, network: near, workloadIps: [10.0.0.21] }
  - { name: far, namespace: a, protocol: HBONE, network: far, workloadIps: [10.0.0.2], capacity: 2,
      networkGateway: { destination: near/10.0.0.30, hboneMtlsPort: 15443 },
      services: { a/far.a: {}, a/near.a: {} } }
  - { name: hidden, namespace: a, serviceAccount: hidden, protocol: HBONE, network: far,
      networkGateway: { destination: near/10.0.0.30 }, services: { a/hidden.a: {} } }
  - { name: cut-off, namespace: a, protocol: HBONE, network: far, workloadIps: [10.9.0.1],
      services: { a/cut-off.a: {} } }
  - { name: far-waypoint, namespace: a, serviceAccount: wp, network: far, workloadIps: [10.9.0.2],
      networkGateway: { destination: near/10.0.0.30 }, services: { a/far-wp.a: {} } }
  - { name: gateway, namespace: gw, serviceAccount: gw, network: near, workloadIps: [10.0.0.30] }
  - { name: named, namespace: a, protocol: TCP, network: near, hostname: db.example,
      services: { a/named.a: {} } }
  - { name: tunnelled, namespace: a, protocol: HBONE, network: near, workloadIps: [10.0.0.8],
      services: { a/tunnelled.a: {} }, applicationTunnel: { protocol: PROXY, port: 15088 } }
  - { name: in-range, namespace: a, protocol: HBONE, network: near, workloadIps: [10.97.1.9] }
services:
  - { name: web, namespace: a, hostname: web.a, vips: [near/10.96.0.1], ports: { 80: 8080 },
      subjectAltNames: [spiffe://t/ns/x/sa/y],
      loadBalancer: { mode: Failover, routingPreferences: [Region, Zone, Node] } }
  - { name: strict, namespace: a, hostname: strict.a, vips: [near/10.96.0.2], ports: { 80: 8080 },
      loadBalancer: { mode: Strict, routingPreferences: [Node] } }
  - { name: near, namespace: a, hostname: near.a, vips: [near/10.96.0.3], ports: { 80: 8080 },
      loadBalancer: { mode: Failover, routingPreferences: [Network, Node] } }
  - { name: sick, namespace: a, hostname: sick.a, vips: [near/10.96.0.4], ports: { 80: 8080 },
      loadBalancer: { healthPolicy: AllowAll } }
  - { name: guarded, namespace: a, hostname: guarded.a, vips: [near/10.96.0.5, "near/10.0.0.6"],
      ports: { 80: 8080 }, waypoint: { destination: a/wp.a, hboneMtlsPort: 15018 } }
  - { name: wp, namespace: a, hostname: wp.a, vips: [near/10.96.0.6], ports: { 15018: 15008 } }
  - { name: shared, namespace: a, hostname: shared.a, vips: [near/10.96.0.7], ports: { 80: 80 },
      waypoint: { destination: near/10.0.0.99 },
      weightedWaypoints: [{ waypoint: { destination: near/10.0.0.20 }, weight: 1 },
                          { waypoint: { destination: near/10.0.0.21 }, weight: 3 },
                          { waypoint: { destination: near/10.0.0.99 }, weight: 0 }] }
  - { name: far, namespace: a, hostname: far.a, vips: [near/10.96.0.8], ports: { 80: 8080 },
      subjectAltNames: [spiffe://t/ns/a/sa/far] }
  - { name: hidden, namespace: a, hostname: hidden.a, vips: [near/10.96.0.9], ports: { 80: 8080 } }
  - { name: cut-off, namespace: a, hostname: cut-off.a, vips: [near/10.96.0.10],
      ports: { 80: 8080 } }
  - { name: far-wp, namespace: a, hostname: far-wp.a, vips: [near/10.96.0.11],
      ports: { 15008: 15008 } }
  - { name: beyond, namespace: a, hostname: beyond.a, vips: [near/10.96.0.12], ports: { 80: 80 },
      waypoint: { destination: a/far-wp.a } }
  - { name: named, namespace: a, hostname: named.a, vips: [near/10.96.0.13], ports: { 80: 5432 } }
  - { name: through, namespace: a, hostname: through.a, vips: [near/10.97.0.0/16], ports: {},
      loadBalancer: { mode: Passthrough } }
  - { name: narrow, namespace: b, hostname: narrow.b, vips: [near/10.97.1.0/24], ports: { 80: 80 } }
  - { name: lost, namespace: a, hostname: lost.a, vips: [near/10.96.0.14], ports: { 80: 80 },
      waypoint: { destination: a/nowhere.a } }
  - { name: secret, namespace: b, hostname: secret.b, vips: [near/10.96.0.15], ports: { 80: 80 },
      visibility: Namespace }
  - { name: twin, namespace: b, hostname: twin.x, vips: [near/10.96.0.16], ports: { 80: 80 } }
  - { name: twin, namespace: c, hostname: twin.x, vips: [near/10.96.0.16], ports: { 80: 80 },
      canonical: true }
  - { name: same, namespace: c, hostname: same.x, vips: [near/10.96.0.117], ports: { 80: 80 } }
  - { name: same, namespace: e, hostname: same.x, vips: [near/10.96.0.117], ports: { 80: 80 } }
  - { name: same, namespace: f, hostname: same.x, vips: [near/10.96.0.117], ports: { 80: 80 } }
  - { name: twin, namespace: d, hostname: twin.x, vips: [near/10.96.0.16], ports: { 80: 80 } }
  - { name: tunnelled, namespace: a, hostname: tunnelled.a,
      vips: [near/10.96.0.17, "near/fd96::17"], ports: {} }
  - { name: sandwiched, namespace: a, hostname: sandwiched.a, vips: [near/10.96.0.18],
      ports: { 80: 80 }, waypoint: { destination: near/10.0.0.20 } }
"#;

fn mesh() -> Mesh {
    parse_mesh_file(FILE).unwrap()
}

fn decide(mesh: &Mesh, from: &str, to: &str, random: u64, tried: &[Text]) -> Decision<Route> {
    let source = mesh.workload_by_name("a", from).unwrap();
    let orig_dst = OrigDst(to.parse().unwrap());
    let decision = route(mesh, source, orig_dst, random, tried);
    let unexplained = route_unexplained(mesh, source, orig_dst, random, tried);
    assert_eq!(unexplained, decision.outcome);
    decision
}

/// Descriptions of all routes that random choice can produce.
fn routes_of(from: &str, to: &str) -> BTreeSet<String> {
    let mesh = mesh();
    (0..64)
        .map(|random| describe(&decide(&mesh, from, to, random << 32 | random, &[]).outcome))
        .collect()
}

fn describe(route: &Route) -> String {
    match route {
        Route::Tunnel {
            tunnel,
            authority,
            expected,
            inner,
            via,
            ..
        } => {
            let inner = inner
                .as_ref()
                .map(|i| format!(" then {}", i.join(",")))
                .unwrap_or_default();
            format!("{via:?} {tunnel} {authority} {}{inner}", expected.join(","))
        }
        Route::Direct { to, workload, .. } => format!(
            "plain {to}{}",
            if workload.is_some() { " known" } else { "" }
        ),
        Route::Refuse { .. } => "refused".to_owned(),
    }
}

fn only(from: &str, to: &str) -> String {
    let routes = routes_of(from, to);
    assert_eq!(routes.len(), 1, "{routes:?}");
    routes.into_iter().next().unwrap()
}

const WP: &str = "spiffe://cluster.local/ns/a/sa/wp";
const WEB: &str = "spiffe://cluster.local/ns/a/sa/web";
const GW: &str = "spiffe://cluster.local/ns/gw/sa/gw";

#[test]
fn a_service_waypoint_receives_the_virtual_address() {
    assert_eq!(
        only("client", "10.96.0.5:80"),
        format!("ServiceWaypoint 10.0.0.20:15008 10.96.0.5:80 {WP}")
    );
    assert_eq!(
        only("client", "10.96.0.14:80"),
        "refused",
        "unknown waypoint"
    );
    // The waypoint itself connects to the workload.
    assert!(only("waypoint", "10.96.0.5:80").starts_with("Nothing 10.0.0.6:15008 10.0.0.6:8080 "));
    assert_eq!(
        only("waypoint-2", "10.96.0.7:80"),
        "refused",
        "one of several waypoints of a service without workloads"
    );
    // For an address of both a workload and a service, the waypoint is skipped.
    assert!(only("client", "10.0.0.6:80").starts_with("Nothing 10.0.0.6:15008 10.0.0.6:8080 "));
}

#[test]
fn waypoints_share_a_service_by_weight() {
    let mesh = mesh();
    let mut of_first = 0;
    for random in 0..400u64 {
        let way =
            describe(&decide(&mesh, "client", "10.96.0.7:80", random.rotate_left(32), &[]).outcome);
        of_first += u32::from(way == format!("ServiceWaypoint 10.0.0.20:15008 10.96.0.7:80 {WP}"));
    }
    assert_eq!(of_first, 100);
    let tried = [mesh.workload_by_name("a", "waypoint").unwrap().uid.clone()];
    assert_eq!(
        describe(&decide(&mesh, "client", "10.96.0.7:80", 0, &tried).outcome),
        "refused"
    );
}

#[test]
fn a_workload_is_reached_through_its_waypoint_except_from_the_waypoint() {
    assert_eq!(only("client", "10.0.0.20:80"), "plain 10.0.0.20:80 known");
    let mesh = parse_mesh_file(&FILE.replace("\"near/10.0.0.6\"", "")).unwrap();
    let way = |from| describe(&decide(&mesh, from, "10.0.0.6:8080", 0, &[]).outcome);
    assert_eq!(
        way("client"),
        format!("WorkloadWaypoint 10.0.0.20:15008 10.0.0.6:8080 {WP}")
    );
    assert!(way("waypoint").starts_with("Nothing 10.0.0.6:15008 10.0.0.6:8080 "));
    assert_eq!(only("client", "10.0.0.7:80"), "refused", "unknown waypoint");
}

#[test]
fn another_network_is_reached_through_its_gateway() {
    let san = "spiffe://t/ns/a/sa/far";
    assert_eq!(
        only("client", "10.96.0.8:80"),
        format!("NetworkGateway 10.0.0.30:15443 far.a:80 {GW} then {san}")
    );
    let hidden = "spiffe://cluster.local/ns/a/sa/hidden";
    assert_eq!(
        only("client", "10.96.0.9:80"),
        format!("NetworkGateway 10.0.0.30:15008 hidden.a:80 {GW} then {hidden}")
    );
    assert_eq!(
        only("client", "10.96.0.10:80"),
        "refused",
        "without a gateway"
    );
    // The same applies to a waypoint in another network.
    assert_eq!(
        only("client", "10.96.0.12:80"),
        format!("NetworkGateway 10.0.0.30:15008 beyond.a:80 {GW} then {WP}")
    );
}

#[test]
fn locality_determines_the_endpoint() {
    let web = |ip: &str| format!("Nothing {ip}:15008 {ip}:8080 spiffe://t/ns/x/sa/y,{WEB}");
    assert_eq!(
        only("client", "10.96.0.1:80"),
        web("10.0.0.2"),
        "shares the most scopes"
    );
    let mesh = mesh();
    let uid = |name: &str| mesh.workload_by_name("a", name).unwrap().uid.clone();
    let after =
        |tried: &[Text]| describe(&decide(&mesh, "client", "10.96.0.1:80", 5, tried).outcome);
    assert_eq!(
        after(&[uid("web")]),
        web("10.0.0.3"),
        "shares the next most scopes"
    );
    assert_eq!(
        after(&[uid("web"), uid("web-2")]),
        "plain 10.0.0.4:8080 known",
        "shares no scope, and is not in the mesh"
    );
    assert_eq!(
        after(&[uid("web"), uid("web-2"), uid("web-3")]),
        "refused",
        "unhealthy endpoints are excluded"
    );
    assert_eq!(
        only("client", "10.96.0.4:80"),
        "plain 10.0.0.5:8080 known",
        "unless the service allows them"
    );
    assert!(
        only("client", "10.96.0.2:80").starts_with("Nothing 10.0.0.2:15008"),
        "strict, on the same node"
    );
    assert_eq!(
        only("web-2", "10.96.0.2:80"),
        "refused",
        "strict, on another node"
    );
    // The own network first, then the same node.
    assert!(only("client", "10.96.0.3:80").starts_with("Nothing 10.0.0.2:15008"));
    assert!(only("web-2", "10.96.0.3:80").starts_with("Nothing 10.0.0.3:15008"));
    let tried = [uid("web"), uid("web-2")];
    let beyond = describe(&decide(&mesh, "client", "10.96.0.3:80", 5, &tried).outcome);
    assert!(
        beyond.starts_with("NetworkGateway"),
        "falls back to another network: {beyond}"
    );
}

#[test]
fn the_longest_range_wins_and_a_workloads_own_address_precedes_ranges() {
    assert_eq!(
        only("client", "10.97.9.9:443"),
        "plain 10.97.9.9:443",
        "passthrough"
    );
    let service = |ip: &str, namespace: &str| {
        mesh()
            .service_by_vip("near", ip.parse().unwrap(), namespace)
            .map(|s| s.key())
    };
    assert_eq!(
        service("10.97.1.1", "b").as_deref(),
        Some("b/narrow.b"),
        "the longest, and in its own namespace"
    );
    assert_eq!(
        service("10.97.1.1", "x").as_deref(),
        Some("b/narrow.b"),
        "the longest"
    );
    assert_eq!(
        service("10.97.1.1", "a").as_deref(),
        Some("b/narrow.b"),
        "the longest, although another one is in its own namespace"
    );
    assert_eq!(service("10.97.1.9", "a"), None, "a workload's own address");
    assert!(only("client", "10.97.1.9:443").starts_with("Nothing 10.97.1.9:15008"));
    assert_eq!(service("10.97.2.1", "x").as_deref(), Some("a/through.a"));
    assert_eq!(service("10.98.0.1", "x"), None);
    assert_eq!(service("10.96.0.15", "b").as_deref(), Some("b/secret.b"));
    assert_eq!(service("10.96.0.15", "a"), None, "not visible");
    assert_eq!(only("client", "10.96.0.15:80"), "plain 10.96.0.15:80");
    for (namespace, key) in [("b", "b/twin.x"), ("d", "d/twin.x"), ("x", "c/twin.x")] {
        assert_eq!(service("10.96.0.16", namespace).as_deref(), Some(key));
        assert_eq!(
            mesh()
                .service_by_hostname("twin.x", namespace)
                .unwrap()
                .key(),
            key
        );
    }
    for (preferred, key) in [
        (Some("f"), "f/same.x"),
        (Some("b"), "c/same.x"),
        (None, "c/same.x"),
    ] {
        let mut mesh = mesh();
        mesh.set(MeshSettings {
            preferred_namespace: preferred.map(Text::from),
            ..MeshSettings::default()
        });
        assert_eq!(
            mesh.service_by_hostname("same.x", "x").unwrap().key(),
            key,
            "{preferred:?} is preferred"
        );
        assert_eq!(
            mesh.service_by_hostname("same.x", "e").unwrap().key(),
            "e/same.x",
            "in its own namespace"
        );
        assert_eq!(
            mesh.service_by_hostname("twin.x", "x").unwrap().key(),
            "c/twin.x",
            "canonical"
        );
    }
}

#[test]
fn a_workload_without_an_address_is_reached_by_its_name() {
    assert_eq!(
        only("client", "10.96.0.13:80"),
        "plain db.example:5432 known"
    );
}

#[test]
fn a_decision_lists_what_was_considered() {
    let mesh = mesh();
    let decision = decide(&mesh, "waypoint", "10.96.0.5:80", 0, &[]);
    assert_eq!(decision.considered[0], "10.96.0.5 is service a/guarded.a");
    assert_eq!(
        decision.considered[1],
        "a/waypoint is the waypoint of service a/guarded.a"
    );
    let decision = decide(&mesh, "client", "10.96.0.14:80", 0, &[]);
    assert_eq!(
        decision.reason,
        "service a/lost.a has the waypoint a/nowhere.a: a/nowhere.a is unknown"
    );
}

fn admitted(workload: &str, own: &str, host: &str, port: u16) -> String {
    let mesh = mesh();
    let workload = mesh.workload_by_name("a", workload).unwrap();
    match admit(&mesh, workload, own.parse().unwrap(), host, port).outcome {
        Admission::Here {
            destination,
            connect,
            header,
        } => {
            let header = header
                .map(|h| format!(" PROXY {} {}", h.destination, h.service.unwrap_or_default()));
            format!("{destination} {connect}{}", header.unwrap_or_default())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn only_destinations_in_the_pod_are_admitted() {
    assert_eq!(
        admitted("web", "10.0.0.2", "10.0.0.2", 80),
        "10.0.0.2:80 10.0.0.2:80"
    );
    assert_eq!(
        admitted("client", "fd00::1", "[fd00::1]", 80),
        "[fd00::1]:80 [fd00::1]:80"
    );
    assert_eq!(admitted("web", "10.0.0.2", "10.0.0.3", 80), "Mismatch");
    assert_eq!(
        admitted("web", "10.0.0.2", "10.96.0.1", 80),
        "Mismatch",
        "its service's address is not its own address"
    );
    assert_eq!(
        admitted("web", "10.0.0.2", "web.a", 80),
        "10.0.0.2:8080 10.0.0.2:8080"
    );
    assert_eq!(
        admitted("web", "10.0.0.2", "WEB.A", 80),
        "10.0.0.2:8080 10.0.0.2:8080"
    );
    assert_eq!(admitted("web", "10.0.0.2", "web.a", 81), "Unavailable");
    assert_eq!(admitted("web", "10.0.0.2", "far.a", 80), "Unavailable");
}

#[test]
fn a_waypoint_admits_requests_for_its_services_and_workloads() {
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "10.96.0.5", 80),
        "10.0.0.20:80 10.0.0.20:80",
        "for a service"
    );
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "10.96.0.7", 80),
        "10.0.0.20:80 10.0.0.20:80",
        "as one of several waypoints"
    );
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "10.0.0.6", 81),
        "10.0.0.20:81 10.0.0.20:81",
        "for a workload"
    );
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "sandwiched.a", 80),
        "10.0.0.20:80 10.0.0.20:80",
        "by name"
    );
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "10.96.0.1", 80),
        "Mismatch",
        "not behind it"
    );
    assert_eq!(
        admitted("waypoint", "10.0.0.20", "10.0.0.2", 80),
        "Mismatch"
    );
}

#[test]
fn an_application_tunnel_admits_everything_with_the_original_destination() {
    let through = "10.0.0.8:15088 127.0.0.1:15088 PROXY";
    assert_eq!(
        admitted("tunnelled", "10.0.0.8", "10.0.0.8", 80),
        format!("{through} 10.0.0.8:80 ")
    );
    assert_eq!(
        admitted("tunnelled", "10.0.0.8", "192.0.2.1", 80),
        format!("{through} 192.0.2.1:80 ")
    );
    assert_eq!(
        admitted("tunnelled", "10.0.0.8", "10.96.0.5", 80),
        format!("{through} 10.96.0.5:80 guarded.a")
    );
    assert_eq!(
        admitted("tunnelled", "10.0.0.8", "tunnelled.a", 81),
        format!("{through} 10.96.0.17:81 tunnelled.a")
    );
    assert_eq!(
        admitted("tunnelled", "10.0.0.8", "nowhere.example", 81),
        "Unavailable"
    );
    assert!(
        only("client", "10.96.0.17:99").starts_with("Nothing 10.0.0.8:15008 10.0.0.8:99"),
        "any port is served"
    );
}
