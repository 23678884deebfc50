//! A plain Envoy as ingress gateway and waypoint, whose pools keep connections through the proxies
//! of two nodes. It needs no cluster.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::envoy::{Gateway, INGRESS, missing_gateway};
use underpass_tests::http_load::HttpLoad;
use underpass_tests::machine::has_exited;
use underpass_tests::next_proxy::{NextProxy, first_proxy, signal};
use underpass_tests::sandbox::{MESH, Sandbox, VIPS, listen, until};
use underpass_tests::skip::skip;

const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
/// The drain of the proxies that are replaced; in its last half, kept connections are ended.
const DRAIN: (&str, &str) = ("CONNECTION_TERMINATION_DEADLINE", "8s");

/// A mesh in which Envoy in `outsider` is the waypoint of the service.
fn mesh() -> String {
    let mesh = MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    );
    mesh.replace(
        "ports: { 80: 8080 } }",
        "ports: { 80: 8080 }, waypoint: { destination: /10.77.1.4, hboneMtlsPort: 15008 } }",
    )
}

fn start(name: &str) -> Option<(Sandbox, Gateway)> {
    if let Some(why) = missing_gateway() {
        skip(&why);
        return None;
    }
    let sandbox = Sandbox::up_in(name, &mesh(), &[DRAIN]);
    let listener = listen(&sandbox.pod("server"), 8080);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let server = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let envoy = Gateway::start(&sandbox, "outsider", OUTSIDER, server);
    Some((sandbox, envoy))
}

/// Answers requests until the peer closes.
fn serve(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        request.extend_from_slice(&buffer[..length]);
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n");
        }
    }
}

fn ingress() -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), INGRESS)
}

#[test]
fn a_replaced_proxy_fails_no_request_on_connections_that_envoy_keeps() {
    let Some((sandbox, _envoy)) = start("replaced") else {
        return;
    };
    let pause = Duration::from_millis(2);
    let through_ingress = HttpLoad::start(sandbox.pod("outsider"), ingress(), 16, pause);
    let vip = VIPS[0].parse().unwrap();
    let through_waypoint = HttpLoad::start(sandbox.pod("client"), vip, 16, pause);
    let loads = [through_ingress, through_waypoint];
    let mut next = Vec::new();
    for node in ["node-2", "node-1"] {
        loads.iter().for_each(|load| load.await_answers(100));
        next.push(NextProxy::start(&sandbox, node));
        let last = first_proxy(&sandbox, node);
        signal(last, Signal::SIGTERM);
        until("the last proxy has exited", || {
            has_exited(last).then_some(())
        });
        let log = sandbox.log(node, "proxy");
        assert!(!log.contains("UP-PROXY-014"), "a connection was cut: {log}");
    }
    for load in loads {
        load.await_answers(100);
        let (answered, failures) = load.stop();
        assert!(failures.is_empty(), "of {answered}: {failures:#?}");
    }
}

/// They arrive before Envoy knows how many streams a tunnel may have.
#[test]
fn many_clients_at_once_are_all_answered() {
    let Some((sandbox, _envoy)) = start("crowd") else {
        return;
    };
    let pause = Duration::from_millis(100);
    let load = HttpLoad::start(sandbox.pod("outsider"), ingress(), 1000, pause);
    load.await_answers(2000);
    let (answered, failures) = load.stop();
    assert!(failures.is_empty(), "of {answered}: {failures:#?}");
}
