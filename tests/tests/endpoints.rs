//! Selection of services and endpoints, observed by which application answers.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use underpass_tests::sandbox::{MESH, Sandbox, connect, listen, read_line};

/// [`MESH`] without its service, with more fields for some pods and with these services.
fn mesh_with(more: &[(&str, &str)], services: &[String]) -> String {
    let own = ",\n      services: { default/server.default.svc.cluster.local: { 80: 8080 } } }";
    assert!(MESH.contains(own));
    let mut mesh = MESH.replace(own, " }");
    for (name, more) in more {
        let from = format!("name: {name}, ");
        assert!(mesh.contains(&from));
        mesh = mesh.replacen(&from, &format!("name: {name}, {more}, "), 1);
    }
    let services: String = services
        .iter()
        .map(|s| format!("  - {{ {s} }}\n"))
        .collect();
    mesh.replace("services:\n", &format!("services:\n{services}"))
}

/// A service with port 80 and two addresses that end in `last`, and additional fields.
fn service(name: &str, namespace: &str, last: u8, more: &str) -> String {
    format!(
        "name: {name}, namespace: {namespace}, hostname: {name}.x, vips: [/10.96.0.{last}, \
         \"/fd96::{last}\"], ports: {{ 80: 8080 }}{more}"
    )
}

/// Starts applications that send the name of their pod.
fn serve_named(sandbox: &Sandbox, pods: &[&str]) {
    for pod in pods {
        let listener = listen(&sandbox.pod(pod), 8080);
        let line = format!("{pod}\n");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, line.as_bytes());
            }
        });
    }
}

/// How many of `count` connections of the client each pod has answered.
fn answers(sandbox: &Sandbox, v6: bool, last: u8, count: usize) -> BTreeMap<String, usize> {
    let vip = if v6 {
        format!("[fd96::{last}]:80")
    } else {
        format!("10.96.0.{last}:80")
    };
    let once = || {
        connect(&sandbox.pod("client"), vip.parse().unwrap()).and_then(|mut s| read_line(&mut s))
    };
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        *answers
            .entry(once().unwrap_or_else(|_| "refused".to_owned()))
            .or_default() += 1;
    }
    answers
}

fn assert_answered_by(sandbox: &Sandbox, v6: bool, last: u8, expected: &[&str], why: &str) {
    let answered: BTreeSet<_> = answers(sandbox, v6, last, 30).into_keys().collect();
    assert_eq!(
        answered,
        expected.iter().map(|e| (*e).to_owned()).collect(),
        "{why}"
    );
}

#[test]
fn locality_and_health_select_endpoints() {
    // Three pods serve: one in the client's zone, one in its region, and one that is unhealthy.
    let all = "default/any.x: {}, default/near.x: {}, default/strict.x: {}, default/sick.x: {}";
    let sandbox = Sandbox::up_with(
        "localities",
        &mesh_with(
            &[
                ("client", "locality: { region: r1, zone: z1 }"),
                (
                    "neighbour",
                    &format!("locality: {{ region: r1, zone: z1 }}, services: {{ {all} }}"),
                ),
                (
                    "server",
                    &format!(
                        "locality: {{ region: r1, zone: z2 }}, services: {{ {all}, \
                         default/none.x: {{}}, default/shadow.x: {{}} }}"
                    ),
                ),
                (
                    "outsider",
                    "status: Unhealthy, services: { default/any.x: {}, default/sick.x: {} }",
                ),
            ],
            &[
                service("any", "default", 40, ", loadBalancer: { mode: Standard }"),
                service(
                    "near",
                    "default",
                    41,
                    ", loadBalancer: { mode: Failover, routingPreferences: [Region, Zone] }",
                ),
                service(
                    "strict",
                    "default",
                    42,
                    ", loadBalancer: { mode: Strict, routingPreferences: [Zone] }",
                ),
                service(
                    "none",
                    "default",
                    43,
                    ", loadBalancer: { mode: Strict, routingPreferences: [Zone] }",
                ),
                service(
                    "sick",
                    "default",
                    44,
                    ", loadBalancer: { healthPolicy: AllowAll }",
                ),
                "name: shadow, namespace: default, hostname: shadow.x, vips: [/10.77.1.4, \
                 \"/fd77:1::4\"], ports: { 80: 8080 }"
                    .to_owned(),
            ],
        ),
    );
    serve_named(&sandbox, &["neighbour", "server", "outsider"]);
    for v6 in [false, true] {
        let answered =
            |last, expected: &[&str], why| assert_answered_by(&sandbox, v6, last, expected, why);
        answered(40, &["neighbour", "server"], "all healthy endpoints");
        answered(
            41,
            &["neighbour"],
            "the endpoint with the most localities in common",
        );
        answered(
            42,
            &["neighbour"],
            "the endpoint with all localities in common",
        );
        answered(43, &["refused"], "no endpoint has all localities in common");
        answered(
            44,
            &["neighbour", "server", "outsider"],
            "including the unhealthy endpoint",
        );
        let outsider = sandbox.ips("outsider")[usize::from(v6)];
        let mut shadowed = connect(&sandbox.pod("client"), SocketAddr::new(outsider, 80)).unwrap();
        assert_eq!(
            read_line(&mut shadowed).unwrap(),
            "server",
            "a service takes precedence over the workload with its address"
        );
    }
}

/// The neighbour shares every scope with the client, the server only the larger ones, the outsider
/// only the node.
#[test]
fn each_locality_scope_selects_endpoints() {
    let scopes = [
        ("region", "[Region]", 50, &["neighbour", "server"][..]),
        ("zone", "[Region, Zone]", 51, &["neighbour", "server"]),
        ("subzone", "[Region, Zone, Subzone]", 52, &["neighbour"]),
        ("node", "[Node]", 53, &["neighbour"]),
        ("cluster", "[Cluster]", 54, &["neighbour"]),
        ("network", "[Network]", 55, &["neighbour", "server"]),
    ];
    let of = |without: &str| -> String {
        let of = scopes.iter().filter(|(name, ..)| *name != without);
        of.map(|(name, ..)| format!("default/{name}.x: {{}}, "))
            .collect()
    };
    let (all, elsewhere) = (of("none"), of("node"));
    let far = "network: far, protocol: HBONE, networkGateway: { destination: /10.77.2.2 }";
    let strict = |(name, preferences, last, _): &(&str, &str, u8, &[&str])| {
        service(
            name,
            "default",
            *last,
            &format!(", loadBalancer: {{ mode: Strict, routingPreferences: {preferences} }}"),
        )
    };
    let sandbox = Sandbox::up_with(
        "scopes",
        &mesh_with(
            &[
                (
                    "client",
                    "locality: { region: r1, zone: z1, subzone: s1 }, clusterId: c1",
                ),
                (
                    "neighbour",
                    &format!(
                        "locality: {{ region: r1, zone: z1, subzone: s1 }}, clusterId: c1, \
                         services: {{ {all} }}"
                    ),
                ),
                (
                    "server",
                    &format!(
                        "locality: {{ region: r1, zone: z1, subzone: s2 }}, clusterId: c2, \
                         services: {{ {all} }}"
                    ),
                ),
                (
                    "outsider",
                    &format!(
                        "{far}, locality: {{ region: r2 }}, clusterId: c3, services: {{ \
                         {elsewhere} }}"
                    ),
                ),
            ],
            &scopes.iter().map(strict).collect::<Vec<_>>(),
        ),
    );
    serve_named(&sandbox, &["neighbour", "server"]);
    for v6 in [false, true] {
        for (name, _, last, expected) in scopes {
            assert_answered_by(&sandbox, v6, last, expected, name);
        }
    }
}

/// Three of four connections go to the endpoint with three times the capacity.
#[test]
fn capacity_weights_endpoints() {
    let sandbox = Sandbox::up_with(
        "capacity",
        &mesh_with(
            &[
                ("neighbour", "services: { default/heavy.x: {} }"),
                ("server", "capacity: 3, services: { default/heavy.x: {} }"),
                ("outsider", "capacity: 0, services: { default/heavy.x: {} }"),
            ],
            &[service("heavy", "default", 60, "")],
        ),
    );
    serve_named(&sandbox, &["neighbour", "server", "outsider"]);
    for v6 in [false, true] {
        let answers = answers(&sandbox, v6, 60, 400);
        // Within five standard deviations of the mean.
        assert!((257..=343).contains(&answers["server"]), "{answers:?}");
        assert_eq!(
            answers["neighbour"] + answers["server"],
            400,
            "an endpoint without capacity is not chosen: {answers:?}"
        );
    }
}

#[test]
fn namespace_selects_among_services_with_one_address() {
    let sandbox = Sandbox::up_in(
        "twins",
        &mesh_with(
            &[
                (
                    "server",
                    "services: { aaa/first.x: {}, aaa/canonical.x: {}, aaa/own.x: {} }",
                ),
                (
                    "neighbour",
                    "services: { shop/first.x: {}, shop/canonical.x: {}, shop/own.x: {} }",
                ),
                ("outsider", "services: { default/own.x: {} }"),
            ],
            &[
                service("first", "aaa", 70, ""),
                service("first", "shop", 70, ""),
                service("canonical", "aaa", 71, ", canonical: true"),
                service("canonical", "shop", 71, ""),
                service("own", "aaa", 72, ", canonical: true"),
                service("own", "shop", 72, ""),
                service("own", "default", 72, ""),
            ],
        ),
        &[("PREFERED_SERVICE_NAMESPACE", "shop")],
    );
    serve_named(&sandbox, &["neighbour", "server", "outsider"]);
    for v6 in [false, true] {
        let answered =
            |last, expected, why| assert_answered_by(&sandbox, v6, last, &[expected], why);
        answered(
            70,
            "neighbour",
            "the preferred namespace precedes the first one",
        );
        answered(
            71,
            "server",
            "a canonical service precedes the preferred namespace",
        );
        answered(
            72,
            "outsider",
            "the client's own namespace precedes all others",
        );
    }
}

/// An egress service for all addresses has an endpoint outside the mesh.
#[test]
fn a_pods_own_address_precedes_the_range_of_a_service() {
    let egress = "name: egress, namespace: outside, hostname: egress.x, vips: [/0.0.0.0/0, \
                  \"/::/0\"], ports: { 8080: 8080 }";
    let endpoint = [("outsider", "services: { outside/egress.x: {} }")];
    let mesh = mesh_with(&endpoint, &[egress.to_owned()]);
    let sandbox = Sandbox::up_with("egress", &mesh);
    let pods = ["server", "neighbour", "outsider"];
    serve_named(&sandbox, &pods);
    let answered_at = |to: SocketAddr| {
        let mut stream = connect(&sandbox.pod("client"), to).unwrap();
        read_line(&mut stream).unwrap()
    };
    for pod in &pods[..2] {
        for ip in sandbox.ips(pod) {
            let to = SocketAddr::new(ip, 8080);
            assert_eq!(answered_at(to), *pod);
            let by_tunnel = format!("dst.hbone_addr={to}");
            sandbox.access_line("node-1", &["direction=\"outbound\"", &by_tunnel]);
        }
    }
    for other in ["198.51.100.1:8080", "[2001:db8::1]:8080"] {
        assert_eq!(answered_at(other.parse().unwrap()), "outsider");
    }
}
