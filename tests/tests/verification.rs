//! Verification of enrolled pods: changed rules are repaired, and a proxy that does not answer is
//! reported.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::io::{Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_status::{VerificationReason, VerificationState, VerificationStatus};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener;
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{POD4, POD6, Wire, flush_rules, many_pods};

/// The agent's admin address.
const ADMIN: &str = "127.0.0.1:15014";

/// Verifies the pod now.
fn verify_now(node: &TestNode) -> VerificationStatus {
    node.verify("client").verification.unwrap()
}

fn verification(node: &TestNode) -> Option<VerificationStatus> {
    node.pod("client").verification
}

fn metric(node: &TestNode, line: &str) -> Option<u64> {
    let metrics = node.get(ADMIN, "/metrics").unwrap().1;
    metrics
        .lines()
        .find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
}

fn await_state(node: &TestNode, state: VerificationState) -> VerificationStatus {
    until(&format!("the pod is {state}"), || {
        verification(node).filter(|v| v.state == state)
    })
}

fn await_verified(node: &TestNode) {
    await_state(node, VerificationState::Verified);
}

/// The pod is unverified for this reason, in which these words are.
fn assert_unverified(found: &VerificationStatus, reason: VerificationReason, part: &str) {
    assert_eq!(
        (found.state, found.reason_code),
        (VerificationState::Unverified, Some(reason)),
        "{found:?}"
    );
    assert!(
        found.reason.as_ref().unwrap().contains(part),
        "{part:?} in {found:?}"
    );
}

fn nothing_differs(wire: &Wire) -> bool {
    let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
    redirect::diff(&redirect::Plan::for_pod([POD4, POD6]), &observed).is_empty()
}

fn nft(wire: &Wire, args: &str) {
    let mut command = Command::new("nft");
    netns::process::in_netns(&mut command, &wire.pod).unwrap();
    assert!(
        command.args(args.split(' ')).status().unwrap().success(),
        "nft {args}"
    );
}

fn ip(wire: &Wire, args: &str) {
    let mut command = Command::new("ip");
    netns::process::in_netns(&mut command, &wire.pod).unwrap();
    assert!(
        command.args(args.split(' ')).status().unwrap().success(),
        "ip {args}"
    );
}

#[test]
fn changed_rules_are_detected_and_repaired() {
    let (node, wire) = TestNode::with_pod("repair");
    await_verified(&node);
    let changes: [(&str, &dyn Fn()); 8] = [
        ("inet underpass", &|| {
            nft(&wire, "delete table inet underpass")
        }),
        ("chain guard", &|| {
            nft(&wire, "flush chain inet underpass guard")
        }),
        ("chain capture", &|| {
            nft(&wire, "insert rule inet underpass capture accept")
        }),
        ("set own4", &|| {
            nft(&wire, "add element inet underpass own4 { 10.9.9.9 }")
        }),
        ("", &|| flush_rules(&wire.pod)),
        ("lookup main", &|| ip(&wire, "-6 rule del pref 32763")),
        ("table 15001", &|| ip(&wire, "route flush table 15001")),
        ("10.9.9.9", &|| {
            ip(&wire, "rule add pref 32762 to 10.9.9.9 lookup main")
        }),
    ];
    for (index, (expected, change)) in changes.into_iter().enumerate() {
        let before = node.log("agent").len();
        change();
        until("it is repaired", || nothing_differs(&wire).then_some(()));
        let line = until("the repair is logged", || {
            let log = node.log("agent");
            log[before..]
                .lines()
                .find(|l| l.contains("event=\"redirection_repaired\""))
                .map(str::to_owned)
        });
        assert!(line.contains(expected), "{expected} in {line}");
        // Of changes to routing the kernel reports a netlink port, which may name no process.
        let is_known = if index < 4 {
            line.contains("by=\"nft (pid ")
        } else {
            !line.contains("by=\"unknown\"")
        };
        assert!(is_known, "{line}");
    }
    await_verified(&node);
    assert!(metric(&node, "underpass_repairs_total").unwrap() >= 8);
    assert!(metric(&node, "underpass_drift_seconds_count").unwrap() >= 8);
    let repair = verification(&node).unwrap().last_repair.unwrap();
    assert_ne!(repair.by, "unknown", "{repair:?}");
    assert_eq!(metric(&node, "underpass_pods{state=\"verified\"}"), Some(1));
    assert_eq!(metric(&node, "underpass_pods{state=\"drifted\"}"), Some(0));
}

#[test]
fn foreign_rules_are_left_alone() {
    let (node, wire) = TestNode::with_pod("not-ours");
    await_verified(&node);
    nft(&wire, "add table inet foreign");
    ip(&wire, "rule add pref 20000 to 10.9.9.9 lookup main");
    nft(&wire, "delete table inet underpass");
    until("Underpass's table is repaired", || {
        nothing_differs(&wire).then_some(())
    });
    nft(&wire, "list table inet foreign");
    ip(&wire, "rule del pref 20000");
}

#[test]
fn a_drift_that_cannot_be_repaired_is_reported_and_retried_slowly() {
    let (node, wire) = TestNode::with_pod("stubborn");
    await_verified(&node);
    // Without --adopt-istio the agent must not remove that table.
    nft(&wire, "add table inet istio-ambient-nat");
    nft(&wire, "add chain inet istio-ambient-nat istio-output");
    let found = await_state(&node, VerificationState::Drifted);
    assert!(
        found.reason.as_ref().unwrap().contains("istio-ambient-nat"),
        "{found:?}"
    );
    let checks = || metric(&node, "underpass_verification_seconds_count").unwrap();
    let (before, began) = (checks(), Instant::now());
    until("the repair is retried", || {
        (checks() >= before + 2).then_some(())
    });
    assert!(
        began.elapsed() > Duration::from_millis(900),
        "the pod was checked without a pause: {:?}",
        began.elapsed()
    );
    nft(&wire, "delete table inet istio-ambient-nat");
    await_verified(&node);
}

#[test]
fn a_missing_proxy_and_its_return_are_reported() {
    let (mut node, wire) = TestNode::with_pod("away");
    await_verified(&node);
    node.kill_all();
    // A process of the pod takes the proxy's place.
    let impostor = wire
        .pod
        .run(|| std::net::TcpListener::bind(("::", 15001)))
        .unwrap()
        .unwrap();
    node.start_agent();
    let found = await_state(&node, VerificationState::Unverified);
    assert_unverified(&found, VerificationReason::ForeignListener, "15001");
    assert_eq!(
        metric(&node, "underpass_pods{state=\"unverified\"}"),
        Some(1)
    );
    drop(impostor);
    assert_unverified(
        &verify_now(&node),
        VerificationReason::ProxyNotListening,
        "15001",
    );
    node.start_ready_proxy();
    await_verified(&node);
    assert_eq!(
        metric(
            &node,
            "underpass_not_verified_seconds_count{state=\"unverified\"}"
        ),
        Some(1)
    );
    let age = until("the age of the verification is exposed", || {
        let metrics = node.get(ADMIN, "/metrics").unwrap().1;
        let line = metrics
            .lines()
            .find_map(|l| l.strip_prefix("underpass_verification_age_seconds "));
        line.and_then(|l| l.parse::<f64>().ok())
    });
    assert!((0.0..60.0).contains(&age), "{age}");
}

#[test]
fn an_application_that_shares_the_proxys_port_is_detected() {
    let (node, wire) = TestNode::with_pod("sharing");
    await_verified(&node);
    for port in [15001, 15006, 15008] {
        let foreign = listener::sharing(&wire.pod, port, false);
        assert_unverified(
            &verify_now(&node),
            VerificationReason::ForeignListener,
            &port.to_string(),
        );
        drop(foreign);
        assert_eq!(verify_now(&node).state, VerificationState::Verified);
    }
}

#[test]
fn a_disguised_listener_on_the_proxys_port_is_detected_by_a_probe() {
    let (node, wire) = TestNode::with_pod("disguise");
    await_verified(&node);
    for port in [15006, 15008] {
        let foreign = listener::sharing(&wire.pod, port, true);
        std::thread::spawn(move || {
            for stream in foreign.incoming() {
                drop(stream);
            }
        });
        // Each probe reaches one of the two sockets, like any connection.
        until("a probe reaches the foreign listener", || {
            let found = verify_now(&node);
            let is_here = found
                .reason
                .is_some_and(|reason| reason.contains(&format!(":{port} ")));
            (found.reason_code == Some(VerificationReason::ProbeFailed) && is_here).then_some(())
        });
    }
}

#[test]
fn a_loopback_connection_to_a_listener_is_not_relayed_or_answered() {
    let (node, wire) = TestNode::with_pod("direct");
    await_verified(&node);
    let mut stream = wire
        .pod
        .run(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket
                .bind(
                    &"127.0.0.1:0"
                        .parse::<std::net::SocketAddr>()
                        .unwrap()
                        .into(),
                )
                .unwrap();
            socket
                .connect(
                    &"10.78.0.1:15006"
                        .parse::<std::net::SocketAddr>()
                        .unwrap()
                        .into(),
                )
                .unwrap();
            std::net::TcpStream::from(socket)
        })
        .unwrap();
    stream.write_all(&[b'x'; 100]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // ends with a reset, as data was not read
    assert!(answer.len() < 100, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_pod_is_verified_on_request() {
    let (mut node, wire) = TestNode::with_pod("on-request");
    await_verified(&node);
    let ask = |node: &TestNode, method, path| node.request(method, ADMIN, path).unwrap();
    assert_eq!(ask(&node, "GET", "/verify?pod=default/client").0, 405);
    assert_eq!(ask(&node, "POST", "/verify").0, 400);
    assert_eq!(ask(&node, "POST", "/verify?pod=default/unknown").0, 404);
    assert_eq!(ask(&node, "POST", "/verify?pod=default%2Fclient").0, 200);
    let checks = || metric(&node, "underpass_verification_seconds_count").unwrap();
    let before = checks();
    nft(&wire, "delete table inet underpass");
    until("it is repaired", || nothing_differs(&wire).then_some(()));
    let found = verify_now(&node);
    assert_eq!(found.state, VerificationState::Verified);
    assert!(
        found
            .last_repair
            .as_ref()
            .unwrap()
            .by
            .starts_with("nft (pid "),
        "{found:?}"
    );
    // One check for the change, which the requested one may have completed, and one for the
    // request; a repair causes no further check.
    until("both are counted", || {
        (checks() >= before + 2).then_some(())
    });
    assert_eq!(checks(), before + 2);
    // A request while the proxy is down reports that at once.
    node.kill_all();
    node.start_agent();
    assert_unverified(
        &verify_now(&node),
        VerificationReason::ProxyNotListening,
        "15001",
    );
}

#[test]
fn an_application_on_the_proxys_ports_is_not_mistaken_for_the_proxy() {
    let (mut node, wire) = TestNode::with_pod("impostor-app");
    await_verified(&node);
    node.kill_all();
    let own = |port| underpass_tests::listener::transparent(&wire.pod, port);
    let listeners = [15001, 15006, 15008].map(own);
    for listener in listeners {
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
    }
    node.start_agent();
    let found = await_state(&node, VerificationState::Unverified);
    assert_unverified(&found, VerificationReason::ProbeFailed, "");
    until("failed probes are counted", || {
        metric(&node, "underpass_probe_failures_total").filter(|n| *n > 0)
    });
}

#[test]
fn a_proxy_that_exits_is_noticed_without_a_request() {
    let mut node = TestNode::new("goes", MESH);
    node.start_agent();
    let proxy = node.start_ready_proxy();
    let wire = Wire::new();
    let addresses = ["10.78.0.1/24", "fd78::1/64"];
    assert!(
        Call::new(
            "ADD",
            &path_of(&wire.pod),
            &config(&node.agent_socket(), &addresses)
        )
        .run()
        .status
        .success()
    );
    await_verified(&node);
    node.kill(proxy);
    await_state(&node, VerificationState::Unverified);
    node.start_ready_proxy();
    await_verified(&node);
}

/// Without its IPv6 address, every repair of the pod waits 2.5 s in vain for one.
#[test]
fn a_pod_that_changes_its_rules_all_the_time_delays_nothing_else() {
    let (mesh, wires) = many_pods(2);
    let mut node = TestNode::new("restless", &mesh);
    node.start_agent();
    node.start_ready_proxy();
    let add = |index: usize| {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{index};K8S_POD_UID=u{index}");
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let call = Call::new("ADD", &path_of(&wires[index].pod), &config);
        let call = call.with("CNI_CONTAINERID", Some(&format!("c{index}")));
        let (started, output) = (Instant::now(), call.with("CNI_ARGS", Some(&args)).run());
        assert!(output.status.success(), "{output:?}");
        started.elapsed()
    };
    add(0);
    ip(&wires[0], "-6 addr del fd78::1/64 dev eth0");
    // A loop that waited for this pod would be blocked nearly all the time.
    let repair = Duration::from_secs(2);
    let over = AtomicBool::new(false);
    let mut answers: Vec<Duration> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                wires[0].pod.run(redirect::remove).unwrap().unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let mut answers = vec![add(1)];
        for _ in 0..100 {
            let started = Instant::now();
            assert_eq!(node.get(ADMIN, "/healthz").unwrap().0, 200);
            let verified = node.verify("p1").verification.unwrap();
            assert_eq!(verified.state, VerificationState::Verified, "{verified:?}");
            answers.push(started.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        answers
    });
    answers.sort();
    assert!(answers[50] < repair / 2, "{answers:?}");
}
