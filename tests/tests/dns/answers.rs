//! Names of the mesh, and the service of the names itself.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use hickory_proto::op::{Edns, ResponseCode};
use hickory_proto::rr::RecordType::{A, AAAA};
use underpass_tests::istio_agent::{ACK, IstioAgent, add_workload, request};
use underpass_tests::name_server::{
    ANSWER, LARGE, NO_ANSWER_WAIT, addresses, ask_tcp, ask_udp, query, udp_client,
};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::wire::{POD4, POD6, Wire};

use super::fixture::{BOTH, mesh, servers, under_all, under_routed};

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
