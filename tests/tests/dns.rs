//! DNS of pods through the built proxy: under both captures with the built agent, and under Istio's
//! NAT rules; over UDP and TCP, IPv4 and IPv6.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::RecordType::{A, AAAA, AXFR, HTTPS, MX, SRV};
use netns::NetNs;
use netns::seqpacket::SeqPacket;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::{install_istio_dns_rules, install_istio_rules};
use underpass_tests::istio_agent::{ACK, IstioAgent, add_workload, request, snapshot_sent};
use underpass_tests::name_server::{
    ANSWER, DAMAGED, LARGE, LATER_ANSWER, LOST, NO_ANSWER_WAIT, NameServer, SILENT, SLOW, UNKNOWN,
    ZONE, addresses, ask_tcp, ask_udp, query, read_message, udp_client, write_message,
};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{connect, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const MESH: &str = r#"
namespaces:
  [{ name: default, labels: { istio.io/dataplane-mode: ambient } }, { name: other }, { name: com }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: peer, namespace: other, workloadIps: [10.78.0.2, "fd78::2"],
      services: { other/db.other.svc.cluster.local: {} } }
services:
  - { name: web, namespace: default, vips: [/10.96.0.10, "/fd96::10"], ports: { 80: 8080 } }
  - { name: four, namespace: other, vips: [/10.96.0.11], ports: { 80: 8080 } }
  - { name: git, namespace: com, vips: [/10.96.0.12], ports: { 80: 8080 } }
  - { name: db, namespace: other }
  - { name: many, namespace: other }
"#;

/// [`MESH`] and a service with more addresses than fit into a UDP message.
fn mesh() -> String {
    let many = (0..60).map(|i| {
        format!(
            "  - {{ name: many-{i}, namespace: other, workloadIps: [10.79.0.{i}], services: {{ \
             other/many.other.svc.cluster.local: {{}} }} }}\n"
        )
    });
    MESH.replace(
        "services:\n  - { name: web",
        &(many.collect::<String>() + "services:\n  - { name: web"),
    )
}

/// The pod's name servers.
fn servers() -> [SocketAddr; 2] {
    [PEER4, PEER6].map(|ip| SocketAddr::new(ip, 53))
}

/// A pod whose DNS is captured, and a name server outside the mesh.
struct Setup {
    node: TestNode,
    wire: Wire,
    server: NameServer,
    nat: bool,
    /// The connection of Istio's agent, if it is used.
    agent: Option<SeqPacket>,
}

impl Setup {
    fn pod(&self) -> &NetNs {
        &self.wire.pod
    }

    /// The source address of forwarded queries. Over UDP under NAT, only the configured name server
    /// is queried.
    fn query_source(&self, server: SocketAddr, udp: bool) -> IpAddr {
        if server.is_ipv4() || udp && self.nat {
            POD4
        } else {
            POD6
        }
    }
}

/// A pod under the built agent, with one of its captures.
fn under_agent(name: &str, capture: &str) -> Setup {
    let (mut node, wire) = (TestNode::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    node.start_agent_with(&[
        "--capture".as_ref(),
        capture.as_ref(),
        "--dns-capture".as_ref(),
    ]);
    node.start_ready_proxy_with(&[
        ("RUST_LOG", "info,dns=debug"),
        ("UNDERPASS_DNS_UPSTREAM", "10.78.0.2"),
    ]);
    let add = Call::new(
        "ADD",
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]),
    );
    assert!(add.run().status.success());
    Setup {
        node,
        wire,
        server,
        nat: capture != "routed",
        agent: None,
    }
}

fn under_routed(name: &str) -> Setup {
    under_agent(name, "routed")
}

fn under_istio_agent(name: &str) -> Setup {
    let (mut node, wire) = (TestNode::new(name, &mesh()), Wire::new());
    let server = NameServer::start(&wire.peer, &[PEER4, PEER6]);
    let agent = IstioAgent::listen(&node);
    node.start_proxy_with(&[
        ("RUST_LOG", "info,dns=debug"),
        ("UNDERPASS_DNS_UPSTREAM", "10.78.0.2"),
    ]);
    let agent = agent.accept();
    install_istio_rules(&wire.pod);
    install_istio_dns_rules(&wire.pod);
    assert_eq!(
        request(&agent, &add_workload("uid-1", "client"), Some(&wire.pod)),
        ACK
    );
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    Setup {
        node,
        wire,
        server,
        nat: true,
        agent: Some(agent),
    }
}

/// Runs a test under both captures of the built agent, and under Istio's agent and rules.
fn under_all(name: &str, test: impl Fn(&mut Setup)) {
    test(&mut under_routed(&format!("{name}-routed")));
    test(&mut under_agent(&format!("{name}-nat"), "nat"));
    test(&mut under_istio_agent(&format!("{name}-istio")));
}

type Ask = fn(&NetNs, SocketAddr, &Message) -> std::io::Result<Message>;
const BOTH: [(&str, Ask); 2] = [("udp", ask_udp), ("tcp", ask_tcp)];

#[test]
fn mesh_names_are_answered_by_the_proxy() {
    under_all("mesh", |setup| {
        for (server, (protocol, ask)) in servers().into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
            let resolve = |name, kind| {
                let sent = query(name, kind);
                let answer = ask(setup.pod(), server, &sent)
                    .unwrap_or_else(|e| panic!("{name} of {server}: {e}"));
                assert_eq!(
                    (answer.metadata.id, &answer.queries),
                    (sent.metadata.id, &sent.queries)
                );
                assert!(
                    answer.metadata.authoritative,
                    "{name} was not answered by the proxy"
                );
                assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
                assert!(answer.answers.iter().all(|r| r.ttl == 30));
                addresses(&answer)
            };
            for name in ["web.default.svc.cluster.local.", "WEB.default.svc.", "web."] {
                assert_eq!(resolve(name, A), ["10.96.0.10"], "{name} over {protocol}");
                assert_eq!(resolve(name, AAAA), ["fd96::10"], "{name} over {protocol}");
            }
            assert_eq!(
                resolve("four.other.svc.cluster.local.", AAAA),
                Vec::<String>::new(),
                "no IPv6 address"
            );
            assert_eq!(
                resolve("db.other.svc.cluster.local.", A),
                ["10.78.0.2"],
                "a headless service's workload"
            );
        }
        assert_eq!(setup.server.seen(), [], "the name server was not queried");
        let line = until("the query is logged", || {
            let log = setup.node.log("proxy");
            log.lines()
                .find(|l| l.contains("name=\"WEB.default.svc.\"") && l.contains("AAAA"))
                .map(str::to_owned)
        });
        for part in [
            "\tdebug\tdns\t",
            "NoError",
            "by=\"web.default.svc.cluster.local\"",
            "src.workload=\"client\"",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        for protocol in ["udp", "tcp"] {
            let line = format!(
                "istio_dns_requests_total{{request_query_type=\"AAAA\",request_protocol=\"\
                 {protocol}\",source_canonical_service=\"client\",source_canonical_revision=\"\
                 latest\"}} 8"
            );
            assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
        }
        assert!(!metrics.contains("istio_dns_upstream_requests_total{"));
    });
}

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
fn a_public_name_is_not_that_of_a_service() {
    under_all("public", |setup| {
        for (server, (protocol, ask)) in servers().into_iter().flat_map(|s| BOTH.map(|b| (s, b))) {
            let resolve = |name| {
                let answer = ask(setup.pod(), server, &query(name, A)).unwrap();
                assert_eq!(
                    answer.metadata.response_code,
                    ResponseCode::NoError,
                    "{name}"
                );
                addresses(&answer)
            };
            // The domain exists. A resolver with search domains asks for the service by its full
            // name.
            assert_eq!(resolve("git.com."), [ANSWER.to_string()], "{protocol}");
            assert_eq!(
                resolve("git.com.svc.cluster.local."),
                ["10.96.0.12"],
                "{protocol}"
            );
            // It does not exist.
            assert_eq!(resolve("four.other."), ["10.96.0.11"], "{protocol}");
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

/// How many forwarded queries were answered in this way, by the proxy's metrics.
fn cache_uses(setup: &Setup, result: &str) -> u64 {
    let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
    let series = format!("underpass_dns_cache_uses_total{{result=\"{result}\"}} ");
    let count = metrics.lines().find_map(|l| l.strip_prefix(&series));
    count
        .unwrap_or_else(|| panic!("{metrics}"))
        .parse()
        .unwrap()
}

#[test]
fn equal_queries_share_an_answer_of_the_name_server() {
    under_all("cache", |setup| {
        let server = servers()[0];
        for (protocol, ask) in BOTH {
            let resolve = |sent: &Message| {
                let answer = ask(setup.pod(), server, sent).unwrap();
                // The client's own id, and the name as the client wrote it.
                assert_eq!(answer.metadata.id, sent.metadata.id);
                let name = |message: &Message| message.queries[0].name().to_ascii();
                assert_eq!(name(&answer), name(sent));
                assert_eq!(addresses(&answer), [ANSWER.to_string()], "{protocol}");
                let [record] = &answer.answers[..] else {
                    panic!("{answer}")
                };
                assert!((1..=60).contains(&record.ttl), "{answer}");
            };
            let ask_as = |name| resolve(&query(name, A));
            if protocol == "tcp" {
                ask_as("shared.example."); // concurrent queries over TCP are not shared
            }
            std::thread::scope(|scope| {
                for name in ["shared.example.", "SHARED.example.", "Shared.eXample."] {
                    scope.spawn(move || ask_as(name));
                    scope.spawn(move || ask_as(name));
                }
            });
            let seen = setup.server.seen();
            assert_eq!(seen.len(), 1, "{protocol}: {seen:?}");
            // What may change the answer is a query of its own.
            let mut checking = query("shared.example.", A);
            checking.metadata.checking_disabled = true;
            let mut secure = query("shared.example.", A);
            secure.edns.insert(Edns::new()).set_dnssec_ok(true);
            for sent in [checking, secure] {
                (0..2).for_each(|_| resolve(&sent));
                assert_eq!(setup.server.seen().len(), 1, "{sent}");
            }
        }
        assert_eq!(cache_uses(setup, "miss"), 6);
        let shared = cache_uses(setup, "hit") + cache_uses(setup, "shared");
        assert_eq!(shared, 5 + 6 + 4);
    });
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
fn a_pod_never_gets_an_answer_to_another_pod() {
    let mut setup = under_istio_agent("two-pods");
    let other = Wire::new();
    let other_server = NameServer::start(&other.peer, &[PEER4, PEER6]);
    install_istio_rules(&other.pod);
    install_istio_dns_rules(&other.pod);
    let agent = setup.agent.take().unwrap();
    let added = request(&agent, &add_workload("uid-2", "other"), Some(&other.pod));
    assert_eq!(added, ACK);
    // The name servers of both pods have the same address, but are not the same.
    setup.server.set_failing(true);
    for (protocol, ask) in BOTH {
        let code_for = |pod| {
            let answer = ask(pod, servers()[0], &query("split.example.", A)).unwrap();
            let seen = [&setup.server, &other_server].map(|server| server.seen().len());
            (answer.metadata.response_code, seen)
        };
        let (first, second) = (&setup.wire.pod, &other.pod);
        assert_eq!(
            code_for(second),
            (ResponseCode::NoError, [0, 1]),
            "{protocol}"
        );
        assert_eq!(
            code_for(first),
            (ResponseCode::ServFail, [1, 0]),
            "{protocol}"
        );
        assert_eq!(
            code_for(second),
            (ResponseCode::NoError, [0, 0]),
            "{protocol}"
        );
    }
}

#[test]
fn expired_answers_are_used_while_the_name_server_fails() {
    under_all("expired", |setup| {
        let name = "192-0-2-9.brief.example.";
        for (protocol, ask) in BOTH {
            setup.server.set_failing(false);
            let resolve = || {
                let answer = ask(setup.pod(), servers()[0], &query(name, A)).unwrap();
                assert_eq!(addresses(&answer), ["192.0.2.9"], "{protocol}");
                answer.answers[0].ttl
            };
            assert_eq!(resolve(), 1, "{protocol}");
            setup.server.set_failing(true);
            // The first query after the TTL of a second finds out that the name server fails.
            until("an expired answer", || (resolve() == 30).then_some(()));
            // Names that were never answered fail.
            let answer = ask(setup.pod(), servers()[0], &query("new.example.", A)).unwrap();
            let code = answer.metadata.response_code;
            assert_eq!(code, ResponseCode::ServFail, "{protocol}");
        }
        assert!(cache_uses(setup, "stale") >= 2);
    });
}

#[test]
fn a_late_answer_over_tcp_replaces_an_expired_one() {
    let setup = under_routed("late");
    let resolve = || addresses(&ask_tcp(setup.pod(), servers()[0], &query(SLOW, A)).unwrap());
    assert_eq!(resolve(), [ANSWER.to_string()]);
    // Each client gets the expired answer before the name server's arrives.
    until("the name server's later answer", || {
        (resolve() == [LATER_ANSWER.to_string()]).then_some(())
    });
    assert!(cache_uses(&setup, "stale") > 0);
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
fn oversized_answer_is_truncated_over_udp_and_complete_over_tcp() {
    under_all("large", |setup| {
        for (server, (name, count)) in servers()
            .into_iter()
            .flat_map(|s| [(s, (LARGE, 200)), (s, ("many.other.svc.", 60))])
        {
            let truncated = ask_udp(setup.pod(), server, &query(name, A)).unwrap();
            // The name server's answer is passed on, the proxy's own has what fits into 512 bytes.
            let fitting = if name == LARGE { 0 } else { 30 };
            assert!(truncated.metadata.truncation, "{name}: {truncated}");
            assert_eq!(truncated.answers.len(), fitting, "{name}");
            let complete = ask_tcp(setup.pod(), server, &query(name, A)).unwrap();
            assert!(!complete.metadata.truncation);
            assert_eq!(complete.answers.len(), count);
        }
        // EDNS allows larger answers over UDP.
        let mut sent = query("many.other.svc.", A);
        sent.edns = Some(Edns::new());
        sent.edns.as_mut().unwrap().set_max_payload(4096);
        let answer = ask_udp(setup.pod(), servers()[0], &sent).unwrap();
        assert!(answer.edns.is_some() && answer.answers.len() == 60);
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
fn queries_from_outside_the_pod_are_not_answered() {
    under_all("outside", |setup| {
        for ip in [POD4, POD6] {
            let port = SocketAddr::new(ip, 15053);
            let socket = udp_client(&setup.wire.peer, port);
            socket.set_read_timeout(Some(NO_ANSWER_WAIT)).unwrap();
            socket.send(&query("web.", A).to_vec().unwrap()).unwrap();
            assert_eq!(
                socket.recv(&mut [0; 512]).unwrap_err().kind(),
                ErrorKind::WouldBlock,
                "over UDP to {port}"
            );
            let refused = ask_tcp(&setup.wire.peer, port, &query("web.", A)).unwrap_err();
            let at_once = [
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionRefused,
                ErrorKind::BrokenPipe,
            ];
            assert!(
                at_once.contains(&refused.kind()),
                "over TCP to {port}: {refused}"
            );
        }
        assert_eq!(
            addresses(&ask_udp(setup.pod(), servers()[0], &query("web.", A)).unwrap()),
            ["10.96.0.10"]
        );
    });
}

#[test]
fn pod_can_run_its_own_name_server() {
    under_all("own-server", |setup| {
        for server in servers() {
            assert_eq!(
                addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()),
                ["10.96.0.10"]
            );
        }
        // Right after an answer, and without an option to share the port.
        let own = setup
            .pod()
            .run(|| UdpSocket::bind("[::]:53"))
            .unwrap()
            .expect("the application can bind port 53");
        for server in servers() {
            assert_eq!(
                addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()),
                ["10.96.0.10"]
            );
        }
        own.set_read_timeout(Some(NO_ANSWER_WAIT)).unwrap();
        assert_eq!(
            own.recv(&mut [0; 512]).unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "no query or answer reaches the application's name server"
        );
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

#[test]
fn dns_capture_can_be_disabled() {
    let (mut node, wire) = (TestNode::new("dns-off", &mesh()), Wire::new());
    let agent = IstioAgent::listen(&node);
    node.start_proxy_with(&[("ISTIO_META_DNS_CAPTURE", "false")]);
    let agent = agent.accept();
    let bind = || {
        (
            UdpSocket::bind("[::]:15053").unwrap(),
            std::net::TcpListener::bind("[::]:15053").unwrap(),
        )
    };
    let _taken = wire.pod.run(bind).unwrap();
    assert_eq!(
        request(&agent, &add_workload("uid-1", "client"), Some(&wire.pod)),
        ACK,
        "the proxy does not need port 15053"
    );
}

#[test]
fn dns_is_answered_after_a_proxy_restart() {
    let mut setup = under_routed("dns-next");
    for server in servers() {
        assert_eq!(
            addresses(&ask_udp(setup.pod(), server, &query("web.", A)).unwrap()),
            ["10.96.0.10"]
        );
    }
    setup.node.kill_all();
    let socket = udp_client(setup.pod(), servers()[0]);
    let _ = socket.send(&query("web.", A).to_vec().unwrap()); // refused, or lost
    setup.node.start_agent_with(&["--dns-capture".as_ref()]);
    setup.node.start_ready_proxy();
    for server in servers() {
        let answer = until("the next proxy answers", || {
            ask_udp(setup.pod(), server, &query("web.", A)).ok()
        });
        assert_eq!(addresses(&answer), ["10.96.0.10"]);
    }
}
