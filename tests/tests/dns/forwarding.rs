//! Queries that a name server answers, or does not.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::RecordType::{A, AXFR, HTTPS, MX, SRV};
use netns::NetNs;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::name_server::{
    ANSWER, DAMAGED, FAILS_BY_IPV4, LOST, NO_ANSWER_WAIT, NameServer, SILENT, UNKNOWN, ZONE,
    addresses, ask_tcp, ask_udp, query, read_message, udp_client, write_message,
};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{connect, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

use super::fixture::{
    BOTH, mesh, servers, under_agent, under_all, under_istio_agent, under_istio_agent_with,
    under_routed,
};

#[test]
fn other_names_are_forwarded_unchanged_from_the_pods_address() {
    under_all("forward", |setup| {
        for (server, (protocol, ask)) in servers().into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
            for (name, kind, code) in [
                ("Pod.Example.", A, ResponseCode::NoError),
                ("example.", MX, ResponseCode::NoError),
                ("_sip._udp.example.", SRV, ResponseCode::NoError),
                (UNKNOWN, A, ResponseCode::NXDomain),
                // The name exists in the mesh, so the name server's NXDOMAIN must not reach the
                // pod.
                (
                    "web.default.svc.cluster.local.",
                    HTTPS,
                    ResponseCode::NoError,
                ),
            ] {
                let mut sent = query(name, kind);
                // Not equal: under NAT, both queries over UDP are sent to the same name server.
                let size = if server.is_ipv4() { 1400 } else { 1401 };
                sent.edns = Some(Edns::new());
                sent.edns.as_mut().unwrap().set_max_payload(size);
                let answer = ask(setup.pod(), server, &sent)
                    .unwrap_or_else(|e| panic!("{name} of {server}: {e}"));
                assert_eq!(
                    (answer.metadata.id, &answer.queries),
                    (sent.metadata.id, &sent.queries)
                );
                assert_eq!(
                    answer.metadata.response_code, code,
                    "{name} {kind} over {protocol}"
                );
                if kind == SRV {
                    assert_eq!(addresses(&answer), ["1 2 5060 target.example."]);
                } else if code == ResponseCode::NoError && kind != HTTPS {
                    assert_eq!(addresses(&answer), [ANSWER.to_string()]);
                }
                let seen = setup.server.seen();
                let [(from, bytes)] = &seen[..] else {
                    panic!("the name server received {seen:?}")
                };
                assert_eq!(*from, setup.query_source(server, protocol == "udp"));
                assert_eq!(
                    bytes[2..],
                    sent.to_vec().unwrap()[2..],
                    "unchanged, except for the id"
                );
            }
        }
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        for name in [
            "istio_dns_upstream_requests_total",
            "istio_dns_upstream_request_duration_seconds_count",
        ] {
            let line = metrics
                .lines()
                .find(|l| l.starts_with(name) && l.contains("\"MX\",request_protocol=\"udp\""));
            assert!(line.is_some_and(|l| l.ends_with(" 2")), "{name}: {line:?}");
        }
    });
}

#[test]
fn tcp_to_a_name_server_in_the_mesh_is_tunnelled() {
    let mesh = mesh().replace(
        "name: peer, namespace: other,",
        "name: peer, namespace: default, serviceAccount: peer, node: node,",
    );
    let (mut node, wire) = (TestNode::new("dns-in-mesh", &mesh), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    node.start_agent_with(&["--dns-capture".as_ref()]);
    node.start_ready_proxy_with(&[("RUST_LOG", "info")]);
    for (name, netns, addresses) in [
        ("client", &wire.pod, ["10.78.0.1/24", "fd78::1/64"]),
        ("peer", &wire.peer, ["10.78.0.2/24", "fd78::2/64"]),
    ] {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={name}"
        );
        let id: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        let config = config(&node.agent_socket(), &addresses);
        let add = Call::new("ADD", &path_of(netns), &config)
            .with("CNI_ARGS", Some(&args))
            .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")));
        assert!(add.run().status.success());
    }
    for ip in [PEER4, PEER6] {
        let to = SocketAddr::new(ip, 53);
        let answer = ask_tcp(&wire.pod, to, &query("pod.example.", A)).unwrap();
        assert_eq!(addresses(&answer), [ANSWER.to_string()]);
        let own = if ip == PEER4 { POD4 } else { POD6 };
        assert_eq!(server.seen().last().unwrap().0, own);
        until("a line of the tunnel", || {
            let log = node.log("proxy");
            let parts = [
                "direction=\"inbound\"",
                "src.identity=\"spiffe://cluster.local/ns/default/sa/client\"",
                &format!("dst.hbone_addr={to}"),
            ];
            log.lines()
                .any(|l| parts.iter().all(|p| l.contains(p)))
                .then_some(())
        });
    }
}

#[test]
fn a_query_whose_packet_is_lost_is_sent_again() {
    under_all("lost", |setup| {
        // The application sends it once.
        let answer = ask_udp(setup.pod(), servers()[0], &query(LOST, A)).unwrap();
        assert_eq!(addresses(&answer), [ANSWER.to_string()]);
    });
}

#[test]
fn a_query_that_a_name_server_fails_to_answer_is_sent_to_the_next_one() {
    let name = query(FAILS_BY_IPV4, A);
    let one = under_istio_agent("one-upstream");
    let answer = ask_udp(one.pod(), servers()[0], &name).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    drop(one);
    let two = under_istio_agent_with("two-upstreams", "10.78.0.2,fd78::2");
    let answer = ask_udp(two.pod(), servers()[0], &name).unwrap();
    assert_eq!(addresses(&answer), [ANSWER.to_string()]);
    let asked: Vec<_> = two
        .server
        .seen()
        .into_iter()
        .map(|(from, _)| from)
        .collect();
    assert_eq!(asked, [POD4, POD6]);
    // Other answers are final.
    let answer = ask_udp(two.pod(), servers()[0], &query(UNKNOWN, A)).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(two.server.seen().len(), 1);
}

#[test]
fn a_damaged_answer_is_not_passed_on() {
    let setup = under_agent("damaged", "routed");
    for server in servers() {
        for (protocol, ask) in BOTH {
            let answer = ask(setup.pod(), server, &query(DAMAGED, A)).unwrap();
            let code = answer.metadata.response_code;
            assert_eq!(code, ResponseCode::ServFail, "{protocol} {server}");
            let answer = ask(setup.pod(), server, &query("b.example.", A)).unwrap();
            assert_eq!(
                addresses(&answer),
                [ANSWER.to_string()],
                "{protocol} {server}"
            );
        }
    }
}

#[test]
fn unresponsive_name_server_yields_servfail() {
    let unreachable: [SocketAddr; 2] = ["10.78.0.9:53", "[fd78::9]:53"].map(|a| a.parse().unwrap());
    under_all("dead", |setup| {
        // Over UDP under NAT, the configured name server is queried instead.
        let unanswered = servers()
            .map(|s| (s, SILENT))
            .into_iter()
            .chain(unreachable.map(|s| (s, SILENT)));
        std::thread::scope(|scope| {
            for ((server, name), (protocol, ask)) in unanswered.flat_map(|u| BOTH.map(|b| (u, b))) {
                let pod = setup.pod();
                // Under NAT, queries over UDP have the same name server, and share an attempt.
                let shares = setup.nat && protocol == "udp";
                scope.spawn(move || {
                    let started = Instant::now();
                    let answer = ask(pod, server, &query(name, A)).unwrap();
                    assert_eq!(
                        answer.metadata.response_code,
                        ResponseCode::ServFail,
                        "{protocol} {server}"
                    );
                    let early = started.elapsed() < Duration::from_secs(5);
                    assert!(
                        !early || shares || unreachable.contains(&server),
                        "{protocol} {server} failed before the timeout"
                    );
                });
            }
            for (server, (_, ask)) in unreachable.into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
                let answer = ask(setup.pod(), server, &query("web.", A)).unwrap();
                assert_eq!(
                    addresses(&answer),
                    ["10.96.0.10"],
                    "mesh names need no name server"
                );
            }
        });
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        let failed = metrics
            .lines()
            .filter(|l| l.starts_with("istio_dns_upstream_failures_total{"));
        assert!(
            failed.clone().all(|l| l.ends_with(" 4")) && failed.count() == 2,
            "{metrics}"
        );
    });
}

#[test]
fn pipelined_queries_and_zone_transfers_are_answered() {
    under_all("pipeline", |setup| {
        let pod = setup.pod();
        std::thread::scope(|scope| {
            for server in servers() {
                scope.spawn(move || {
                    assert_unanswered_query_delays_no_other(pod, server);
                    assert_zone_transfer(pod, server);
                });
            }
        });
    });
}

fn assert_unanswered_query_delays_no_other(pod: &NetNs, server: SocketAddr) {
    let mut stream = connect(pod, server).unwrap();
    let queries =
        [SILENT, "a.example.", "web.", "b.example.", "nothing.web."].map(|name| query(name, A));
    for query in &queries {
        write_message(&mut stream, &query.to_vec().unwrap()).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut next = || read_message(&mut stream).map(|m| Message::from_vec(&m).unwrap());
    let answered: Vec<Message> = (0..queries.len()).map(|_| next().unwrap()).collect();
    assert_eq!(
        next().unwrap_err().kind(),
        ErrorKind::UnexpectedEof,
        "the connection is closed after the last answer"
    );
    for query in &queries[1..] {
        let answer = answered
            .iter()
            .find(|a| a.metadata.id == query.metadata.id)
            .unwrap();
        assert_eq!((&answer.queries, answer.answers.len()), (&query.queries, 1));
    }
    let last = answered.last().unwrap();
    assert_eq!(
        (last.metadata.id, last.metadata.response_code),
        (queries[0].metadata.id, ResponseCode::ServFail)
    );
}

fn assert_zone_transfer(pod: &NetNs, server: SocketAddr) {
    let mut stream = connect(pod, server).unwrap();
    write_message(&mut stream, &query(ZONE, AXFR).to_vec().unwrap()).unwrap();
    for _ in 0..3 {
        let part = Message::from_vec(&read_message(&mut stream).unwrap()).unwrap();
        assert_eq!(addresses(&part), [ANSWER.to_string()]);
    }
}

#[test]
fn malformed_dns_messages_leave_other_queries_answered() {
    under_all("dns-garbage", |setup| {
        let good = query("web.", A).to_vec().unwrap();
        let mut answer = good.clone();
        answer[2] |= 0x80;
        let mut pointers = good.clone();
        pointers[12..14].copy_from_slice(&[0xc0, 12]);
        let garbage: [&[u8]; 7] = [
            b"",
            b"x",
            &[0xff; 300],
            &answer,
            &pointers,
            &good[..good.len() - 1],
            &[1; 5000],
        ];
        for server in servers() {
            let socket = udp_client(setup.pod(), server);
            for bytes in garbage {
                socket.send(bytes).unwrap();
                if let Ok(mut stream) = connect(setup.pod(), server) {
                    // The proxy may have closed it already.
                    let _ = write_message(&mut stream, bytes);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    while read_message(&mut stream).is_ok() {}
                }
            }
            // Some messages get a format error, the others no answer.
            socket.set_read_timeout(Some(NO_ANSWER_WAIT)).unwrap();
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                assert_eq!(
                    buffer[3] & 0x0f,
                    ResponseCode::FormErr.low(),
                    "{:?}",
                    &buffer[..length]
                );
            }
            for (_, ask) in BOTH {
                assert_eq!(
                    addresses(&ask(setup.pod(), server, &query("web.", A)).unwrap()),
                    ["10.96.0.10"]
                );
            }
        }
        assert!(!setup.node.log("proxy").contains("panicked"));
    });
}

#[test]
fn excess_concurrent_queries_fail_immediately() {
    let setup = under_routed("too-many");
    let socket = udp_client(setup.pod(), servers()[0]);
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let mut sent = 0;
    while let Err(e) = socket.recv(&mut buffer) {
        assert_eq!(e.kind(), ErrorKind::WouldBlock);
        let mut excess = query(SILENT, A);
        excess.metadata.id = sent;
        socket.send(&excess.to_vec().unwrap()).unwrap();
        sent = sent.checked_add(1).expect("a query fails");
    }
    let failed = Message::from_vec(&buffer[..17 + SILENT.len()]).unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    // An earlier query would have failed by its timeout.
    assert!(failed.metadata.id > 1000, "query {}", failed.metadata.id);
    // Mesh names are still answered.
    let client = udp_client(setup.pod(), servers()[1]);
    let sent = query("web.", A).to_vec().unwrap();
    let answer = until("the proxy answers a mesh name", || {
        client.send(&sent).unwrap();
        let length = client.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    });
    assert_eq!(addresses(&answer), ["10.96.0.10"]);
}
