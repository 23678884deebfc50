//! Where connections of a pod go, and which ones a pod accepts: each row of docs/routing.md with
//! real connections.
#![allow(clippy::unwrap_used)]

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use underpass_tests::fake_waypoint::{FakeWaypoint, StreamAction, hbone};
use underpass_tests::name_server::NameServer;
use underpass_tests::sandbox::{
    MESH, Sandbox, VIPS, connect, listen, read_line, read_proxy_header, serve_echo, until,
};

const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";

/// The outsider's addresses in mesh syntax. The test plays its proxy.
const FAKE_PROXY: [&str; 2] = ["/10.77.1.4", "\"/fd77:1::4\""];

/// The tunnel address of the outsider for an address in mesh syntax.
fn tunnel_address(sandbox: &Sandbox, named: &str) -> SocketAddr {
    hbone(sandbox.ips("outsider")[usize::from(named == FAKE_PROXY[1])])
}

/// The default mesh with additional fields of its service.
fn with_service(more: &str) -> String {
    let mesh = MESH.replace(
        "ports: { 80: 8080 } }\n",
        &format!("ports: {{ 80: 8080 }}, {more} }}\n"),
    );
    assert_ne!(mesh, MESH);
    mesh
}

/// The default mesh with additional fields of its server.
fn with_server(more: &str) -> String {
    let mesh = MESH.replace(
        "name: server, namespace: default, serviceAccount: server,",
        &format!("name: server, namespace: default, serviceAccount: server, {more},"),
    );
    assert_ne!(mesh, MESH);
    mesh
}

fn and_service(mesh: &str, service: &str) -> String {
    mesh.replace("services:\n", &format!("services:\n  - {service}\n"))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Asserts that a connection is refused, on connecting or on the first read.
fn assert_refused(sandbox: &Sandbox, to: &str) {
    let read =
        connect(&sandbox.pod("client"), address(to)).and_then(|mut stream| stream.read(&mut [0]));
    assert!(read.is_err(), "the connection was not refused: {read:?}");
}

/// Exchanges a line; returns the first line of the server.
fn exchange(stream: &mut TcpStream) -> String {
    let first = read_line(stream).unwrap();
    stream.write_all(b"over and out\n").unwrap();
    assert_eq!(read_line(stream).unwrap(), "over and out");
    first
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it() {
    for (at, port) in [
        ("/10.77.1.4", 15008),
        ("\"/fd77:1::4\"", 15008),
        ("outside/waypoint.outside.svc.cluster.local", 15018),
    ] {
        let waypoint = format!("waypoint: {{ destination: {at}, hboneMtlsPort: {port} }}");
        let mesh = and_service(
            &with_service(&waypoint),
            "{ name: waypoint, namespace: outside, ports: { 15018: 15008 } }",
        );
        let mesh = mesh.replace(
            "name: outsider, namespace: outside,",
            "name: outsider, namespace: outside, services: { \
             outside/waypoint.outside.svc.cluster.local: {} },",
        );
        let sandbox = Sandbox::up_with("service-waypoint", &mesh);
        let ips = sandbox.ips("outsider");
        let start = |ip: &IpAddr| {
            FakeWaypoint::start(
                &sandbox,
                "outsider",
                hbone(*ip),
                OUTSIDER,
                StreamAction::Echo("waypoint"),
            )
        };
        let proxy: Vec<FakeWaypoint> = ips.iter().map(start).collect();
        for vip in VIPS {
            let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
            assert_eq!(exchange(&mut stream), "waypoint");
            let seen: Vec<_> = proxy.iter().flat_map(FakeWaypoint::seen).collect();
            let [(authority, headers)] = &seen[..] else {
                panic!("{seen:?}")
            };
            assert_eq!(authority, vip, "the waypoint gets the virtual address");
            let client = stream.local_addr().unwrap().ip();
            let forwarded = headers["forwarded"].to_str().unwrap();
            assert!(
                forwarded.contains(&client.to_string())
                    && forwarded.ends_with(";host=server.default.svc.cluster.local"),
                "{forwarded}"
            );
            assert!(
                headers["baggage"]
                    .to_str()
                    .unwrap()
                    .contains("k8s.namespace.name=default")
            );
        }
    }
}

#[test]
fn weighted_waypoints_get_connections_by_weight() {
    let mesh = with_service(
        "weightedWaypoints: [{ waypoint: { destination: /10.77.1.4 }, weight: 1 }, { waypoint: { \
         destination: \"/fd77:1::4\" }, weight: 0 }]",
    );
    let sandbox = Sandbox::up_with("weighted-waypoint", &mesh);
    let ips = sandbox.ips("outsider");
    let chosen = FakeWaypoint::start(
        &sandbox,
        "outsider",
        hbone(ips[0]),
        OUTSIDER,
        StreamAction::Echo("chosen"),
    );
    let other = FakeWaypoint::start(
        &sandbox,
        "outsider",
        hbone(ips[1]),
        OUTSIDER,
        StreamAction::Echo("other"),
    );
    for vip in VIPS.into_iter().cycle().take(10) {
        assert_eq!(
            exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap()),
            "chosen"
        );
    }
    assert_eq!(
        (chosen.authorities().len(), other.authorities().len()),
        (10, 0)
    );
}

#[test]
fn an_unknown_waypoint_refuses_connections() {
    let sandbox = Sandbox::up_with(
        "no-waypoint",
        &with_service("waypoint: { destination: outside/nowhere.example }"),
    );
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        assert_refused(&sandbox, vip);
        sandbox.access_line("node-1", &["UP-PROXY-008", "outside/nowhere.example"]);
    }
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_except_by_the_waypoint() {
    for named in FAKE_PROXY {
        let waypoint = format!("waypoint: {{ destination: {named} }}");
        let sandbox = Sandbox::up_with("workload-waypoint", &with_server(&waypoint));
        let at = tunnel_address(&sandbox, named);
        let proxy = FakeWaypoint::start(
            &sandbox,
            "outsider",
            at,
            OUTSIDER,
            StreamAction::Echo("waypoint"),
        );
        serve_echo(&sandbox.pod("server"), 8080);
        for ip in sandbox.ips("server") {
            let to = SocketAddr::new(ip, 8080);
            assert_eq!(
                exchange(&mut connect(&sandbox.pod("client"), to).unwrap()),
                "waypoint"
            );
            assert_eq!(proxy.authorities(), [to.to_string()]);
            // As an endpoint of a service, it is reached without its waypoint.
            let vip = address(if ip.is_ipv4() { VIPS[0] } else { VIPS[1] });
            assert_ne!(
                exchange(&mut connect(&sandbox.pod("client"), vip).unwrap()),
                "waypoint"
            );
        }
    }
    let own = Sandbox::up_with(
        "own-waypoint",
        &with_server("waypoint: { destination: /10.77.1.3 }"),
    );
    serve_echo(&own.pod("server"), 8080);
    for (ip, client) in own.ips("server").into_iter().zip(own.ips("neighbour")) {
        let mut stream = connect(&own.pod("neighbour"), SocketAddr::new(ip, 8080)).unwrap();
        assert_eq!(
            exchange(&mut stream),
            client.to_string(),
            "from the waypoint to the workload"
        );
    }
}

#[test]
fn another_network_is_reached_through_its_gateway_by_shared_tunnels() {
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    for (index, named) in FAKE_PROXY.into_iter().enumerate() {
        let mesh = with_server(&format!(
            "network: far, networkGateway: {{ destination: {named} }}"
        ))
        .replace(
            "ports: { 80: 8080 } }\n",
            &format!("ports: {{ 80: 8080 }}, {identity} }}\n"),
        );
        let sandbox = Sandbox::up_with("gateway", &mesh);
        let server = sandbox.ips("server")[index];
        let at = tunnel_address(&sandbox, named);
        let proxy = FakeWaypoint::start(
            &sandbox,
            "outsider",
            at,
            OUTSIDER,
            StreamAction::ForwardTo(hbone(server)),
        );
        serve_echo(&sandbox.pod("server"), 8080);
        let mut open = Vec::new();
        for vip in VIPS.into_iter().cycle().take(12) {
            let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
            exchange(&mut stream);
            open.push(stream);
        }
        let authorities = proxy.authorities();
        assert!(
            (1..=2).contains(&authorities.len()),
            "one tunnel per worker, not per connection: {authorities:?}"
        );
        assert!(
            authorities
                .iter()
                .all(|a| a == "server.default.svc.cluster.local:80"),
            "{authorities:?}"
        );
        // The far proxy does not mistake the gateway, or a pod with the same address there, for the
        // client.
        drop(open);
        let line = sandbox.access_line(
            "node-2",
            &[
                "connection complete",
                "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
            ],
        );
        let authority = format!("dst.hbone_addr={}", SocketAddr::new(server, 8080));
        assert!(
            line.contains("src.workload=\"client\"") && line.contains(&authority),
            "{line}"
        );
    }
}

#[test]
fn a_destination_behind_a_gateway_identifies_itself_by_baggage() {
    // The workload that represents the far network is not the one that answers.
    let horizon = "  - { name: horizon, namespace: default, serviceAccount: server, workloadName: \
                   horizon, network: far, networkGateway: { destination: /10.77.1.4 }, services: \
                   { default/server.default.svc.cluster.local: { 80: 8080 } } }\n";
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    let mesh = with_server("workloadName: far-app, canonicalName: far-service, status: Unhealthy")
        .replace(
            "ports: { 80: 8080 } }\n",
            &format!("ports: {{ 80: 8080 }}, {identity} }}\n"),
        )
        .replace("services:\n  - ", &format!("{horizon}services:\n  - "));
    let sandbox = Sandbox::up_with("behind-gateway", &mesh);
    let at = hbone(sandbox.ips("outsider")[0]);
    let _proxy = FakeWaypoint::start(
        &sandbox,
        "outsider",
        at,
        OUTSIDER,
        StreamAction::ForwardTo(hbone(sandbox.ips("server")[0])),
    );
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let of_source = |word: &str| {
        let mut lines = metrics
            .lines()
            .filter(|l| l.starts_with("istio_tcp_connections_opened_total"));
        lines.any(|l| l.contains("reporter=\"source\"") && l.contains(word))
    };
    assert!(
        of_source("destination_workload=\"far-app\"")
            && of_source("destination_canonical_service=\"far-service\""),
        "{metrics}"
    );
    assert!(!of_source("destination_workload=\"horizon\""), "{metrics}");
}

#[test]
fn a_gateway_cannot_impersonate_the_destination() {
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    for (index, named) in FAKE_PROXY.into_iter().enumerate() {
        let mesh = with_server(&format!(
            "network: far, networkGateway: {{ destination: {named} }}"
        ))
        .replace(
            "ports: { 80: 8080 } }\n",
            &format!("ports: {{ 80: 8080 }}, {identity} }}\n"),
        );
        let sandbox = Sandbox::up_with("false-gateway", &mesh);
        let neighbour = hbone(sandbox.ips("neighbour")[index]);
        let at = tunnel_address(&sandbox, named);
        let _proxy = FakeWaypoint::start(
            &sandbox,
            "outsider",
            at,
            OUTSIDER,
            StreamAction::ForwardTo(neighbour),
        );
        for vip in VIPS {
            assert_refused(&sandbox, vip);
            sandbox.access_line(
                "node-1",
                &[
                    "UP-PROXY-005",
                    "spiffe://cluster.local/ns/default/sa/neighbour",
                ],
            );
        }
    }
}

#[test]
fn another_network_without_a_gateway_is_not_reached() {
    let sandbox = Sandbox::up_with("no-gateway", &with_server("network: far"));
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        assert_refused(&sandbox, vip);
        sandbox.access_line("node-1", &["UP-PROXY-008", &format!("dst.addr={vip}")]);
    }
}

#[test]
fn another_endpoint_is_tried_when_one_is_unreachable() {
    // Two more endpoints without a listener: one by HBONE, the other in plain text.
    let more = "name: outsider, namespace: outside, protocol: HBONE, services: { \
                default/server.default.svc.cluster.local: {} },";
    let mesh = MESH.replace("name: outsider, namespace: outside,", more);
    let plain = r#"  - { name: silent, namespace: outside, node: "",
      workloadIps: [10.77.1.1, "fd77:1::1"], protocol: TCP,
      services: { default/server.default.svc.cluster.local: { 80: 9 } } }
services:"#;
    let sandbox = Sandbox::up_with(
        "another-endpoint",
        &mesh.replace("services:\n  - {", &format!("{plain}\n  - {{")),
    );
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS.into_iter().cycle().take(20) {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
    let log = sandbox.log("node-1", "proxy");
    assert!(!log.contains("error="), "a connection failed: {log}");
}

#[test]
fn an_endpoint_behind_an_unreachable_gateway_is_replaced_by_a_local_one() {
    // The far endpoint attracts nearly all connections, and nothing listens at its gateway.
    let far = "  - { name: far, namespace: default, serviceAccount: server, capacity: 1000, \
               network: far, networkGateway: { destination: /10.77.1.4 }, services: { \
               default/server.default.svc.cluster.local: { 80: 8080 } } }\n";
    let mesh = MESH.replace("services:\n  - ", &format!("{far}services:\n  - "));
    assert_ne!(mesh, MESH);
    let sandbox = Sandbox::up_with("gateway-down", &mesh);
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS.into_iter().cycle().take(20) {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
    let log = sandbox.log("node-1", "proxy");
    assert!(!log.contains("error="), "a connection failed: {log}");
}

#[test]
fn the_receiver_names_the_service_that_the_client_addressed() {
    let another = "another.default.svc.cluster.local";
    let mesh = MESH.replace(
        "services: { default/server.default",
        &format!("services: {{ default/{another}: {{}}, default/server.default"),
    );
    let mesh = and_service(
        &mesh,
        "{ name: another, namespace: default, vips: [/10.96.0.11, \"/fd96::11\"], ports: { 81: \
         8080 } }",
    );
    let sandbox = Sandbox::up_with("named-service", &mesh);
    serve_echo(&sandbox.pod("server"), 8080);
    for (vip, service) in [
        (VIPS[0], "server.default.svc.cluster.local"),
        (VIPS[1], "server.default.svc.cluster.local"),
        ("10.96.0.11:81", another),
        ("[fd96::11]:81", another),
    ] {
        let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
        exchange(&mut stream);
        let client = stream.local_addr().unwrap().ip().to_string();
        drop(stream);
        let service = format!("dst.service=\"{service}\"");
        let line = ["connection complete", "direction=\"inbound\"", &client];
        sandbox.access_line("node-2", &[&line[..], &[&service]].concat());
    }
}

#[test]
fn when_every_endpoint_is_unreachable_the_last_failure_is_logged() {
    let sandbox = Sandbox::up("no-endpoint");
    for vip in VIPS {
        assert_refused(&sandbox, vip);
    }
    sandbox.access_line("node-1", &["UP-PROXY-006", "503"]);
}

#[test]
fn a_passthrough_service_leads_to_the_original_destination() {
    let through = "{ name: through, namespace: default, vips: [/10.77.1.0/24, \"/fd77:1::/64\"], \
                   loadBalancer: { mode: Passthrough } }";
    let sandbox = Sandbox::up_with("passed-through", &and_service(MESH, through));
    serve_echo(&sandbox.pod("outsider"), 8080);
    serve_echo(&sandbox.pod("neighbour"), 8080);
    for name in ["outsider", "neighbour"] {
        for ip in sandbox.ips(name) {
            exchange(&mut connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap());
        }
    }
    // Pods within the range are reached as pods: those of the mesh by HBONE.
    sandbox.access_line("node-1", &["dst.workload=\"outsider\""]);
    sandbox.access_line("node-1", &["dst.hbone_addr=10.77.1.3:8080"]);
    let elsewhere = "10.77.1.200:8080";
    let to = elsewhere.parse().unwrap();
    let _ = connect(&sandbox.pod("client"), to); // no pod has this address
    sandbox.access_line(
        "node-1",
        &[
            "dst.service=\"through.default.svc.cluster.local\"",
            elsewhere,
        ],
    );
}

#[test]
fn a_service_can_be_an_address_range_and_an_invisible_one_is_ignored() {
    let mesh = MESH.replace(
        "vips: [/10.96.0.10, \"/fd96::10\"]",
        "vips: [/10.98.0.0/16, \"/fd98::/64\"]",
    );
    let hidden = "{ name: hidden, namespace: outside, vips: [/10.98.3.4, \"/fd98::34\"], ports: { \
                  80: 9 }, visibility: Namespace }";
    let mesh = mesh.replace(
        "ports: { 80: 8080 } }\n",
        &format!("ports: {{ 80: 8080 }} }}\n  - {hidden}\n"),
    );
    let sandbox = Sandbox::up_with("ranges", &mesh);
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in [
        "10.98.3.4:80",
        "10.98.255.1:80",
        "[fd98::34]:80",
        "[fd98::1]:80",
    ] {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
}

#[test]
fn a_workload_without_an_address_is_resolved_once() {
    let named = r#"  - { name: named, namespace: outside, hostname: 10-77-1-4.ip.example,
      protocol: TCP, services: { default/db.default.svc.cluster.local: {} } }
  - { name: lost, namespace: outside, hostname: unknown.example, protocol: TCP,
      services: { default/lost.default.svc.cluster.local: {} } }
services:
  - { name: db, namespace: default, vips: [/10.96.0.20, "/fd96::20"], ports: { 80: 8080 } }
  - { name: lost, namespace: default, vips: [/10.96.0.21], ports: { 80: 8080 } }"#;
    let mesh = MESH.replace("services:\n  - {", &format!("{named}\n  - {{"));
    let sandbox = Sandbox::up_in("by-name", &mesh, &[("UNDERPASS_DNS_UPSTREAM", "10.77.1.4")]);
    let names = NameServer::start(&sandbox.pod("outsider"), &[sandbox.ips("outsider")[0]]);
    serve_echo(&sandbox.pod("outsider"), 8080);
    let clients: Vec<_> = ["10.96.0.20:80", "[fd96::20]:80"]
        .into_iter()
        .cycle()
        .take(10)
        .map(|vip| {
            let pod = sandbox.pod("client");
            std::thread::spawn(move || exchange(&mut connect(&pod, address(vip)).unwrap()))
        })
        .collect();
    clients.into_iter().for_each(|c| drop(c.join().unwrap()));
    assert_eq!(
        names.seen().len(),
        2,
        "concurrent connections share one query per family"
    );
    assert_refused(&sandbox, "10.96.0.21:80");
    sandbox.access_line("node-1", &["UP-PROXY-008", "unknown.example"]);
    // Another pod asks for itself: the first one may be able to forge its own answers.
    let own = sandbox.ips("client");
    assert!(names.seen().iter().all(|(from, _)| own.contains(from)));
    exchange(&mut connect(&sandbox.pod("neighbour"), address("10.96.0.20:80")).unwrap());
    let seen = names.seen();
    let neighbour = sandbox.ips("neighbour");
    assert!(
        seen.len() == 2 && seen.iter().all(|(from, _)| neighbour.contains(from)),
        "{seen:?}"
    );
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let counted = |hostname: &str| {
        let labels = [
            &format!("hostname=\"{hostname}\""),
            "source_workload=\"client\"",
        ];
        let of_it = |l: &&str| {
            l.starts_with("istio_on_demand_dns_total{") && labels.iter().all(|x| l.contains(*x))
        };
        metrics
            .lines()
            .find(of_it)
            .and_then(|l| l.rsplit(' ').next())
            .map(str::to_owned)
    };
    assert_eq!(
        counted("10-77-1-4.ip.example").as_deref(),
        Some("10"),
        "{metrics}"
    );
    assert!(counted("unknown.example").is_some(), "{metrics}");
}

#[test]
fn a_workload_without_an_address_is_reached_while_no_name_server_answers() {
    let named = r#"  - { name: named, namespace: outside, hostname: 10-77-1-4.brief.example,
      protocol: TCP, services: { default/db.default.svc.cluster.local: {} } }
services:
  - { name: db, namespace: default, vips: [/10.96.0.20], ports: { 80: 8080 } }"#;
    let mesh = MESH.replace("services:\n  - {", &format!("{named}\n  - {{"));
    let sandbox = Sandbox::up_in("stale", &mesh, &[("UNDERPASS_DNS_UPSTREAM", "10.77.1.4")]);
    let names = NameServer::start(&sandbox.pod("outsider"), &[sandbox.ips("outsider")[0]]);
    serve_echo(&sandbox.pod("outsider"), 8080);
    let reach =
        || exchange(&mut connect(&sandbox.pod("client"), address("10.96.0.20:80")).unwrap());
    reach();
    names.seen();
    names.set_failing(true);
    // Each connection succeeds; once the TTL of a second has passed, one of them asks again.
    until("the name server is asked again", || {
        reach();
        (!names.seen().is_empty()).then_some(())
    });
    reach();
}

/// An application that reads a PROXY header, sends it on a line in hexadecimal, and echoes.
fn serve_proxy_protocol(sandbox: &Sandbox, port: u16) {
    for loopback in ["127.0.0.1", "::1"] {
        let ip: IpAddr = loopback.parse().unwrap();
        let listener = sandbox
            .pod("server")
            .run(|| TcpListener::bind((ip, port)).unwrap())
            .unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let header = read_proxy_header(&mut stream);
                writeln!(stream, "{}", hex(&header)).unwrap();
                std::thread::spawn(move || {
                    std::io::copy(&mut BufReader::new(&stream), &mut &stream)
                });
            }
        });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_sandwiched_waypoint_gets_client_and_destination_by_proxy_protocol() {
    let mesh = with_server("applicationTunnel: { protocol: PROXY, port: 15088 }");
    let shop = "{ name: shop, namespace: default, vips: [/10.96.0.30, \"/fd96::30\"], ports: { \
                80: 80 }, waypoint: { destination: default/server.default.svc.cluster.local } }";
    let sandbox = Sandbox::up_with("sandwich", &and_service(&mesh, shop));
    serve_proxy_protocol(&sandbox, 15088);
    let identity = hex(b"spiffe://cluster.local/ns/default/sa/client");
    let service = hex(b"shop.default.svc.cluster.local");
    for (vip, kind) in [("10.96.0.30:80", "2111"), ("[fd96::30]:80", "2121")] {
        let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
        let header = exchange(&mut stream);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => hex(&ip.octets()),
            IpAddr::V6(ip) => hex(&ip.octets()),
        };
        let client = stream.local_addr().unwrap().ip();
        assert!(
            header.starts_with(&format!(
                "{kind}{}{}",
                octets(client),
                octets(address(vip).ip())
            )),
            "{header}"
        );
        assert!(
            header.ends_with(&format!("d0002b{identity}d1001e{service}")),
            "{header}"
        );
    }
    // Policies still apply, to the port of the application tunnel.
    sandbox.set_mesh(&format!(
        "{}policies:\n  - {{ name: d, namespace: default, scope: Namespace, action: Deny, rules: \
         [[[{{ destinationPorts: [15088] }}]]] }}\n",
        and_service(&mesh, shop)
    ));
    until("the policy denies", || {
        let stream = connect(&sandbox.pod("client"), address("10.96.0.30:80"));
        stream
            .and_then(|mut s| s.read(&mut [0]))
            .is_err()
            .then_some(())
    });
    sandbox.access_line("node-2", &["explicitly denied by: default/d (rule 1)"]);
}

#[test]
fn a_captured_waypoint_accepts_connections_for_its_services() {
    let shop = "{ name: shop, namespace: default, vips: [/10.96.0.30, \"/fd96::30\"], ports: { \
                80: 80 }, waypoint: { destination: /10.77.2.2 } }";
    let sandbox = Sandbox::up_with("behind", &and_service(MESH, shop));
    let listener = listen(&sandbox.pod("server"), 80);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            writeln!(stream, "here").unwrap();
            std::thread::spawn(move || std::io::copy(&mut BufReader::new(&stream), &mut &stream));
        }
    });
    for vip in ["10.96.0.30:80", "[fd96::30]:80"] {
        assert_eq!(
            exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap()),
            "here"
        );
    }
}

#[test]
fn a_policy_attached_later_closes_open_connections() {
    let policy = "policies:\n  - { name: later, namespace: default, scope: WorkloadSelector, \
                  action: Deny, rules: [[[{ destinationPorts: [8080] }]]] }\n";
    let sandbox = Sandbox::up_with("attached-later", &format!("{MESH}{policy}"));
    serve_echo(&sandbox.pod("server"), 8080);
    let mut open: Vec<TcpStream> = VIPS
        .iter()
        .map(|vip| {
            let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
            exchange(&mut stream);
            stream
        })
        .collect();
    // The policy was known before; now it is attached to the workload.
    sandbox.set_mesh(&format!(
        "{}{policy}",
        with_server("authorizationPolicies: [default/later]")
    ));
    for stream in &mut open {
        assert!(
            stream.read(&mut [0]).is_err(),
            "the connection is still open"
        );
    }
    sandbox.access_line(
        "node-2",
        &[
            "UP-PROXY-011",
            "connection closed due to policy change",
            "default/later (rule 1)",
        ],
    );
}
