//! A table of paths through the capture, checked with real packets for every backend and both
//! families.

#![allow(clippy::unwrap_used)] // a test that cannot continue panics

mod changes;
mod connections;
mod dns;
mod exclusions;
mod forwarding;

use std::panic::{AssertUnwindSafe, catch_unwind};

use redirect::CaptureKind;
use underpass_tests::capture_setup::CaptureSetup;

type Path = (&'static str, fn(&CaptureSetup));

/// Every path: what is sent and where it must arrive.
const PATHS: &[Path] = &[
    (
        "outbound TCP arrives at 15001 with its destination",
        connections::outbound,
    ),
    (
        "inbound TCP arrives at 15006 with its destination",
        connections::inbound,
    ),
    ("a tunnel arrives at 15008", connections::tunnel),
    (
        "a probe of the node reaches the application, and is answered",
        connections::probe,
    ),
    (
        "the pod reaches itself by 127.0.0.1 and ::1, without the proxy",
        connections::loopback,
    ),
    (
        "the pod reaches itself by its own address, without the proxy",
        connections::own_address,
    ),
    (
        "the pod reaches another of its own addresses, without the proxy",
        connections::second_address,
    ),
    (
        "the pod connects to a virtual address that may lead back to it: 15001",
        connections::own_vip,
    ),
    (
        "the proxy's own connections leave",
        connections::proxy_leaves,
    ),
    (
        "the proxy connects with a client's address: the application sees the client",
        connections::spoofed,
    ),
    (
        "the application's responses to such a client return, and no packet leaves",
        connections::spoofed_returns,
    ),
    (
        "the proxy connects with a client's address after a new interface appears: responses \
         return",
        connections::spoofed_other_interface,
    ),
    (
        "UDP and ICMP in both directions are not captured",
        connections::udp_and_icmp,
    ),
    (
        "UDP DNS arrives at 15053, and the response comes from the queried address",
        dns::udp,
    ),
    ("TCP DNS arrives at 15053 with its destination", dns::tcp),
    (
        "DNS to loopback and to the pod itself is not captured",
        dns::loopback,
    ),
    (
        "the proxy's own DNS leaves, also from the application's port",
        dns::of_the_proxy,
    ),
    (
        "without DNS capture UDP DNS leaves, and TCP DNS is captured like any connection",
        dns::not_captured,
    ),
    (
        "DNS capture without a proxy: refused (routed, UDP, IPv4: no response), and nothing leaves",
        dns::without_proxy,
    ),
    (
        "without a proxy outbound is refused at once, and nothing leaves",
        connections::no_proxy_outbound,
    ),
    (
        "without a proxy inbound never reaches the application",
        connections::no_proxy_inbound,
    ),
    (
        "inbound bypassed: plaintext reaches the application, tunnels the proxy",
        exclusions::inbound,
    ),
    (
        "an inbound port excluded: the application answers the client itself",
        exclusions::inbound_port,
    ),
    (
        "an inbound CIDR excluded: the same",
        exclusions::inbound_cidr,
    ),
    (
        "an outbound port excluded: the connection leaves directly",
        exclusions::outbound_port,
    ),
    (
        "an outbound CIDR excluded: the connection leaves directly",
        exclusions::outbound_cidr,
    ),
    (
        "forwarded TCP is not forwarded: refused (routed), or inbound (nat)",
        forwarding::forwarded,
    ),
    (
        "forwarded TCP by a rerouted interface: 15001 with its destination",
        forwarding::rerouted,
    ),
    (
        "forwarded UDP DNS, masqueraded in the pod, is answered",
        dns::forwarded,
    ),
    (
        "connections open at enrolment continue, in both directions",
        changes::open_connections,
    ),
    (
        "connections open at enrolment are closed if configured",
        changes::open_connections_cut,
    ),
    (
        "un-enrolment keeps captured connections until they close",
        changes::leaving,
    ),
    ("applying again changes nothing", changes::idempotent),
    (
        "removal leaves nothing, and traffic is plain",
        changes::removal,
    ),
];

fn check_all(capture: CaptureKind) {
    let (mut rows, mut failed) = (String::new(), 0);
    for (name, check) in PATHS {
        let results = [false, true].map(|v6| {
            match catch_unwind(AssertUnwindSafe(|| check(&CaptureSetup::new(capture, v6)))) {
                Ok(()) => "ok".to_owned(),
                Err(panic) => {
                    failed += 1;
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    text.or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("panicked")
                        .to_owned()
                }
            }
        });
        rows += &format!("| {name} | {} | {} |\n", results[0], results[1]);
    }
    println!("| {capture} | IPv4 | IPv6 |\n|---|---|---|\n{rows}");
    assert_eq!(failed, 0, "paths that end elsewhere");
}

#[test]
fn every_path_under_routed() {
    check_all(CaptureKind::Routed);
}

#[test]
fn every_path_under_nat() {
    check_all(CaptureKind::Nat);
}

#[test]
fn every_path_under_nat_iptables_nft() {
    check_all(CaptureKind::NatIptablesNft);
}

#[test]
fn every_path_under_nat_iptables_legacy() {
    check_all(CaptureKind::NatIptablesLegacy);
}
