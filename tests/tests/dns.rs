//! DNS of pods through the real proxy, under the `routed` capture with the real agent, and under Istio's NAT rules; over
//! UDP and TCP, IPv4 and IPv6.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::RecordType::{A, AAAA, AXFR, HTTPS, MX};
use netns::NetNs;
use netns::seqpacket::SeqPacket;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::foreign_agent::{DONE, ForeignAgent, add_workload, ask, snapshot_sent};
use underpass_tests::iptables::{install_istio_dns_rules, install_istio_rules};
use underpass_tests::name_server::{
    A_WHILE, ANSWER, LARGE, NameServer, SILENT, UNKNOWN, ZONE, addresses, ask_tcp, ask_udp, query, read_message,
    udp_client, write_message,
};
use underpass_tests::node::Node;
use underpass_tests::sandbox::{connect, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: other }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: peer, namespace: other, workloadIps: [10.78.0.2, "fd78::2"], services: { other/db.other.svc.cluster.local: {} } }
services:
  - { name: web, namespace: default, vips: [/10.96.0.10, "/fd96::10"], ports: { 80: 8080 } }
  - { name: four, namespace: other, vips: [/10.96.0.11], ports: { 80: 8080 } }
  - { name: db, namespace: other }
  - { name: many, namespace: other }
"#;

/// [`MESH`] and a service with more addresses than UDP carries.
fn mesh() -> String {
    let many = (0..60).map(|i| {
        format!("  - {{ name: many-{i}, namespace: other, workloadIps: [10.79.0.{i}], services: {{ other/many.other.svc.cluster.local: {{}} }} }}\n")
    });
    MESH.replace("services:\n  - { name: web", &(many.collect::<String>() + "services:\n  - { name: web"))
}

/// The name servers that the pod asks.
fn servers() -> [SocketAddr; 2] {
    [PEER4, PEER6].map(|ip| SocketAddr::new(ip, 53))
}

/// A pod whose DNS is captured, and a name server outside the mesh.
struct Setup {
    node: Node,
    wire: Wire,
    server: NameServer,
    nat: bool,
    _agent: Option<SeqPacket>,
}

impl Setup {
    fn pod(&self) -> &NetNs {
        &self.wire.pod
    }

    /// The address from which the name server is asked. Over UDP under NAT, it is the one that was configured.
    fn asked_as(&self, server: SocketAddr, udp: bool) -> IpAddr {
        if server.is_ipv4() || udp && self.nat { POD4 } else { POD6 }
    }
}

/// Under the built agent, by one of its captures.
fn ours(name: &str, capture: &str) -> Setup {
    let (mut node, wire) = (Node::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    node.start_agent_with(&["--capture".as_ref(), capture.as_ref(), "--dns-capture".as_ref()]);
    node.start_ready_proxy_with(&[("RUST_LOG", "info,dns=debug"), ("UNDERPASS_DNS_UPSTREAM", "10.78.0.2")]);
    let add = Call::new("ADD", &path_of(&wire.pod), &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]));
    assert!(add.run().status.success());
    Setup { node, wire, server, nat: capture != "routed", _agent: None }
}

fn routed(name: &str) -> Setup {
    ours(name, "routed")
}

fn nat(name: &str) -> Setup {
    let (mut node, wire) = (Node::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    let agent = ForeignAgent::listen(&node);
    node.start_proxy_with(&[("RUST_LOG", "info,dns=debug"), ("UNDERPASS_DNS_UPSTREAM", "10.78.0.2")]);
    let agent = agent.accept();
    install_istio_rules(&wire.pod);
    install_istio_dns_rules(&wire.pod);
    assert_eq!(ask(&agent, &add_workload("uid-1", "client"), Some(&wire.pod)), DONE);
    assert_eq!(ask(&agent, &snapshot_sent(), None), DONE);
    Setup { node, wire, server, nat: true, _agent: Some(agent) }
}

/// Runs a test under both captures of ours, and under a foreign agent with Istio's rules.
fn under_all(name: &str, test: impl Fn(&mut Setup)) {
    test(&mut routed(&format!("{name}-routed")));
    test(&mut ours(&format!("{name}-nat"), "nat"));
    test(&mut nat(&format!("{name}-istio")));
}

type Ask = fn(&NetNs, SocketAddr, &Message) -> std::io::Result<Message>;
const BOTH: [(&str, Ask); 2] = [("udp", ask_udp), ("tcp", ask_tcp)];

#[test]
fn names_of_the_mesh_are_answered_from_it() {
    under_all("mesh", |setup| {
        for (server, (protocol, ask)) in servers().into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
            let told = |name, kind| {
                let asked = query(name, kind);
                let answer = ask(setup.pod(), server, &asked).unwrap_or_else(|e| panic!("{name} of {server}: {e}"));
                assert_eq!((answer.metadata.id, &answer.queries), (asked.metadata.id, &asked.queries));
                assert!(answer.metadata.authoritative, "{name} was answered by somebody else");
                assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
                assert!(answer.answers.iter().all(|r| r.ttl == 30));
                addresses(&answer)
            };
            for name in ["web.default.svc.cluster.local.", "WEB.default.svc.", "web.default.", "web."] {
                assert_eq!(told(name, A), ["10.96.0.10"], "{name} over {protocol}");
                assert_eq!(told(name, AAAA), ["fd96::10"], "{name} over {protocol}");
            }
            assert_eq!(told("four.other.svc.cluster.local.", AAAA), Vec::<String>::new(), "not of that family");
            assert_eq!(told("db.other.svc.cluster.local.", A), ["10.78.0.2"], "of its workload");
        }
        assert_eq!(setup.server.seen(), [], "nobody else was asked");
        let line = until("the log tells it", || {
            let log = setup.node.log("proxy");
            log.lines().find(|l| l.contains("name=\"WEB.default.svc.\"") && l.contains("AAAA")).map(str::to_owned)
        });
        for part in ["\tdebug\tdns\tquery: NoError", "by=\"web.default.svc.cluster.local\"", "src.workload=\"client\""]
        {
            assert!(line.contains(part), "{part} in {line}");
        }
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        for protocol in ["udp", "tcp"] {
            let line = format!(
                "istio_dns_requests_total{{request_query_type=\"AAAA\",request_protocol=\"{protocol}\",source_canonical_service=\"client\",source_canonical_revision=\"latest\"}} 10"
            );
            assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
        }
        assert!(!metrics.contains("istio_dns_upstream_requests_total{"));
    });
}

#[test]
fn other_names_are_forwarded_as_they_are_and_in_the_name_of_the_pod() {
    under_all("forward", |setup| {
        for (server, (protocol, ask)) in servers().into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
            for (name, kind, code) in [
                ("Pod.Example.", A, ResponseCode::NoError),
                ("example.", MX, ResponseCode::NoError),
                (UNKNOWN, A, ResponseCode::NXDomain),
                // The name exists, so the name server may not deny it.
                ("web.default.svc.cluster.local.", HTTPS, ResponseCode::NoError),
            ] {
                let mut asked = query(name, kind);
                asked.edns = Some(Edns::new());
                asked.edns.as_mut().unwrap().set_max_payload(1400);
                let answer = ask(setup.pod(), server, &asked).unwrap_or_else(|e| panic!("{name} of {server}: {e}"));
                assert_eq!((answer.metadata.id, &answer.queries), (asked.metadata.id, &asked.queries));
                assert_eq!(answer.metadata.response_code, code, "{name} {kind} over {protocol}");
                if code == ResponseCode::NoError && kind != HTTPS {
                    assert_eq!(addresses(&answer), [ANSWER.to_string()]);
                }
                let seen = setup.server.seen();
                let [(from, bytes)] = &seen[..] else { panic!("the name server saw {seen:?}") };
                assert_eq!(*from, setup.asked_as(server, protocol == "udp"));
                assert_eq!(bytes[2..], asked.to_vec().unwrap()[2..], "all but the id");
            }
        }
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        for name in ["istio_dns_upstream_requests_total", "istio_dns_upstream_request_duration_seconds_count"] {
            let line = metrics.lines().find(|l| l.starts_with(name) && l.contains("\"MX\",request_protocol=\"udp\""));
            assert!(line.is_some_and(|l| l.ends_with(" 2")), "{name}: {line:?}");
        }
    });
}

#[test]
fn a_name_server_that_does_not_answer_is_told_as_a_failure() {
    let nobody: [SocketAddr; 2] = ["10.78.0.9:53", "[fd78::9]:53"].map(|a| a.parse().unwrap());
    under_all("dead", |setup| {
        // Over UDP under NAT, the one that was configured is asked.
        let unheard = servers().map(|s| (s, SILENT)).into_iter().chain(nobody.map(|s| (s, SILENT)));
        std::thread::scope(|scope| {
            for ((server, name), (protocol, ask)) in unheard.flat_map(|u| BOTH.map(|b| (u, b))) {
                let pod = setup.pod();
                scope.spawn(move || {
                    let started = Instant::now();
                    let answer = ask(pod, server, &query(name, A)).unwrap();
                    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{protocol} {server}");
                    let early = started.elapsed() < Duration::from_secs(5);
                    assert!(!early || nobody.contains(&server), "{protocol} {server} had not all its time");
                });
            }
            for (server, (_, ask)) in nobody.into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
                let answer = ask(setup.pod(), server, &query("web.", A)).unwrap();
                assert_eq!(addresses(&answer), ["10.96.0.10"], "the mesh's own names need no name server");
            }
        });
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        let failed = metrics.lines().filter(|l| l.starts_with("istio_dns_upstream_failures_total{"));
        assert!(failed.clone().all(|l| l.ends_with(" 4")) && failed.count() == 2, "{metrics}");
    });
}

#[test]
fn an_answer_that_is_too_long_is_cut_and_tcp_has_it_whole() {
    under_all("large", |setup| {
        for (server, (name, count)) in servers().into_iter().flat_map(|s| [(s, (LARGE, 200)), (s, ("many.other.", 60))])
        {
            let cut = ask_udp(setup.pod(), server, &query(name, A)).unwrap();
            assert!(cut.metadata.truncation && cut.answers.is_empty(), "{name}: {cut}");
            let whole = ask_tcp(setup.pod(), server, &query(name, A)).unwrap();
            assert!(!whole.metadata.truncation);
            assert_eq!(whole.answers.len(), count);
        }
        // Who says that it takes more over UDP, gets more.
        let mut asked = query("many.other.", A);
        asked.edns = Some(Edns::new());
        asked.edns.as_mut().unwrap().set_max_payload(4096);
        let answer = ask_udp(setup.pod(), servers()[0], &asked).unwrap();
        assert!(answer.edns.is_some() && answer.answers.len() == 60);
    });
}

#[test]
fn many_queries_on_one_connection_and_a_whole_zone() {
    under_all("pipeline", |setup| {
        let pod = setup.pod();
        std::thread::scope(|scope| {
            for server in servers() {
                scope.spawn(move || {
                    a_query_that_is_not_answered_does_not_hold_up_others(pod, server);
                    a_zone_is_transferred(pod, server);
                });
            }
        });
    });
}

fn a_query_that_is_not_answered_does_not_hold_up_others(pod: &NetNs, server: SocketAddr) {
    let mut stream = connect(pod, server).unwrap();
    let asked = [SILENT, "a.example.", "web.", "b.example.", "nothing.web."].map(|name| query(name, A));
    for query in &asked {
        write_message(&mut stream, &query.to_vec().unwrap()).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut next = || read_message(&mut stream).map(|m| Message::from_vec(&m).unwrap());
    let answered: Vec<Message> = (0..asked.len()).map(|_| next().unwrap()).collect();
    assert_eq!(next().unwrap_err().kind(), ErrorKind::UnexpectedEof, "and then the connection ends");
    for query in &asked[1..] {
        let answer = answered.iter().find(|a| a.metadata.id == query.metadata.id).unwrap();
        assert_eq!((&answer.queries, answer.answers.len()), (&query.queries, 1));
    }
    let last = answered.last().unwrap();
    assert_eq!((last.metadata.id, last.metadata.response_code), (asked[0].metadata.id, ResponseCode::ServFail));
}

fn a_zone_is_transferred(pod: &NetNs, server: SocketAddr) {
    let mut stream = connect(pod, server).unwrap();
    write_message(&mut stream, &query(ZONE, AXFR).to_vec().unwrap()).unwrap();
    for _ in 0..3 {
        let part = Message::from_vec(&read_message(&mut stream).unwrap()).unwrap();
        assert_eq!(addresses(&part), [ANSWER.to_string()]);
    }
}

#[test]
fn garbage_on_the_dns_port_harms_nobody() {
    under_all("dns-garbage", |setup| {
        let good = query("web.", A).to_vec().unwrap();
        let mut answer = good.clone();
        answer[2] |= 0x80;
        let mut pointers = good.clone();
        pointers[12..14].copy_from_slice(&[0xc0, 12]);
        let garbage: [&[u8]; 7] = [b"", b"x", &[0xff; 300], &answer, &pointers, &good[..good.len() - 1], &[1; 5000]];
        for server in servers() {
            let socket = udp_client(setup.pod(), server);
            for bytes in garbage {
                socket.send(bytes).unwrap();
                if let Ok(mut stream) = connect(setup.pod(), server) {
                    let _ = write_message(&mut stream, bytes); // it may have been hung up on already
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    while read_message(&mut stream).is_ok() {}
                }
            }
            // Some is refused, the rest is not answered.
            socket.set_read_timeout(Some(A_WHILE)).unwrap();
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                assert_eq!(buffer[3] & 0x0f, ResponseCode::FormErr.low(), "{:?}", &buffer[..length]);
            }
            for (_, ask) in BOTH {
                assert_eq!(addresses(&ask(setup.pod(), server, &query("web.", A)).unwrap()), ["10.96.0.10"]);
            }
        }
        assert!(!setup.node.log("proxy").contains("panicked"));
    });
}

#[test]
fn nobody_outside_the_pod_is_answered() {
    under_all("outside", |setup| {
        for ip in [POD4, POD6] {
            let port = SocketAddr::new(ip, 15053);
            let socket = udp_client(&setup.wire.peer, port);
            socket.set_read_timeout(Some(A_WHILE)).unwrap();
            socket.send(&query("web.", A).to_vec().unwrap()).unwrap();
            assert_eq!(socket.recv(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock, "over UDP to {port}");
            let refused = ask_tcp(&setup.wire.peer, port, &query("web.", A)).unwrap_err();
            let at_once = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
            assert!(at_once.contains(&refused.kind()), "over TCP to {port}: {refused}");
        }
        assert_eq!(addresses(&ask_udp(setup.pod(), servers()[0], &query("web.", A)).unwrap()), ["10.96.0.10"]);
    });
}

#[test]
fn a_pod_may_have_a_name_server_of_its_own() {
    under_all("own-server", |setup| {
        for server in servers() {
            assert_eq!(addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()), ["10.96.0.10"]);
        }
        // Right after an answer, and without any option that would let it share the port.
        let own = setup.pod().run(|| UdpSocket::bind("[::]:53")).unwrap().expect("port 53 is the application's");
        for server in servers() {
            assert_eq!(addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()), ["10.96.0.10"]);
        }
        own.set_read_timeout(Some(A_WHILE)).unwrap();
        assert_eq!(own.recv(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing of it went astray");
    });
}

#[test]
fn too_many_queries_at_once_fail_at_once() {
    let setup = routed("too-many");
    let socket = udp_client(setup.pod(), servers()[0]);
    socket.set_nonblocking(true).unwrap();
    let (started, mut buffer) = (Instant::now(), [0; 512]);
    let mut sent = 0;
    while let Err(e) = socket.recv(&mut buffer) {
        assert_eq!(e.kind(), ErrorKind::WouldBlock);
        socket.send(&query(SILENT, A).to_vec().unwrap()).unwrap();
        sent += 1;
        assert!(sent < 100_000, "every query is let wait");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "this one did not wait for its time");
    assert!(sent > 1000);
    assert_eq!(Message::from_vec(&buffer[..17 + SILENT.len()]).unwrap().metadata.response_code, ResponseCode::ServFail);
    // And the mesh's own names need nobody.
    let client = udp_client(setup.pod(), servers()[1]);
    let asked = query("web.", A).to_vec().unwrap();
    let answer = until("the mesh answers", || {
        client.send(&asked).unwrap();
        let length = client.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    });
    assert_eq!(addresses(&answer), ["10.96.0.10"]);
}

#[test]
fn dns_can_be_left_alone() {
    let (mut node, wire) = (Node::new("dns-off", &mesh()), Wire::new());
    let agent = ForeignAgent::listen(&node);
    node.start_proxy_with(&[("ISTIO_META_DNS_CAPTURE", "false")]);
    let agent = agent.accept();
    let bind = || (UdpSocket::bind("[::]:15053").unwrap(), std::net::TcpListener::bind("[::]:15053").unwrap());
    let _taken = wire.pod.run(bind).unwrap();
    assert_eq!(ask(&agent, &add_workload("uid-1", "client"), Some(&wire.pod)), DONE, "port 15053 is the pod's");
}

#[test]
fn the_next_proxy_answers() {
    let mut setup = routed("dns-next");
    for server in servers() {
        assert_eq!(addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()), ["10.96.0.10"]);
    }
    setup.node.kill_all();
    let socket = udp_client(setup.pod(), servers()[0]);
    let _ = socket.send(&query("web.", A).to_vec().unwrap()); // refused, or in vain
    setup.node.start_agent_with(&["--dns-capture".as_ref()]);
    setup.node.start_ready_proxy();
    for server in servers() {
        let answer = until("the next proxy answers", || ask_udp(setup.pod(), server, &query("web.", A)).ok());
        assert_eq!(addresses(&answer), ["10.96.0.10"]);
    }
}
