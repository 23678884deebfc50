//! Where connections of a pod go, and what a pod takes: each row of docs/routing.md with real packets.
#![allow(clippy::unwrap_used)]

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use underpass_tests::name_server::NameServer;
use underpass_tests::played_proxy::{PlayedProxy, Then, hbone};
use underpass_tests::sandbox::{MESH, Sandbox, VIPS, connect, listen, read_line, read_proxy_header, serve_echo, until};

const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";

/// The outsider, whom a test plays, as meshes name it: by each of its addresses.
const PLAYED: [&str; 2] = ["/10.77.1.4", "\"/fd77:1::4\""];

/// Where the outsider takes tunnels, named so.
fn played_at(sandbox: &Sandbox, named: &str) -> SocketAddr {
    hbone(sandbox.ips("outsider")[usize::from(named == PLAYED[1])])
}

/// The usual mesh, with more said of its service.
fn with_service(more: &str) -> String {
    let mesh = MESH.replace("ports: { 80: 8080 } }\n", &format!("ports: {{ 80: 8080 }}, {more} }}\n"));
    assert_ne!(mesh, MESH);
    mesh
}

/// The usual mesh, with more said of its server.
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

/// Connects to something that is refused: the application may learn it at once, or when it reads.
fn assert_refused(sandbox: &Sandbox, to: &str) {
    let read = connect(&sandbox.pod("client"), address(to)).and_then(|mut stream| stream.read(&mut [0]));
    assert!(read.is_err(), "the application was not cut off: {read:?}");
}

/// Sends a line and gets it back, after the line that the other side begins with.
fn exchange(stream: &mut TcpStream) -> String {
    let first = read_line(stream).unwrap();
    stream.write_all(b"over and out\n").unwrap();
    assert_eq!(read_line(stream).unwrap(), "over and out");
    first
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it() {
    for (at, port) in
        [("/10.77.1.4", 15008), ("\"/fd77:1::4\"", 15008), ("outside/waypoint.outside.svc.cluster.local", 15018)]
    {
        let waypoint = format!("waypoint: {{ destination: {at}, hboneMtlsPort: {port} }}");
        let mesh =
            and_service(&with_service(&waypoint), "{ name: waypoint, namespace: outside, ports: { 15018: 15008 } }");
        let mesh = mesh.replace(
            "name: outsider, namespace: outside,",
            "name: outsider, namespace: outside, services: { outside/waypoint.outside.svc.cluster.local: {} },",
        );
        let sandbox = Sandbox::up_with("service-waypoint", &mesh);
        let ips = sandbox.ips("outsider");
        let start =
            |ip: &IpAddr| PlayedProxy::start(&sandbox, "outsider", hbone(*ip), OUTSIDER, Then::Echo("waypoint"));
        let played: Vec<PlayedProxy> = ips.iter().map(start).collect();
        for vip in VIPS {
            let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
            assert_eq!(exchange(&mut stream), "waypoint");
            let seen: Vec<_> = played.iter().flat_map(PlayedProxy::seen).collect();
            let [(authority, headers)] = &seen[..] else { panic!("{seen:?}") };
            assert_eq!(authority, vip, "the waypoint is told the virtual address");
            let client = stream.local_addr().unwrap().ip();
            let forwarded = headers["forwarded"].to_str().unwrap();
            assert!(
                forwarded.contains(&client.to_string())
                    && forwarded.ends_with(";host=server.default.svc.cluster.local"),
                "{forwarded}"
            );
            assert!(headers["baggage"].to_str().unwrap().contains("k8s.namespace.name=default"));
        }
    }
}

#[test]
fn waypoints_that_share_a_service_get_their_shares() {
    let mesh = with_service(
        "weightedWaypoints: [{ waypoint: { destination: /10.77.1.4 }, weight: 1 }, { waypoint: { destination: \"/fd77:1::4\" }, weight: 0 }]",
    );
    let sandbox = Sandbox::up_with("weighted-waypoint", &mesh);
    let ips = sandbox.ips("outsider");
    let chosen = PlayedProxy::start(&sandbox, "outsider", hbone(ips[0]), OUTSIDER, Then::Echo("chosen"));
    let other = PlayedProxy::start(&sandbox, "outsider", hbone(ips[1]), OUTSIDER, Then::Echo("other"));
    for vip in VIPS.into_iter().cycle().take(10) {
        assert_eq!(exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap()), "chosen");
    }
    assert_eq!((chosen.authorities().len(), other.authorities().len()), (10, 0));
}

#[test]
fn a_waypoint_that_is_not_there_lets_nothing_pass() {
    let sandbox = Sandbox::up_with("no-waypoint", &with_service("waypoint: { destination: outside/nowhere.example }"));
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        assert_refused(&sandbox, vip);
        sandbox.access_line("node-1", &["outside/nowhere.example is unknown"]);
    }
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_but_not_from_there() {
    for named in PLAYED {
        let waypoint = format!("waypoint: {{ destination: {named} }}");
        let sandbox = Sandbox::up_with("workload-waypoint", &with_server(&waypoint));
        let at = played_at(&sandbox, named);
        let played = PlayedProxy::start(&sandbox, "outsider", at, OUTSIDER, Then::Echo("waypoint"));
        serve_echo(&sandbox.pod("server"), 8080);
        for ip in sandbox.ips("server") {
            let to = SocketAddr::new(ip, 8080);
            assert_eq!(exchange(&mut connect(&sandbox.pod("client"), to).unwrap()), "waypoint");
            assert_eq!(played.authorities(), [to.to_string()]);
            // Addressed as a service, it has none.
            let vip = address(if ip.is_ipv4() { VIPS[0] } else { VIPS[1] });
            assert_ne!(exchange(&mut connect(&sandbox.pod("client"), vip).unwrap()), "waypoint");
        }
    }
    let own = Sandbox::up_with("own-waypoint", &with_server("waypoint: { destination: /10.77.1.3 }"));
    serve_echo(&own.pod("server"), 8080);
    for (ip, client) in own.ips("server").into_iter().zip(own.ips("neighbour")) {
        let mut stream = connect(&own.pod("neighbour"), SocketAddr::new(ip, 8080)).unwrap();
        assert_eq!(exchange(&mut stream), client.to_string(), "from the waypoint to the workload");
    }
}

#[test]
fn another_network_is_reached_through_its_gateway_by_shared_tunnels() {
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    for (index, named) in PLAYED.into_iter().enumerate() {
        let mesh = with_server(&format!("network: far, networkGateway: {{ destination: {named} }}"))
            .replace("ports: { 80: 8080 } }\n", &format!("ports: {{ 80: 8080 }}, {identity} }}\n"));
        let sandbox = Sandbox::up_with("gateway", &mesh);
        let server = sandbox.ips("server")[index];
        let at = played_at(&sandbox, named);
        let played = PlayedProxy::start(&sandbox, "outsider", at, OUTSIDER, Then::PassTo(hbone(server)));
        serve_echo(&sandbox.pod("server"), 8080);
        let mut open = Vec::new();
        for vip in VIPS.into_iter().cycle().take(12) {
            let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
            exchange(&mut stream);
            open.push(stream);
        }
        let authorities = played.authorities();
        assert!(
            (1..=2).contains(&authorities.len()),
            "one for each worker, and not for each connection: {authorities:?}"
        );
        assert!(authorities.iter().all(|a| a == "server.default.svc.cluster.local:80"), "{authorities:?}");
        // The far proxy does not take the gateway, or whoever has the client's address there, for the client.
        drop(open);
        let line = sandbox.access_line(
            "node-2",
            &["connection complete", "src.identity=\"spiffe://cluster.local/ns/default/sa/client\""],
        );
        let authority = format!("dst.hbone_addr={}", SocketAddr::new(server, 8080));
        assert!(line.contains("src.workload=\"client\"") && line.contains(&authority), "{line}");
    }
}

#[test]
fn a_destination_behind_a_gateway_says_who_it_is() {
    // What stands for the far network here is not the workload that answers there.
    let horizon = "  - { name: horizon, namespace: default, serviceAccount: server, workloadName: horizon, network: far, \
                   networkGateway: { destination: /10.77.1.4 }, services: { default/server.default.svc.cluster.local: { 80: 8080 } } }\n";
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    let mesh = with_server("workloadName: far-app, canonicalName: far-service, status: Unhealthy")
        .replace("ports: { 80: 8080 } }\n", &format!("ports: {{ 80: 8080 }}, {identity} }}\n"))
        .replace("services:\n  - ", &format!("{horizon}services:\n  - "));
    let sandbox = Sandbox::up_with("behind-gateway", &mesh);
    let at = hbone(sandbox.ips("outsider")[0]);
    let _played = PlayedProxy::start(&sandbox, "outsider", at, OUTSIDER, Then::PassTo(hbone(sandbox.ips("server")[0])));
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let of_source = |word: &str| {
        let mut lines = metrics.lines().filter(|l| l.starts_with("istio_tcp_connections_opened_total"));
        lines.any(|l| l.contains("reporter=\"source\"") && l.contains(word))
    };
    assert!(
        of_source("destination_workload=\"far-app\"") && of_source("destination_canonical_service=\"far-service\""),
        "{metrics}"
    );
    assert!(!of_source("destination_workload=\"horizon\""), "{metrics}");
}

#[test]
fn a_gateway_cannot_put_somebody_else_in_place_of_the_destination() {
    let identity = "subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]";
    for (index, named) in PLAYED.into_iter().enumerate() {
        let mesh = with_server(&format!("network: far, networkGateway: {{ destination: {named} }}"))
            .replace("ports: { 80: 8080 } }\n", &format!("ports: {{ 80: 8080 }}, {identity} }}\n"));
        let sandbox = Sandbox::up_with("false-gateway", &mesh);
        let neighbour = hbone(sandbox.ips("neighbour")[index]);
        let at = played_at(&sandbox, named);
        let _played = PlayedProxy::start(&sandbox, "outsider", at, OUTSIDER, Then::PassTo(neighbour));
        for vip in VIPS {
            assert_refused(&sandbox, vip);
            let who = "the peer is spiffe://cluster.local/ns/default/sa/neighbour";
            sandbox.access_line("node-1", &["UP-PROXY-005", who]);
        }
    }
}

#[test]
fn another_network_without_a_gateway_is_not_reached() {
    let sandbox = Sandbox::up_with("no-gateway", &with_server("network: far"));
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS {
        assert_refused(&sandbox, vip);
        sandbox.access_line("node-1", &["no valid destination", "it has no gateway"]);
    }
}

#[test]
fn another_endpoint_is_tried_when_one_cannot_be_connected_to() {
    // Two more that nobody serves: one would be reached by HBONE, the other in plain text.
    let more = r#"name: outsider, namespace: outside, protocol: HBONE, services: { default/server.default.svc.cluster.local: {} },"#;
    let mesh = MESH.replace("name: outsider, namespace: outside,", more);
    let plain = r#"  - { name: silent, namespace: outside, node: "", workloadIps: [10.77.1.1, "fd77:1::1"], protocol: TCP,
      services: { default/server.default.svc.cluster.local: { 80: 9 } } }
services:"#;
    let sandbox = Sandbox::up_with("another-endpoint", &mesh.replace("services:\n  - {", &format!("{plain}\n  - {{")));
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in VIPS.into_iter().cycle().take(20) {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
    let log = sandbox.log("node-1", "proxy");
    assert!(!log.contains("error="), "a connection failed: {log}");
}

#[test]
fn when_no_endpoint_can_be_connected_to_the_last_failure_is_told() {
    let sandbox = Sandbox::up("no-endpoint");
    for vip in VIPS {
        assert_refused(&sandbox, vip);
    }
    sandbox.access_line("node-1", &["UP-PROXY-006", "503"]);
}

#[test]
fn a_service_that_is_passed_through_leads_to_the_original_destination() {
    let through = "{ name: through, namespace: default, vips: [/10.77.1.0/24, \"/fd77:1::/64\"], loadBalancer: { mode: Passthrough } }";
    let sandbox = Sandbox::up_with("passed-through", &and_service(MESH, through));
    serve_echo(&sandbox.pod("outsider"), 8080);
    serve_echo(&sandbox.pod("neighbour"), 8080);
    for name in ["outsider", "neighbour"] {
        for ip in sandbox.ips(name) {
            exchange(&mut connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap());
        }
    }
    sandbox.access_line("node-1", &["dst.service=\"through.default.svc.cluster.local\"", "dst.workload=\"outsider\""]);
    // A pod of the mesh is still reached by HBONE.
    sandbox
        .access_line("node-1", &["dst.service=\"through.default.svc.cluster.local\"", "dst.hbone_addr=10.77.1.3:8080"]);
}

#[test]
fn a_range_of_addresses_is_a_service_and_one_that_is_not_visible_is_none() {
    let mesh = MESH.replace("vips: [/10.96.0.10, \"/fd96::10\"]", "vips: [/10.98.0.0/16, \"/fd98::/64\"]");
    let hidden = "{ name: hidden, namespace: outside, vips: [/10.98.3.4, \"/fd98::34\"], ports: { 80: 9 }, visibility: Namespace }";
    let mesh = mesh.replace("ports: { 80: 8080 } }\n", &format!("ports: {{ 80: 8080 }} }}\n  - {hidden}\n"));
    let sandbox = Sandbox::up_with("ranges", &mesh);
    serve_echo(&sandbox.pod("server"), 8080);
    for vip in ["10.98.3.4:80", "10.98.255.1:80", "[fd98::34]:80", "[fd98::1]:80"] {
        exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap());
    }
}

#[test]
fn a_workload_without_an_address_is_looked_up_once() {
    let named = r#"  - { name: named, namespace: outside, hostname: 10-77-1-4.ip.example, protocol: TCP, services: { default/db.default.svc.cluster.local: {} } }
  - { name: lost, namespace: outside, hostname: unknown.example, protocol: TCP, services: { default/lost.default.svc.cluster.local: {} } }
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
    assert_eq!(names.seen().len(), 2, "one question for each family, however many ask at once");
    assert_refused(&sandbox, "10.96.0.21:80");
    sandbox.access_line("node-1", &["unknown.example has no address"]);
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let counted = |hostname: &str| {
        let labels = [&format!("hostname=\"{hostname}\""), "source_workload=\"client\""];
        let of_it = |l: &&str| l.starts_with("istio_on_demand_dns_total{") && labels.iter().all(|x| l.contains(*x));
        metrics.lines().find(of_it).and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(counted("10-77-1-4.ip.example").as_deref(), Some("10"), "{metrics}");
    assert!(counted("unknown.example").is_some(), "{metrics}");
}

/// An application that reads a PROXY header, tells it on a line, and echoes.
fn serve_proxied(sandbox: &Sandbox, port: u16) {
    for loopback in ["127.0.0.1", "::1"] {
        let ip: IpAddr = loopback.parse().unwrap();
        let listener = sandbox.pod("server").run(|| TcpListener::bind((ip, port)).unwrap()).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let header = read_proxy_header(&mut stream);
                writeln!(stream, "{}", hex(&header)).unwrap();
                std::thread::spawn(move || std::io::copy(&mut BufReader::new(&stream), &mut &stream));
            }
        });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_sandwiched_waypoint_is_told_who_connects_and_where_to() {
    let mesh = with_server("applicationTunnel: { protocol: PROXY, port: 15088 }");
    let shop = "{ name: shop, namespace: default, vips: [/10.96.0.30, \"/fd96::30\"], ports: { 80: 80 }, waypoint: { destination: default/server.default.svc.cluster.local } }";
    let sandbox = Sandbox::up_with("sandwich", &and_service(&mesh, shop));
    serve_proxied(&sandbox, 15088);
    let identity = hex(b"spiffe://cluster.local/ns/default/sa/client");
    let service = hex(b"shop.default.svc.cluster.local");
    for (vip, kind) in [("10.96.0.30:80", "2111"), ("[fd96::30]:80", "2121")] {
        let mut stream = connect(&sandbox.pod("client"), address(vip)).unwrap();
        let told = exchange(&mut stream);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => hex(&ip.octets()),
            IpAddr::V6(ip) => hex(&ip.octets()),
        };
        let client = stream.local_addr().unwrap().ip();
        assert!(told.starts_with(&format!("{kind}{}{}", octets(client), octets(address(vip).ip()))), "{told}");
        assert!(told.ends_with(&format!("d0002b{identity}d1001e{service}")), "{told}");
    }
    // Policies still decide, and look at the port of the tunnel.
    sandbox.set_mesh(&format!(
        "{}policies:\n  - {{ name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{{ destinationPorts: [15088] }}]]] }}\n",
        and_service(&mesh, shop)
    ));
    until("the policy denies", || {
        let stream = connect(&sandbox.pod("client"), address("10.96.0.30:80"));
        stream.and_then(|mut s| s.read(&mut [0])).is_err().then_some(())
    });
    sandbox.access_line("node-2", &["explicitly denied by: default/d (rule 1)"]);
}

#[test]
fn a_waypoint_that_is_captured_takes_what_is_for_those_behind_it() {
    let shop = "{ name: shop, namespace: default, vips: [/10.96.0.30, \"/fd96::30\"], ports: { 80: 80 }, waypoint: { destination: /10.77.2.2 } }";
    let sandbox = Sandbox::up_with("behind", &and_service(MESH, shop));
    let listener = listen(&sandbox.pod("server"), 80);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            writeln!(stream, "here").unwrap();
            std::thread::spawn(move || std::io::copy(&mut BufReader::new(&stream), &mut &stream));
        }
    });
    for vip in ["10.96.0.30:80", "[fd96::30]:80"] {
        assert_eq!(exchange(&mut connect(&sandbox.pod("client"), address(vip)).unwrap()), "here");
    }
}

#[test]
fn a_policy_that_a_workload_gets_later_cuts_its_open_connections() {
    let policy = "policies:\n  - { name: later, namespace: default, scope: WorkloadSelector, action: Deny, rules: [[[{ destinationPorts: [8080] }]]] }\n";
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
    // The policy has been known all along; only now the workload has it.
    sandbox.set_mesh(&format!("{}{policy}", with_server("authorizationPolicies: [default/later]")));
    for stream in &mut open {
        assert!(stream.read(&mut [0]).is_err(), "the connection is still open");
    }
    sandbox.access_line("node-2", &["UP-PROXY", "connection closed due to policy change", "default/later (rule 1)"]);
}
