//! Traffic through real proxies between real pods, over IPv4 and IPv6.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::sockopt::reset_on_close;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use underpass_tests::sandbox::{
    MESH, PATIENCE, Sandbox, VIPS, connect, listen, read_line, serve_echo, until,
};

fn vips() -> impl Iterator<Item = SocketAddr> + Clone {
    VIPS.iter().map(|v| v.parse().unwrap())
}

/// Sends a line and reads it back.
fn echo(stream: &mut TcpStream, word: &str) -> std::io::Result<()> {
    writeln!(stream, "{word}")?;
    let back = read_line(stream)?;
    assert_eq!(back, word);
    Ok(())
}

#[test]
fn a_pod_reaches_pods_and_services_by_its_own_address() {
    let sandbox = Sandbox::up("reach");
    serve_echo(&sandbox.pod("server"), 8080);
    serve_echo(&sandbox.pod("neighbour"), 8080);
    let client = sandbox.pod("client");
    let pods = sandbox
        .ips("server")
        .into_iter()
        .chain(sandbox.ips("neighbour"));
    for to in pods.map(|ip| SocketAddr::new(ip, 8080)).chain(vips()) {
        let mut stream = connect(&client, to).unwrap();
        let own = sandbox
            .ips("client")
            .into_iter()
            .find(|ip| ip.is_ipv4() == to.is_ipv4())
            .unwrap();
        assert_eq!(
            read_line(&mut stream).unwrap(),
            own.to_string(),
            "who {to} sees"
        );
        echo(&mut stream, "hello").unwrap();
    }
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        for family in [
            "dst.hbone_addr=10.77.1.3:8080",
            "dst.hbone_addr=[fd77:1::3]:8080",
        ] {
            let parts = [
                direction,
                family,
                "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
            ];
            sandbox.access_line("node-1", &parts);
        }
    }
}

#[test]
fn traffic_with_pods_outside_the_mesh_is_plain_text() {
    let sandbox = Sandbox::up("passthrough");
    serve_echo(&sandbox.pod("outsider"), 8080);
    serve_echo(&sandbox.pod("server"), 8080);
    for (from, to) in [("client", "outsider"), ("outsider", "server")] {
        for (own, ip) in sandbox.ips(from).into_iter().zip(sandbox.ips(to)) {
            let mut stream = connect(&sandbox.pod(from), SocketAddr::new(ip, 8080)).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), own.to_string());
            echo(&mut stream, "plain").unwrap();
        }
    }
    let line = sandbox.access_line(
        "node-1",
        &["dst.addr=10.77.1.4:8080", "direction=\"outbound\""],
    );
    assert!(!line.contains("identity"), "{line}");
}

#[test]
fn a_pod_reaches_itself_and_its_own_service() {
    let sandbox = Sandbox::up("itself");
    let server = sandbox.pod("server");
    serve_echo(&server, 8080);
    let own = sandbox
        .ips("server")
        .into_iter()
        .map(|ip| SocketAddr::new(ip, 8080));
    let loopback = ["127.0.0.1:8080", "[::1]:8080"].map(|a| a.parse().unwrap());
    for to in own.chain(loopback).chain(vips()) {
        let mut stream = connect(&server, to).unwrap();
        read_line(&mut stream).unwrap();
        echo(&mut stream, "myself").unwrap_or_else(|e| panic!("{to}: {e}"));
    }
}

#[test]
fn a_half_close_arrives_as_one() {
    let sandbox = Sandbox::up("half-close");
    let listener = listen(&sandbox.pod("server"), 8080);
    for to in vips() {
        let mut client = connect(&sandbox.pod("client"), to).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut request = Vec::new();
        server.read_to_end(&mut request).unwrap();
        assert_eq!(request, b"request");
        server
            .write_all(b"answer after the end of the request")
            .unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer after the end of the request");
    }
}

#[test]
fn a_reset_arrives_as_a_reset_both_ways() {
    let sandbox = Sandbox::up("reset");
    let listener = listen(&sandbox.pod("server"), 8080);
    let expect_reset = |mut stream: TcpStream, whose: &str| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest).map_err(|e| e.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "what {whose} sees");
    };
    for to in vips() {
        let pair = || {
            let mut client = connect(&sandbox.pod("client"), to).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            // Both proxies relay now.
            server.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            (client, server)
        };
        let (client, server) = pair();
        reset_on_close(&server).unwrap();
        drop(server);
        expect_reset(client, "the client");
        let (client, server) = pair();
        reset_on_close(&client).unwrap();
        drop(client);
        expect_reset(server, "the server");
    }
}

#[test]
fn a_closed_port_is_a_reset_with_its_reason_in_the_log() {
    let sandbox = Sandbox::up("nobody");
    // The reset may arrive before connect(2) returns, which then reports it.
    let outcome = |to: SocketAddr| {
        let read =
            connect(&sandbox.pod("client"), to).and_then(|mut client| client.read(&mut [0; 1]));
        read.map_err(|e| e.kind())
    };
    for to in vips() {
        assert_eq!(outcome(to), Err(ErrorKind::ConnectionReset));
    }
    let client = sandbox.access_line("node-1", &["UP-PROXY-006", "503"]);
    assert!(client.contains("direction=\"outbound\""), "{client}");
    let server = sandbox.access_line("node-2", &["UP-PROXY-003", "refused"]);
    assert!(server.contains("direction=\"inbound\""), "{server}");
    // The service has no such port.
    assert_eq!(
        outcome("10.96.0.10:81".parse().unwrap()),
        Err(ErrorKind::ConnectionReset)
    );
    sandbox.access_line("node-1", &["UP-PROXY-008", "dst.addr=10.96.0.10:81"]);
}

#[test]
fn bytes_arrive_whole_and_in_order() {
    let sandbox = Sandbox::up("bulk");
    serve_echo(&sandbox.pod("server"), 8080);
    let data: Vec<u8> = (0..8_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    thread::scope(|scope| {
        for to in vips() {
            let (client, data) = (sandbox.pod("client"), &data);
            scope.spawn(move || {
                let mut stream = connect(&client, to).unwrap();
                read_line(&mut stream).unwrap();
                let mut reader = stream.try_clone().unwrap();
                let writer = thread::scope(|inner| {
                    inner.spawn(|| {
                        stream.write_all(data).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::new();
                    reader.read_to_end(&mut back).unwrap();
                    back
                });
                assert!(
                    writer == *data,
                    "{to}: {} of {} bytes",
                    writer.len(),
                    data.len()
                );
            });
        }
    });
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let line = metrics
        .lines()
        .find(|l| {
            l.starts_with("istio_tcp_received_bytes_total{")
                && l.contains("source_workload=\"client\"")
        })
        .unwrap();
    for label in [
        "reporter=\"source\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/server\"",
        "destination_service=\"server.default.svc.cluster.local\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_flags=\"-\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }
    assert!(line.ends_with(" 16000000"), "{line}");
}

#[test]
fn unread_connections_do_not_stall_others() {
    let sandbox = Sandbox::up("stalled");
    serve_echo(&sandbox.pod("server"), 8080);
    let unread = listen(&sandbox.pod("server"), 9090);
    let client = sandbox.pod("client");
    let to = SocketAddr::new(sandbox.ips("server")[0], 9090);
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let stream = connect(&client, to).unwrap();
        let server = unread.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stalled.push((stream, server));
    }
    // Fill them until no more data can be written.
    let chunk = vec![0; 1 << 16];
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        for (stream, _) in &mut stalled {
            if stream.write(&chunk).is_ok() {
                quiet = Instant::now();
            }
        }
    }
    for to in vips() {
        let mut sibling = connect(&client, to).unwrap();
        read_line(&mut sibling).unwrap();
        echo(&mut sibling, "still here").unwrap();
    }
}

#[test]
fn the_proxy_connects_from_ports_that_clients_do_not_choose() {
    let sandbox = Sandbox::up("ports");
    let server = sandbox.pod("server");
    let listener = listen(&server, 8080);
    let by_tunnel = vips().map(|to| ("client", to));
    let direct = sandbox.ips("server").into_iter();
    let direct = direct.map(|ip| ("outsider", SocketAddr::new(ip, 8080)));
    for (client, to) in by_tunnel.chain(direct) {
        let client = sandbox.pod(client);
        let clients: Vec<_> = (0..3).map(|_| connect(&client, to).unwrap()).collect();
        for _ in &clients {
            let (_, seen) = listener.accept().unwrap();
            assert!((16_384..32_768).contains(&seen.port()), "{seen} to {to}");
        }
    }
}

#[test]
fn many_connections_at_once_are_served() {
    let sandbox = Sandbox::up("many");
    serve_echo(&sandbox.pod("server"), 8080);
    thread::scope(|scope| {
        for to in vips().cycle().take(8) {
            let client = sandbox.pod("client");
            scope.spawn(move || {
                let mut open: Vec<TcpStream> =
                    (0..40).map(|_| connect(&client, to).unwrap()).collect();
                for stream in &mut open {
                    read_line(stream).unwrap();
                    echo(stream, "one of many").unwrap();
                }
            });
        }
    });
}

#[test]
fn the_proxys_own_ports_are_not_proxied_to() {
    let sandbox = Sandbox::up("own-ports");
    let client = sandbox.pod("client");
    let fails = |from: &NetNs, to: SocketAddr| {
        // The connection may be refused at once or closed later.
        if let Ok(mut stream) = connect(from, to) {
            let read = stream.read(&mut [0; 1]);
            assert!(matches!(read, Ok(0) | Err(_)), "{to} sent something");
        }
    };
    for port in [15001, 15006] {
        for ip in [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()]
            .into_iter()
            .chain(sandbox.ips("client"))
        {
            fails(&client, SocketAddr::new(ip, port));
        }
    }
    for port in [15001, 15006, 15053] {
        for ip in sandbox.ips("server") {
            fails(&client, SocketAddr::new(ip, port));
            fails(&sandbox.pod("outsider"), SocketAddr::new(ip, port));
        }
    }
    sandbox.access_line("node-1", &["UP-PROXY-009"]);
    sandbox.access_line("node-2", &["UP-PROXY-009"]);
}

#[test]
fn garbage_on_the_tunnel_port_leaves_other_connections_served() {
    let sandbox = Sandbox::up("garbage");
    serve_echo(&sandbox.pod("server"), 8080);
    let outsider = sandbox.pod("outsider");
    let garbage: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
        &[0xff; 5000],
    ];
    for ip in sandbox.ips("server") {
        for bytes in garbage {
            let mut stream = connect(&outsider, SocketAddr::new(ip, 15008)).unwrap();
            let _ = stream.write_all(bytes); // the connection may be closed already
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    sandbox.access_line("node-2", &["UP-PROXY-005", "connection failed"]);
    for to in vips() {
        let mut stream = connect(&sandbox.pod("client"), to).unwrap();
        read_line(&mut stream).unwrap();
        echo(&mut stream, "unharmed").unwrap();
    }
    assert!(!sandbox.log("node-2", "proxy").contains("panicked"));
}

#[test]
fn policies_apply_with_and_without_identity_and_close_open_connections() {
    let sandbox = Sandbox::up("policies");
    serve_echo(&sandbox.pod("server"), 8080);
    let mut open = Vec::new();
    for (from, to) in [
        ("client", 0),
        ("client", 1),
        ("outsider", 0),
        ("outsider", 1),
    ] {
        let mut stream = connect(
            &sandbox.pod(from),
            SocketAddr::new(sandbox.ips("server")[to], 8080),
        )
        .unwrap();
        read_line(&mut stream).unwrap();
        echo(&mut stream, "before").unwrap();
        open.push((from, stream));
    }
    sandbox.set_policies(
        "  - { name: only-client, namespace: default, scope: Namespace, action: Allow, rules: \
         [[[{ principals: [{ Suffix: /sa/client }] }]]] }",
    );
    for (from, stream) in &mut open {
        if *from == "outsider" {
            until("the open connection is closed", || {
                echo(stream, "after").err()
            });
        } else {
            echo(stream, "after").unwrap();
        }
    }
    for ip in sandbox.ips("server") {
        let to = SocketAddr::new(ip, 8080);
        for from in ["outsider", "neighbour"] {
            let refused = connect(&sandbox.pod(from), to).and_then(|mut s| read_line(&mut s));
            assert!(refused.is_err(), "{from} reached {to}");
        }
        read_line(&mut connect(&sandbox.pod("client"), to).unwrap()).unwrap();
    }
    let reason = "allow policies exist, but none allowed";
    sandbox.access_line(
        "node-2",
        &["src.workload=\"neighbour\"", "UP-PROXY-010", reason],
    );
    sandbox.access_line(
        "node-2",
        &["src.workload=\"outsider\"", "UP-PROXY-011", reason],
    );
    sandbox.access_line(
        "node-1",
        &["src.workload=\"neighbour\"", "http status: 401"],
    );
}

#[test]
fn a_workload_that_refers_to_an_unknown_policy_is_denied() {
    let sandbox = Sandbox::up("selector");
    serve_echo(&sandbox.pod("server"), 8080);
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let mut open = connect(&sandbox.pod("client"), to).unwrap();
    read_line(&mut open).unwrap();
    // The policy does not exist, which must not mean "allowed".
    sandbox.set_mesh(&MESH.replace(
        "serviceAccount: server,",
        "serviceAccount: server, authorizationPolicies: [default/later],",
    ));
    until("the open connection is closed", || {
        echo(&mut open, "x").err()
    });
    sandbox.access_line("node-2", &["UP-PROXY-011", "default/later"]);
}

#[test]
fn sigterm_drains_and_the_next_proxy_serves_the_same_pods() {
    let sandbox = Sandbox::up("drain");
    serve_echo(&sandbox.pod("server"), 8080);
    let client = sandbox.pod("client");
    let to = vips().next().unwrap();
    let mut open = connect(&client, to).unwrap();
    read_line(&mut open).unwrap();
    let pid = pid_of(&sandbox, "proxy_pid");
    kill(pid, Signal::SIGTERM).unwrap();
    until("new connections are refused", || {
        connect(&client, to)
            .err()
            .filter(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    echo(&mut open, "may finish").unwrap();
    drop(open);
    await_end(pid);
    let adds = enrolments(&sandbox);
    assert!(sandbox.command(&["repair"]).status.success());
    for to in vips() {
        let mut stream = connect(&client, to).unwrap();
        read_line(&mut stream).unwrap();
        echo(&mut stream, "again").unwrap();
    }
    assert_eq!(enrolments(&sandbox), adds, "no CNI call was needed");
}

#[test]
fn sigterm_loses_no_connection_that_waits_to_be_accepted() {
    let sandbox = Sandbox::up("drain-queue");
    serve_echo(&sandbox.pod("server"), 8080);
    let client = sandbox.pod("client");
    let pid = pid_of(&sandbox, "proxy_pid");
    kill(pid, Signal::SIGSTOP).unwrap();
    let to = vips().cycle().take(60);
    let mut waiting: Vec<_> = to.map(|to| connect(&client, to).unwrap()).collect();
    kill(pid, Signal::SIGTERM).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    for stream in &mut waiting {
        read_line(stream).unwrap();
        echo(stream, "was accepted").unwrap();
    }
    drop(waiting);
    await_end(pid);
}

#[test]
fn the_next_agent_takes_over_from_its_state() {
    let sandbox = Sandbox::up("agent-restart");
    serve_echo(&sandbox.pod("server"), 8080);
    let client = sandbox.pod("client");
    let mut open = connect(&client, vips().next().unwrap()).unwrap();
    read_line(&mut open).unwrap();
    let end = |what: &str| {
        let pid = pid_of(&sandbox, what);
        kill(pid, Signal::SIGKILL).unwrap();
        await_end(pid);
    };
    end("agent_pid");
    echo(&mut open, "traffic goes on").unwrap();
    for to in vips() {
        read_line(&mut connect(&client, to).unwrap()).unwrap();
    }
    assert!(sandbox.command(&["repair"]).status.success());
    until("the new agent knows the pods", || {
        let status: Value =
            serde_json::from_str(&sandbox.get("node-1", "127.0.0.1:15014", "/status").1).unwrap();
        (status["pods"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|p| p["state"] == "enrolled")
            .count()
            == 2)
            .then_some(())
    });
    echo(&mut open, "and on").unwrap();
    // The new agent sends them to a new proxy.
    end("proxy_pid");
    assert!(sandbox.command(&["repair"]).status.success());
    for to in vips() {
        read_line(&mut connect(&client, to).unwrap()).unwrap();
    }
}

fn pid_of(sandbox: &Sandbox, what: &str) -> Pid {
    Pid::from_raw(i32::try_from(sandbox.node("node-1")[what].as_i64().unwrap()).unwrap())
}

fn await_end(pid: Pid) {
    until("the process ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

fn enrolments(sandbox: &Sandbox) -> String {
    let metrics = sandbox.get("node-1", "127.0.0.1:15014", "/metrics").1;
    metrics
        .lines()
        .filter(|l| l.starts_with("underpass_enrolments_total"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn readiness_and_status_report_the_current_state() {
    let sandbox = Sandbox::up("readiness");
    assert_eq!(
        sandbox.get("node-1", "127.0.0.1:15021", "/healthz/ready"),
        (200, "ready\n".to_owned())
    );
    assert_eq!(sandbox.get("node-1", "127.0.0.1:15014", "/readyz").0, 200);
    let status: Value =
        serde_json::from_str(&sandbox.get("node-1", "127.0.0.1:15000", "/status").1).unwrap();
    assert_eq!(status["pods"].as_array().unwrap().len(), 2);
    assert_eq!(
        status["pods"][0]["identity"],
        "spiffe://cluster.local/ns/default/sa/client"
    );
    kill(pid_of(&sandbox, "agent_pid"), Signal::SIGKILL).unwrap();
    until("the proxy is not ready without an agent", || {
        (sandbox.get("node-1", "127.0.0.1:15021", "/healthz/ready").0 == 500).then_some(())
    });
}
