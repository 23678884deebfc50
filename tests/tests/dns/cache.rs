//! Answers that are used for several queries.

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::RecordType::A;
use underpass_tests::iptables::{install_istio_dns_rules, install_istio_rules};
use underpass_tests::istio_agent::{ACK, add_workload, request};
use underpass_tests::name_server::{
    ANSWER, LATER_ANSWER, NameServer, SLOW, addresses, ask_tcp, query,
};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, PEER6, Wire};

use super::fixture::{BOTH, Setup, servers, under_all, under_istio_agent, under_routed};

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
        assert_eq!(shared, 5 + 5 + 4);
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
